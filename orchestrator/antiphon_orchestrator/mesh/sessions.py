"""All sidecars attached to this replica: who is there, what they offer, when they are gone for good.

A stream that breaks takes its instances out of placement at once, but its attempts go on: only when the same
incarnation has not come back within the grace are they declared lost. A shard that is taken is claimed on every stream;
its timers are held until each incarnation that its log knows has said what it holds, at most for the adoption window,
which those that have no stream get for coming back (protocol.md §5). Whose hello is being looked at is there, however
long the store takes for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.partials import MESSAGE_PIECES
from antiphon.v1 import agent_service_pb2, context_request_pb2, registry_pb2
from antiphon.v1.error_pb2 import ErrorReason

from .. import telemetry
from ..api.errors import ApiError
from ..audit import AuditLog, Fact
from ..engine import decide
from ..engine.decide import Outcome
from ..engine.failure import Failure, FailureKind
from ..engine.run import Run, Task
from ..engine.states import AttemptState
from ..placement.fleet import Fleet, Instance
from ..policy import PolicyPort, Request
from ..registry.registry import Conflict, InvalidSchema, Registry
from ..shards import inputs as i
from ..shards.host import Host
from ..shards.payloads import assert_labels
from ..shards.shard import Shard
from . import partials, reports
from .calls import Calls
from .context import ContextDesk
from .session import PendingOffer, Session
from .tokens import AttemptTokens

log = telemetry.logger("mesh")

PROTOCOL_VERSION = 1

_TICK = 0.25
"""Seconds between two looks at who is absent."""

_STALL = 1_000_000
"""Microseconds by which a look may be late before they count as a stall, or as a clock that was set."""

REATTACH_GRACE = timedelta(seconds=8)
"""In which a sidecar that is away may come back, before its attempts are lost."""


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """Times of the mesh. `go_away_after`: age of a stream at which the sidecar is asked to make a new one."""

    replica_id: str
    inline_limit: int = 65_536
    liveness_timeout: timedelta = timedelta(seconds=15)
    reattach_grace: timedelta = REATTACH_GRACE
    adoption_window: timedelta = timedelta(seconds=5)
    go_away_after: timedelta = timedelta(minutes=28)


@dataclass(frozen=True, slots=True)
class Announcer:
    """Who speaks for agents: the identity and grants of a sidecar's certificate."""

    namespace: str
    name: str
    principal: str
    allows_agent: Callable[[str], bool]
    allows_capability: Callable[[str], bool]


class Sessions:
    """Implements shards.turn.Outbox."""

    def __init__(
        self,
        settings: MeshSettings,
        fleet: Fleet,
        registry: Registry,
        policy: PolicyPort,
        audit: AuditLog,
        tokens: AttemptTokens,
        calls: Calls,
        context: ContextDesk,
        now: Callable[[], int],
    ) -> None:
        self.settings = settings
        self._fleet = fleet
        self._registry = registry
        self._policy = policy
        self._audit = audit
        self._tokens = tokens
        self._now = now
        self._sessions: dict[str, Session] = {}
        self._absent: dict[str, int] = {}
        self._arriving: dict[str, int] = {}
        """Incarnations whose hello is being looked at, and how many of theirs."""
        self._host: Host | None = None
        self._adopting: dict[int, int] = {}
        self._replicas: tuple[tuple[str, str], ...] = ()
        self._calls = calls
        calls.answer = self._call_result
        self._context = context
        context.answer = self._context_response
        context.lose = self._claim_lost
        self.draining = False

    def bind(self, host: Host) -> None:
        """Joins the two halves; once, before anything runs."""
        self._host = host
        host.taken = self._took
        host.lost = self._lost
        self._calls.bind(host)
        self._context.bind(host)

    def _call_result(self, incarnation: str, response: agent_service_pb2.CallResponse) -> None:
        # A sidecar that is away asks again when it is back, and finds the same run.
        if (session := self._sessions.get(incarnation)) is not None:
            session.call_result(response)

    def _context_response(self, incarnation: str, response: context_request_pb2.ContextResponse) -> None:
        # As above: it asks again, and a write that was made is answered by its request id.
        if (session := self._sessions.get(incarnation)) is not None:
            session.context_response(response)

    def _claim_lost(self, incarnation: str, loss: context_request_pb2.ClaimLoss) -> None:
        if (session := self._sessions.get(incarnation)) is not None:
            session.control.claim_losses.append(loss)
            session.wake()

    def _call_partial(self, instance_id: str, piece: agent_service_pb2.CallPartial) -> None:
        session = self._sessions.get(instance_id.split("/")[1])
        # One that does not read loses pieces; nothing waits for them.
        if session is not None and len(session.control.call_partials) < MESSAGE_PIECES:
            session.control.call_partials.append(piece)
            session.wake()

    @property
    def host(self) -> Host:
        assert self._host is not None
        return self._host

    @property
    def count(self) -> int:
        """Sidecars that are attached."""
        return len(self._sessions)

    # Outbox.

    def offer(self, shard: int, epoch: int, run: Run, task: Task) -> None:
        live = task.live
        assert live is not None
        session = self._sessions.get(live.instance.split("/")[1])
        # Without a session the attempt waits: a reattach claims it anew, or the grace ends and it is lost.
        if session is not None:
            session.offer(PendingOffer(shard, epoch, run, task, live.number))

    def cancel(self, incarnation: str, attempt_id: str, reason: str) -> None:
        session = self._sessions.get(incarnation)
        if session is not None:
            session.cancel(attempt_id, reason)

    # Streams.

    async def open(self, who: Announcer, hello: mesh.Hello) -> Session:
        """A session for a new stream. Raises ApiError."""
        if hello.protocol_version != PROTOCOL_VERSION:
            cause = f"protocol version {hello.protocol_version} is not known here; this orchestrator speaks 1"
            raise ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause=cause)
        if self.draining:
            raise ApiError(ErrorReason.ERROR_REASON_NOT_SERVING, state="draining")
        session = Session(
            who.namespace, who.name, who.principal, hello.incarnation, hello.generation, self._tokens, self._now
        )
        if self._seat_taken(session):
            raise ApiError(ErrorReason.ERROR_REASON_STREAM_REPLACED)
        session.take_back = self._take_back
        windows = {w.agent: w for w in hello.windows}
        control = session.control
        settings = self.settings
        control.welcome.replica_id = settings.replica_id
        control.welcome.inline_limit = settings.inline_limit
        control.welcome.liveness_timeout.FromTimedelta(settings.liveness_timeout)
        instances = []
        self._arriving[session.incarnation] = self._arriving.get(session.incarnation, 0) + 1
        try:
            for description in hello.agents:
                instance = await self._admit(session, who, description, windows.get(description.name))
                if instance is not None:
                    instances.append(instance)
        except BaseException:
            # The store failed, or took longer than the sidecar waits, which dials again: it is not away for that.
            if (until := self._absent.get(session.incarnation)) is not None:
                grace = self._now() + _micros(self.settings.reattach_grace)
                self._absent[session.incarnation] = max(until, grace)
            raise
        finally:
            self._arriving[session.incarnation] -= 1
            if not self._arriving[session.incarnation]:
                del self._arriving[session.incarnation]
        # From here on nothing is awaited: the old stream goes and the new one is there in the same step.
        if self._seat_taken(session):
            raise ApiError(ErrorReason.ERROR_REASON_STREAM_REPLACED)
        former = self._sessions.get(hello.incarnation)
        if former is not None:
            former.end(ApiError(ErrorReason.ERROR_REASON_STREAM_REPLACED))
            self._detach(former)
        self._sessions[session.incarnation] = session
        self._absent.pop(session.incarnation, None)
        # Only now: it may have changed while the agents were looked at.
        session.policy_epoch = control.policy_epoch = self._policy.epoch
        self._announce(session)
        for shard in self.host.shards:
            self._claim(session, shard)
        for instance in instances:
            self._attach(session, instance)
            control.window_acks.add(
                agent=instance.agent, generation=instance.window_generation, in_use=max(0, instance.in_use)
            )
            self._registry.changed(who.namespace, instance.agent)
        self._fleet.give_up(session.incarnation)  # whom it had and does not bring along any more
        session.wake()
        agents = ",".join(agent.name for agent in hello.agents)
        log.info("sidecar_attached", sidecar=who.name, namespace=who.namespace, agent=agents)
        return session

    def _seat_taken(self, session: Session) -> bool:
        """Whether the incarnation has a newer stream, or is another sidecar's, present or away.

        It is no secret, and whoever holds it is offered its attempts anew, with all that is in them.
        """
        former = self._sessions.get(session.incarnation)
        if former is not None:
            return former.generation >= session.generation or former.principal != session.principal
        return any(shard.out.holders(session.incarnation) - {session.source} for shard in self.host.shards)

    def _claim(self, session: Session, shard: Shard) -> None:
        session.control.claims.add(shard=shard.index, epoch=shard.epoch)
        session.claimed[shard.index] = shard.epoch
        session.held.pop(shard.index, None)
        session.before[shard.index] = shard.live_ids(session.incarnation)

    def _took(self, number: int) -> None:
        """A shard has been rebuilt here: it is claimed on every stream, its absent sidecars have a while to come."""
        shard = self.host.shard(number)
        for session in list(self._sessions.values()):
            if shard.out.holders(session.incarnation) - {session.source}:
                session.end(ApiError(ErrorReason.ERROR_REASON_STREAM_REPLACED))
                continue
            self._claim(session, shard)
            session.wake()
        until = self._now() + _micros(self.settings.adoption_window)
        for incarnation in shard.incarnations() - self._sessions.keys():
            self._absent[incarnation] = max(until, self._absent.get(incarnation, 0))
        if shard.timers_held:
            self._adopting[number] = until

    def _lost(self, number: int) -> None:
        """A shard is another replica's: what was to be offered for it is offered by that one, if it still is."""
        self._adopting.pop(number, None)
        for session in self._sessions.values():
            session.drop_offers(number)

    def replicas_changed(self, replicas: tuple[tuple[str, str], ...]) -> None:
        """Tells every sidecar which replicas there are: (replica id, address)."""
        if replicas != self._replicas:
            self._replicas = replicas
            for session in self._sessions.values():
                self._announce(session)
                session.wake()

    def _announce(self, session: Session) -> None:
        topology = session.control.topology
        del topology.replicas[:]
        for replica_id, address in self._replicas:
            topology.replicas.add(replica_id=replica_id, address=address)

    async def _admit(
        self,
        session: Session,
        who: Announcer,
        description: registry_pb2.AgentDescription,
        window: mesh.Window | None,
    ) -> Instance | None:
        """An instance for an agent that may work here, or None after its refusal was queued."""
        name = description.name
        try:
            await self._check(who, description)
        except ApiError as error:
            session.control.refusals.add(agent=name, reason=error.reason, message=str(error))
            session.wake()
            log.warning("agent_refused", agent=name, sidecar=who.name, cause=str(error))
            return None
        slots = window.slots if window else 0
        generation = window.generation if window else 0
        return Instance(
            session.instance_id(name),
            who.namespace,
            who.principal,
            session.incarnation,
            description,
            slots,
            generation,
            self._now(),
        )

    async def _check(self, who: Announcer, description: registry_pb2.AgentDescription) -> None:
        granted_agent = who.allows_agent(description.name)
        if not granted_agent:
            raise ApiError(ErrorReason.ERROR_REASON_NOT_GRANTED, what=f"agent {description.name}")
        decision_id = ""
        verified = await self._registry.verified.holds(who.namespace, description)
        for capability in description.capabilities:
            granted = who.allows_capability(capability.name)
            request = Request.register(
                who.principal,
                "sidecar",
                who.namespace,
                description.name,
                capability=capability.name,
                granted=granted,
                verified=verified,
            )
            decision = self._policy.decide_batch((request,))[0]
            decision_id = decision.decision_id
            if not granted or not decision.allowed:
                self._audit.record(request, decision)
            if not granted:
                raise ApiError(ErrorReason.ERROR_REASON_NOT_GRANTED, what=f"capability {capability.name}")
            if not decision.allowed:
                raise ApiError(
                    ErrorReason.ERROR_REASON_POLICY_DENIED,
                    action="register",
                    decision_id=decision.decision_id,
                    cause=decision.reason,
                )
        try:
            await self._registry.announce(who.namespace, who.principal, description)
        except Conflict as conflict:
            raise ApiError(
                ErrorReason.ERROR_REASON_CAPABILITY_CONFLICT,
                capability=conflict.capability,
                holder=conflict.holder,
                difference=conflict.difference,
            ) from conflict
        except InvalidSchema as error:
            raise ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause=str(error)) from error
        await self._audit.write(
            Fact(
                "register",
                who.namespace,
                who.principal,
                f"Agent::{who.namespace}/{description.name}",
                decision_id=decision_id,
                policy_epoch=self._policy.epoch,
                details={"capabilities": ",".join(f"{c.name}@{c.version}" for c in description.capabilities)},
            )
        )

    async def receive(self, session: Session, who: Announcer, message: mesh.AttachRequest) -> None:
        """Takes in one message of a sidecar."""
        session.last_seen = self._now()
        if message.HasField("hello"):
            raise ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause="hello came twice")
        for page in message.inventories:
            self._inventory(session, page)
        if message.partials:
            partials.take(session, message.partials, self.host, self._fleet, self._call_partial)
        if message.reports:
            count, put = self.host.shard_count, self.host.put
            reports.take(session, message.reports, count, put, self._fleet.values, self._calls.answered)
        for window in message.windows:
            self._window(session, window)
        for call in message.calls:
            assert_labels(call.input, session.principal) if call.HasField("input") else None
            self._calls.make(session.incarnation, session.source, call)
        for request in message.context_requests:
            self._context.ask(session.incarnation, session.source, request)
        for change in message.agents:
            await self._agent_changed(session, who, change)
        if message.drain:
            for instance in self._instances(session):
                self._fleet.drain(instance.instance_id)

    def policy_changed(self, epoch: int) -> None:
        """Tells every sidecar the policy epoch that is in force from now on."""
        for session in self._sessions.values():
            session.policy_epoch = session.control.policy_epoch = epoch
            session.wake()

    def _take_back(self, session: Session, pending: PendingOffer) -> None:
        """An offer that was permitted under a policy epoch which is over: its sidecar never sees it, its task is placed
        anew, under the policies that are in force."""
        session.unanswered += 1
        attempt_id = decide.attempt_id(pending.run.run_id, pending.task, pending.number)
        failure = Failure(FailureKind.TRANSIENT, "it was not sent: the policies had changed since it was permitted")
        outcome = Outcome(AttemptState.RETURNED, b"", failure)
        self.host.put(pending.shard, i.Report(session, session.source, attempt_id, outcome))

    def _inventory(self, session: Session, page: mesh.ShardInventory) -> None:
        if page.shard not in session.before:
            raise ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause=f"shard {page.shard} was never claimed")
        if page.epoch != session.claimed[page.shard]:
            return  # of an earlier claim: the shard went away and came back
        held = session.held.setdefault(page.shard, set())
        held.update(page.attempt_ids)
        held.update(page.reported_attempt_ids)
        if page.last:
            before = session.before[page.shard]
            del session.held[page.shard]
            session.before[page.shard] = frozenset()
            if before or held:
                self.host.put(page.shard, i.Inventory(session.incarnation, frozenset(held), before))

    def _window(self, session: Session, window: mesh.Window) -> None:
        instance = self._fleet.window(session.instance_id(window.agent), window.generation, window.slots)
        if instance is not None:
            session.control.window_acks.add(
                agent=window.agent, generation=window.generation, in_use=max(0, instance.in_use)
            )
            session.wake()
            self._registry.changed(session.namespace, window.agent)

    async def _agent_changed(self, session: Session, who: Announcer, change: mesh.AgentChange) -> None:
        if change.HasField("present"):
            description = change.present
            known = self._fleet.instance(session.instance_id(description.name))
            window = mesh.Window(slots=known.slots, generation=known.window_generation) if known else None
            instance = await self._admit(session, who, description, window)
            if instance is not None and self._sessions.get(session.incarnation) is session:
                self._attach(session, instance)
        else:
            description = registry_pb2.AgentDescription(name=change.gone)
            self._fleet.detach(session.instance_id(change.gone))
        self._registry.changed(who.namespace, description.name)

    def close(self, session: Session) -> None:
        """A stream is over. Its attempts have the grace to be claimed by the next one."""
        if self._sessions.get(session.incarnation) is not session:
            return
        del self._sessions[session.incarnation]
        self._detach(session)
        self._absent[session.incarnation] = self._now() + _micros(self.settings.reattach_grace)
        log.info("sidecar_detached", sidecar=session.sidecar, namespace=session.namespace)

    def _instances(self, session: Session) -> list[Instance]:
        found = (self._fleet.instance(session.instance_id(agent)) for agent in session.agents)
        return [instance for instance in found if instance is not None]

    def _attach(self, session: Session, instance: Instance) -> None:
        self._fleet.attach(instance)
        session.agents.add(instance.agent)

    def _detach(self, session: Session) -> None:
        for instance in self._instances(session):
            self._fleet.detach(instance.instance_id, away=True)
            self._registry.changed(session.namespace, instance.agent)

    # Time.

    async def run(self) -> None:
        """Looks after streams once a second, and after absences four times as often."""
        ticks = 0
        moment = self._now()
        while True:
            await asyncio.sleep(_TICK)
            before, moment = moment, self._now()
            if abs(gap := moment - before - int(_TICK * 1e6)) > _STALL:
                self.extend(gap)
            for number, until in list(self._adopting.items()):
                shard = self.host.shard(number)
                if not shard.timers_held or (moment >= until and shard.incarnations().isdisjoint(self._arriving)):
                    del self._adopting[number]
                    self.host.release_timers(number)
            for incarnation, until in list(self._absent.items()):
                if moment >= until and incarnation not in self._arriving:
                    del self._absent[incarnation]
                    self._fleet.give_up(incarnation)
                    for shard in self.host.shards:
                        self.host.put(shard.index, i.SidecarGone(incarnation))
            ticks += 1
            if ticks % 4 == 0:
                for session in list(self._sessions.values()):
                    self._look_after(session, moment)

    def extend(self, gap: int) -> None:
        """Moves every deadline of sidecars by the time, in microseconds, that this process did not live through.

        It stood still, or its clock was set: neither says that a sidecar was silent, or away for so long.
        """
        for session in self._sessions.values():
            session.last_seen += gap
            session.since += gap
        self._absent = {incarnation: until + gap for incarnation, until in self._absent.items()}
        self._adopting = {number: until + gap for number, until in self._adopting.items()}

    def _look_after(self, session: Session, moment: int) -> None:
        settings = self.settings
        if moment - session.last_seen > _micros(settings.liveness_timeout):
            cause = f"nothing was heard for {settings.liveness_timeout.total_seconds():g} s"
            session.end(ApiError(ErrorReason.ERROR_REASON_PROTOCOL_VIOLATION, cause=cause))
            return
        if not session.going_away and moment - session.since > _micros(settings.go_away_after):
            self._go_away(session, "connection_age", timedelta(seconds=60))
        for instance in self._instances(session):
            wanted, told = self._fleet.demand(instance), session.demanded.get(instance.agent, 0)
            # One that wants more than it has says so again and again, one that wants less only once.
            if wanted > instance.slots or wanted < told:
                session.demanded[instance.agent] = wanted
                session.control.demands.add(agent=instance.agent, wanted=wanted)
                session.wake()

    def _go_away(self, session: Session, reason: str, grace: timedelta) -> None:
        session.going_away = True
        session.control.go_away.reason = reason
        session.control.go_away.grace.FromTimedelta(grace)
        session.wake()

    def drain(self) -> None:
        """Announces the end of this replica to every sidecar, ends their streams and takes no new ones."""
        self.draining = True
        for session in list(self._sessions.values()):
            self._go_away(session, "shutdown", timedelta())
            session.end(ApiError(ErrorReason.ERROR_REASON_NOT_SERVING, state="stopping"))


def _micros(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)
