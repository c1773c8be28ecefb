"""What is known of agents: durable records in the store, live instances from the fleet.

A record is written when an agent first registers, when its description changes and when an operator changes its state;
it is never deleted by the end of a process. The first agent to announce a capability version fixes its schemas;
another agent with other schemas is refused, the same agent may change them.

A name that has had no instance, and no new report, for `retention` is forgotten, with its reports, and its capability
versions are free for other schemas. One that an operator has stopped is not: forgetting it would let it work again. As
long as there are instances, the record says so every tenth of that time, by whichever replica is first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from datetime import timedelta

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import capability_pb2, registry_pb2

from .. import telemetry
from ..admission import SchemaInvalid, SchemaSet, difference
from ..api.storing import settle
from ..placement.breaker import OPEN
from ..placement.fleet import Fleet, Instance
from ..shards.archiver import moment
from ..store import keys
from ..store.port import (
    Compacted,
    Compare,
    Delete,
    EventType,
    KeyValue,
    Put,
    Store,
    StoreFull,
    StoreUnavailable,
    Target,
    Txn,
    prefix_end,
)
from .verified import Verified

log = telemetry.logger("registry")

_RETRY = 0.25
"""Seconds before the store is followed again that has not answered."""

ACTIVE = registry_pb2.AGENT_STATE_ACTIVE
GONE = registry_pb2.AGENT_STATE_GONE
SUSPENDED = registry_pb2.AGENT_STATE_SUSPENDED
DRAINING = registry_pb2.AGENT_STATE_DRAINING

RECORD = "record"
"""Last part of an agent's key; one record an agent."""


class AgentNotFound(Exception):
    """No such agent in the namespace."""


class Conflict(Exception):
    """Another agent holds the capability version with other schemas."""

    def __init__(self, capability: str, holder: str, difference: str) -> None:
        super().__init__(f"{capability} is held by {holder}: {difference}")
        self.capability, self.holder, self.difference = capability, holder, difference


class InvalidSchema(Exception):
    """A capability's schema is no JSON Schema that we accept."""


class Registry:
    """All agents. `changes` wakes whoever watches; names are (namespace, agent)."""

    def __init__(
        self, store: Store, fleet: Fleet, schemas: SchemaSet, now: Callable[[], int], retention: timedelta
    ) -> None:
        self._store = store
        self._retention = retention // timedelta(microseconds=1)
        self._fleet = fleet
        self._schemas = schemas
        self._now = now
        self.verified = Verified(store, now)
        self._records: dict[tuple[str, str], records.AgentRecord] = {}
        self._revisions: dict[tuple[str, str], int] = {}
        self._announcers: dict[tuple[str, str], dict[str, capability_pb2.Capability]] = {}
        """By namespace and name@version of a capability, who has announced it, and how."""
        self._listeners: set[asyncio.Queue[tuple[str, str]]] = set()
        self._followed = 0

    async def load(self) -> None:
        """Reads all records: before anything attaches, and when changes may have been missed."""
        found = await self._store.range(keys.AGENTS, prefix_end(keys.AGENTS))
        for kv in found.kvs:
            self._note(kv)
        for gone in self._records.keys() - {(keys.parts(kv.key)[1], keys.parts(kv.key)[2]) for kv in found.kvs}:
            self._note_forgotten(keys.agent(*gone, RECORD), found.revision + 1)
        self._followed = found.revision + 1

    async def run(self) -> None:
        """Follows what other replicas write, and forgets, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="agents")
            group.create_task(self._look_after(), name="forgotten agents")

    async def _follow(self) -> None:
        while True:
            try:
                async with aclosing(self._store.watch(keys.AGENTS, self._followed)) as changes:
                    async for batch in changes:
                        for event in batch.events:
                            if event.type is EventType.PUT:
                                self._note(event.kv)
                            else:
                                self._note_forgotten(event.kv.key, event.kv.mod_revision)
                        self._followed = batch.revision + 1
            except Compacted:
                await self._load_again()
            except StoreUnavailable as error:
                telemetry.tell_seldom(log.warning, "agents_not_followed", cause=str(error))
                await asyncio.sleep(_RETRY)

    async def _load_again(self) -> None:
        try:
            await self.load()
        except StoreUnavailable as error:
            telemetry.tell_seldom(log.warning, "agents_not_followed", cause=str(error))
            await asyncio.sleep(_RETRY)

    def _note(self, kv: KeyValue) -> None:
        """What the store says of an agent, unless something newer is known."""
        _, namespace, name, _ = keys.parts(kv.key)
        if self._revisions.get((namespace, name), 0) >= kv.mod_revision:
            return
        record = records.AgentRecord.FromString(kv.value)
        former = self._records.get((namespace, name))
        self._keep(namespace, name, record, kv.mod_revision)
        stopped = record.state in (SUSPENDED, DRAINING)
        if stopped or (former is not None and former.state != record.state):
            self._fleet.suspend(namespace, name, stopped)
        for capability in record.description.capabilities:
            label = f"{capability.name}@{capability.version}"
            self._fleet.declare(namespace, label, capability.output_schema)
        self.changed(namespace, name)

    def _note_forgotten(self, key: bytes, revision: int) -> None:
        """An agent is not known any more, unless it was announced anew since."""
        _, namespace, name, _ = keys.parts(key)
        if self._revisions.get((namespace, name), revision) < revision:
            self._drop(namespace, name)
            self.changed(namespace, name)

    def _keep(self, namespace: str, name: str, record: records.AgentRecord, revision: int) -> None:
        self._drop(namespace, name)
        self._records[namespace, name] = record
        self._revisions[namespace, name] = revision
        for capability in record.description.capabilities:
            self._announcers.setdefault((namespace, _label(capability)), {})[name] = capability

    def _drop(self, namespace: str, name: str) -> None:
        record = self._records.pop((namespace, name), None)
        if record is None:
            return
        del self._revisions[namespace, name]
        for capability in record.description.capabilities:
            announcers = self._announcers.get((namespace, _label(capability)), {})
            announcers.pop(name, None)
            if not announcers:
                self._announcers.pop((namespace, _label(capability)), None)
            for other in announcers.values():  # what outputs are checked by may have been its own
                self._fleet.declare(namespace, _label(other), other.output_schema)

    async def announce(self, namespace: str, sidecar: str, description: registry_pb2.AgentDescription) -> None:
        """Checks and records what a sidecar says of an agent. Raises Conflict, InvalidSchema."""
        for capability in description.capabilities:
            for text in (capability.input_schema, capability.output_schema):
                try:
                    if text:
                        self._schemas.add(text)
                except SchemaInvalid as error:
                    raise InvalidSchema(f"{capability.name}@{capability.version}: {error}") from error
            self._check_conflict(namespace, description.name, capability)
        former = self._records.get((namespace, description.name))
        if former is not None and former.description == description and former.sidecar == sidecar:
            if self._age(former) <= self._retention // 10:
                return
            record = _seen(former, self._now())  # before another replica forgets it that does not see it yet
        else:
            record = records.AgentRecord(
                description=description,
                state=former.state if former else ACTIVE,
                create_time=former.create_time if former else self._now(),
                update_time=self._now(),
                sidecar=sidecar,
                seen_time=self._now(),
            )
        await self._write(namespace, description.name, record)
        if former is None or former.description != description:
            await self._look_again(namespace, description, former)

    async def _look_again(
        self, namespace: str, description: registry_pb2.AgentDescription, former: records.AgentRecord | None
    ) -> None:
        """Another agent may have been announced at the same moment, not known here yet: what is written later is taken
        back. Raises Conflict."""
        if not any(capability.input_schema or capability.output_schema for capability in description.capabilities):
            return
        prefix, name = keys.agent_prefix(namespace), description.name
        key = keys.agent(namespace, name, RECORD)
        found = await self._store.range(prefix, prefix_end(prefix))
        for kv in found.kvs:
            self._note(kv)
        # Without its record another replica, to which it was announced as well, has just taken it back.
        written = next((kv.mod_revision for kv in found.kvs if kv.key == key), 0)
        try:
            for capability in description.capabilities:
                self._check_conflict(namespace, name, capability, written)
        except Conflict:
            op = Delete(key) if former is None else Put(key, former.SerializeToString())
            result = await settle(self._store, Txn((Compare(key, Target.MOD_REVISION, written),), (op,)))
            if result.succeeded and former is None:
                self._note_forgotten(key, result.revision)
            elif result.succeeded and former is not None:
                self._keep(namespace, name, former, result.revision)
            raise

    def _check_conflict(
        self, namespace: str, agent: str, capability: capability_pb2.Capability, written: int = 0
    ) -> None:
        """Raises Conflict for another agent that holds the version with other schemas; with `written`, the revision of
        its own record, only for one whose record is older."""
        for other, held in self._announcers.get((namespace, _label(capability)), {}).items():
            if other == agent or (written and self._revisions[namespace, other] > written):
                continue
            for mine, theirs, side in (
                (capability.input_schema, held.input_schema, "input"),
                (capability.output_schema, held.output_schema, "output"),
            ):
                found = difference(theirs, mine)
                if found:
                    raise Conflict(_label(held), other, f"{side} schema: {found}")

    async def _write(self, namespace: str, name: str, record: records.AgentRecord) -> None:
        """Of what the agent is; what an operator has decided on it stays."""
        key, value = keys.agent(namespace, name, RECORD), record.SerializeToString()
        known = self._revisions.get((namespace, name), 0)
        result = await settle(self._store, Txn((Compare(key, Target.MOD_REVISION, known),), (Put(key, value),), (key,)))
        if result.succeeded:
            self._keep(namespace, name, record, result.revision)
            self.changed(namespace, name)
            return
        found = result.observed[key]
        if found is None:  # another replica has just forgotten it; the record is of what is there now
            self._note_forgotten(key, known + 1)
            await self._write(namespace, name, record)
            return
        self._note(found)
        there = records.AgentRecord.FromString(found.value)
        if there.description == record.description and there.sidecar == record.sidecar:
            return  # every replica is told of an attach; one of the others was quicker to write it down
        # Another replica wrote the record first; ours comes after it.
        self._revisions[namespace, name] = found.mod_revision
        record.seen_time, record.state, record.create_time = there.seen_time, there.state, there.create_time
        await self._write(namespace, name, record)

    async def set_state(self, namespace: str, name: str, state: registry_pb2.AgentState.ValueType) -> None:
        """ACTIVE, DRAINING or SUSPENDED, for all instances. Raises AgentNotFound."""
        key = keys.agent(namespace, name, RECORD)
        while True:
            # What is known here may be a moment old, and a decision is about the agent as it is.
            found = await self._store.range(key)
            if not found.kvs:
                self._note_forgotten(key, found.revision + 1)
                raise AgentNotFound(name)
            self._note(found.kvs[0])
            record = records.AgentRecord()
            record.CopyFrom(self._records[namespace, name])
            if record.state == state:
                break
            record.state, record.update_time = state, self._now()
            if await self._write_if_same(namespace, name, record):
                self.changed(namespace, name)
                break
        self._fleet.suspend(namespace, name, state != ACTIVE)

    # Forgetting.

    async def _look_after(self) -> None:
        # A hundredth of the time is soon enough, and more often than once a second is of no use to anybody.
        pause = max(1.0, min(self._retention / 1e8, 600.0))
        while True:
            await asyncio.sleep(pause)
            try:
                await self.look_after()
            except (StoreUnavailable, StoreFull) as error:
                telemetry.tell_seldom(log.warning, "agents_not_looked_after", cause=str(error))

    async def look_after(self) -> None:
        """Notes which agents are there, and forgets those that have not been for the retention."""
        live = {(instance.namespace, instance.agent) for instance in self._fleet.instances()}
        for (namespace, name), record in list(self._records.items()):
            age = self._age(record)
            if (namespace, name) in live:
                if age > self._retention // 10:  # another replica's word is as good
                    await self._write_if_same(namespace, name, _seen(record, self._now()))
            elif age > self._retention and record.state == ACTIVE:
                await self._forget(namespace, name)

    def _age(self, record: records.AgentRecord) -> int:
        """Microseconds since an agent was known to be there."""
        return self._now() - max(record.seen_time, record.update_time)

    async def _write_if_same(self, namespace: str, name: str, record: records.AgentRecord) -> bool:
        """Whether it was written: not when another replica has written meanwhile."""
        key = keys.agent(namespace, name, RECORD)
        compare = Compare(key, Target.MOD_REVISION, self._revisions[namespace, name])
        result = await settle(self._store, Txn((compare,), (Put(key, record.SerializeToString()),)))
        if result.succeeded and self._revisions.get((namespace, name), 0) < result.revision:
            self._keep(namespace, name, record, result.revision)
        return result.succeeded

    async def _forget(self, namespace: str, name: str) -> None:
        key, reports = keys.agent(namespace, name, RECORD), keys.verified(namespace, name)
        latest, revision = await self.verified.latest(namespace, name)
        known = self._revisions.get((namespace, name))
        if known is None or self._now() - latest <= self._retention:
            return
        compares = (Compare(key, Target.MOD_REVISION, known), Compare(reports, Target.MOD_REVISION, revision))
        ops = (Delete(key), Delete(reports)) if revision else (Delete(key),)
        result = await settle(self._store, Txn(compares, ops))
        if result.succeeded:
            self._note_forgotten(key, result.revision)
            log.info("agent_forgotten", agent=name, namespace=namespace)

    def changed(self, namespace: str, name: str) -> None:
        """Tells watchers that an agent, or its instances, changed. One that is far behind is told to start over."""
        for queue in self._listeners:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(("", ""))
            else:
                queue.put_nowait((namespace, name))

    def listen(self) -> asyncio.Queue[tuple[str, str]]:
        """Names of agents as they change; ("", "") means: look at all of them again."""
        queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(maxsize=256)
        self._listeners.add(queue)
        return queue

    def unlisten(self, queue: asyncio.Queue[tuple[str, str]]) -> None:
        self._listeners.discard(queue)

    def names(self, namespace: str) -> list[str]:
        return sorted(name for ns, name in self._records if ns == namespace)

    def agent(self, namespace: str, name: str) -> registry_pb2.Agent:
        """The agent as the API shows it. Raises AgentNotFound."""
        for agent in self.agents(namespace, (name,)):
            return agent
        raise AgentNotFound(name)

    def agents(self, namespace: str, names: Iterable[str]) -> Iterator[registry_pb2.Agent]:
        """Those of these agents that there are, with the instances that are attached here; to be read at once."""
        wanted: dict[str, list[Instance]] = {name: [] for name in names if (namespace, name) in self._records}
        for instance in self._fleet.instances(namespace):
            if instance.agent in wanted:
                wanted[instance.agent].append(instance)
        return (self._shown(namespace, name, live) for name, live in wanted.items())

    def _shown(self, namespace: str, name: str, live: list[Instance]) -> registry_pb2.Agent:
        record = self._records[namespace, name]
        state = GONE if not live and record.state == ACTIVE else record.state
        result = registry_pb2.Agent(
            name=name, state=state, description=record.description, revision=self._revisions[namespace, name]
        )
        result.create_time.FromDatetime(moment(record.create_time))
        result.update_time.FromDatetime(moment(record.update_time))
        for instance in live:
            _show(result.instances.add(), instance)
        return result

    def descriptions(self, namespace: str) -> Iterator[registry_pb2.AgentDescription]:
        return (record.description for (ns, _), record in self._records.items() if ns == namespace)


def _seen(record: records.AgentRecord, moment: int) -> records.AgentRecord:
    seen = records.AgentRecord()
    seen.CopyFrom(record)
    seen.seen_time = moment
    return seen


def _label(capability: capability_pb2.Capability) -> str:
    return f"{capability.name}@{capability.version}"


def _show(message: registry_pb2.Instance, instance: Instance) -> None:
    message.instance_id = instance.instance_id
    message.sidecar = instance.sidecar
    message.slots = instance.slots
    message.in_use = max(0, instance.in_use)
    message.completed = instance.completed
    message.failed = instance.failed
    message.attach_time.FromDatetime(moment(instance.attach_time))
    breaker = instance.breaker
    if breaker is not None:
        message.breaker.state = registry_pb2.BreakerState.ValueType(breaker.state)
        message.breaker.reason, message.breaker.openings = breaker.reason, breaker.opened
        if breaker.state == OPEN:
            message.breaker.retry_time.FromDatetime(moment(breaker.until))
    if instance.latency is not None:
        message.smoothed_latency.FromMicroseconds(int(instance.latency * 1e6))
