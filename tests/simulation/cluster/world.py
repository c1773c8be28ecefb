"""A whole mesh in one hand: a seed decides how large it is, what is asked of it, and what goes wrong when.

Trouble lasts for a while, then all is well: everything that was stopped goes on, what is missing comes back, and all
runs have to come to their ends. Only then is it judged.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from antiphon.store.v1 import records_pb2 as records
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.archive import Archive
from antiphon_orchestrator.revocations import Revocations, Subject
from antiphon_orchestrator.store import Put, StoreError, Txn, keys
from antiphon_sidecar.errors import Revoked

from tests.simulation.cluster.archive import ArchiveModel
from tests.simulation.cluster.clients import Client
from tests.simulation.cluster.graphs import GRAPHS, REGISTERED, graph_of
from tests.simulation.cluster.history import Fence, History, Violation
from tests.simulation.cluster.judge import IN_FORCE, judge
from tests.simulation.cluster.loop import NOBODY, Process, SimulatedLoop
from tests.simulation.cluster.network import Network, Peer
from tests.simulation.cluster.outside import OUTSIDE
from tests.simulation.cluster.replica import Replica
from tests.simulation.cluster.sidecar import ALL, Sidecar
from tests.simulation.cluster.store import STORE, StoreClient, StoreModel, Weather

CLIENT = "client"

PEACE = 120.0
"""Seconds in which everything has to come to its end when nothing goes wrong any more."""

_SPIFFE = "spiffe://antiphon.internal/ns"


class World:
    """`play` it once. `say` is told what happens, for a trace. `only`: the graphs that are run, empty for all."""

    def __init__(self, seed: int, say: Callable[[str], None] | None = None, only: Sequence[str] = ()) -> None:
        self.rng = rng = random.Random(seed)
        self.loop = SimulatedLoop()
        OUTSIDE.begin(self.loop, rng)
        self._say = say
        self._graphs = [graph_of(name) for name in only] or GRAPHS
        self.network = Network(self.loop, rng)
        self.history = History(self._broken)
        self.model = StoreModel(unwatched=keys.UNWATCHED)
        registered = records.GraphRecord(graph=REGISTERED).SerializeToString()
        self.model.commit(Txn(ops=(Put(keys.graph("demo", REGISTERED.name, REGISTERED.version), registered),)))
        Fence(self.model, self.history)
        self.weather = Weather()
        self.archive = ArchiveModel(rng)
        self.shards = rng.choice([1, 2, 3, 4])
        self.addresses = [f"h{n}:1" for n in range(1, rng.choice([1, 2, 2, 3, 3]) + 1)]
        self.replicas: dict[str, tuple[Process, Replica, asyncio.Task[Any]]] = {}
        self.sidecars: dict[str, Sidecar] = {}
        self.incarnations: dict[str, Sidecar] = {}
        self.disturbed: dict[str, bool] = {}
        """By sidecar: whether it was away, or could not be reached, for longer than a connection takes."""
        self._harmless = (self._restart_sidecar, self._doom_sidecar, self._agent_dies)
        self.errands: list[asyncio.Task[Any]] = []
        self._clients = Process(self.loop, CLIENT, CLIENT)
        who = Peer(self._clients, f"{_SPIFFE}/demo/client/tester", ALL, 0)
        self._client = Client(self.network, who, self.addresses, self.history)
        self.calm = False
        self.fair = False
        """Whether nothing goes wrong but that sidecars and agents die."""
        self._born = 0
        self._to_revoke: set[int] = set()
        """Certificates that somebody wanted to be revoked."""
        self._coming_back: set[str] = set()
        """Sidecars that have ended, as their certificates are revoked, and are to be started again."""
        self._trouble = rng.choice([3.0, 6.0, 10.0, 18.0])

    def play(self) -> None:
        """Raises what was found to be wrong."""
        with tempfile.TemporaryDirectory() as disk, self.loop:
            self._disk = Path(disk)
            try:
                self._play()
            finally:
                for sidecar in self.sidecars.values():
                    sidecar.kill()

    def _play(self) -> None:
        for address in self.addresses:
            join = 0.0 if address == self.addresses[0] else self.rng.choice([0.0, 0.0, 0.3, 5.0])
            self.loop.call_later(join, self._start, address, context=NOBODY)
        for number in range(self.rng.choice([1, 2, 2])):
            self._attach(f"s{number}")
        self._ask(self.rng.choice([2, 4, 6]), self._trouble * self.rng.choice([0.2, 0.5, 1.0]))
        for when, trouble in self._troubles():
            self.loop.advance(when)
            if not self.calm:
                trouble()
        self.loop.advance(self._trouble)
        self._calm_down()
        until = self.loop.now + PEACE
        self.loop.advance(until, self._settled)
        self.loop.advance(self.loop.now + (IN_FORCE if self._to_revoke else 1.0))
        self.loop.advance(until + IN_FORCE, self._settled)  # revoked sidecars may have ended, and come back
        if not self._settled():
            raise Violation(f"it does not come to rest: {self._left()}")
        for errand in self.errands:
            errand.result()
        judge(self)
        if self.loop.failures:
            raise self.loop.failures[0]

    def _broken(self, violation: Violation) -> None:
        self.loop.failures.append(violation)

    def said(self, what: str) -> None:
        """For the trace."""
        if self._say is not None:
            self._say(f"{self.loop.now:9.4f} {what}")

    # Who is there.

    def running(self) -> list[Replica]:
        return [replica for _, replica, _ in self.replicas.values()]

    def _start(self, address: str) -> None:
        if address in self.replicas:
            return
        self._born += 1
        host, name = address.partition(":")[0], f"r{self._born}"
        process = Process(self.loop, name, host)
        who = Peer(process, f"{_SPIFFE}/system/orchestrator/{name}", ALL, self._born)
        store = StoreClient(self.model, self.network, process, self.weather)
        archive = cast(Archive, self.archive)
        replica = Replica(
            name,
            address,
            process,
            self.network,
            store,
            archive,
            who,
            self.shards,
            self.history,
            self.loop.failures.append,
        )
        task = process.spawn(replica.run())
        self.replicas[address] = process, replica, task
        task.add_done_callback(lambda task: self._ended(address, process, task), context=NOBODY)
        self.said(f"{name} starts at {address}")

    def _ended(self, address: str, process: Process, task: asyncio.Task[Any]) -> None:
        """A replica has ended by itself: it was told to leave, or could not go on without its store."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not _all_of(StoreError, failure):
            self.loop.failures.append(failure)
        self.said(f"{process.name} has ended: {failure!r}")
        self._bury(address, process)

    def _bury(self, address: str, process: Process) -> None:
        process.kill()
        self.network.reset(process)
        found = self.replicas.get(address)
        if found is not None and found[0] is process:
            del self.replicas[address]
            delay = self.rng.choice([0.05, 0.5, 3.0, 8.0])
            self.loop.call_later(delay, self._start, address, context=NOBODY)

    def _attach(self, name: str) -> None:
        self._born += 1
        process = Process(self.loop, f"{name}.{self._born}", name)
        who = Peer(process, f"{_SPIFFE}/demo/sidecar/{name}", ALL, self._born)
        # A sidecar may know one replica to begin with, and learns of the others.
        seeds = self.rng.sample(self.addresses, self.rng.randint(1, len(self.addresses)))
        agents = self.rng.choice([("worker",), ("worker", "second")])
        concurrency = self.rng.choice([1, 1, 2, 4])
        sidecar = Sidecar(
            name, process, self.network, who, seeds, self.history, concurrency, agents, self._disk
        )  # fmt: skip
        self.sidecars[name] = sidecar
        self.disturbed.setdefault(name, False)
        task = process.spawn(sidecar.run())
        task.add_done_callback(lambda task: self._sidecar_ended(sidecar, task), context=NOBODY)
        self.loop.call_later(0.0, self._know, sidecar, context=NOBODY)

    def _know(self, sidecar: Sidecar) -> None:
        assert sidecar.node is not None
        self.incarnations[sidecar.node.incarnation] = sidecar

    def _sidecar_ended(self, sidecar: Sidecar, task: asyncio.Task[Any]) -> None:
        """One whose certificate is revoked ends, and is started again with a new one."""
        failure = task.exception() or RuntimeError("a sidecar ended by itself")
        if sidecar.serial in self._to_revoke and _all_of(Revoked, failure):
            self.said(f"{sidecar.process.name} has ended: its certificate is revoked")
            self._coming_back.add(sidecar.name)
            self._after(self.rng.choice([0.0, 1.0, 12.0]), lambda: self._kill_sidecar(sidecar))
        else:
            self.loop.failures.append(failure)

    def _ask(self, count: int, within: float) -> None:
        """So many clients come with an errand, within so many seconds."""
        rng = self.rng
        for _ in range(count):
            errand = self._client.errand(len(self.errands), rng.choice(self._graphs), rng.random() * within)
            self.errands.append(self._clients.spawn(errand))

    # Trouble.

    def _troubles(self) -> Iterator[tuple[float, Callable[[], None]]]:
        rng = self.rng
        self.weather.lost = rng.choice([0, 0, 0.02, 0.1])
        self.weather.unanswered = rng.choice([0, 0, 0.02, 0.1])
        self.weather.late = rng.choice([0, 0, 0.02, 0.1])
        self.weather.slow = rng.choice([0.002, 0.004, 0.05])
        self.network.slow = rng.choice([0.001, 0.003, 0.05])
        kinds: list[tuple[Callable[[], None], float]] = [
            (self._kill, rng.choice([0, 1, 3])),
            (self._leave, rng.choice([0, 1])),
            (self._stop, rng.choice([0, 1, 3])),
            (self._choke, rng.choice([0, 2, 5])),
            (self._isolate, rng.choice([0, 1, 2])),
            (self._cut_store, rng.choice([0, 1])),
            (self._cut_replicas, rng.choice([0, 1])),
            (self._cut_sidecar, rng.choice([0, 0, 1])),
            (self._cut_client, rng.choice([0, 1])),
            (self.network.break_some, rng.choice([0, 1, 3])),
            (self._restart_sidecar, rng.choice([0, 0, 1])),
            (self._doom_sidecar, rng.choice([0, 0, 2])),
            (self._stop_sidecar, rng.choice([0, 0, 1])),
            (self._agent_dies, rng.choice([0, 1])),
            (self._revoke, rng.choice([0, 0, 1])),
            (self._clock_jumps, rng.choice([0, 0.5])),
            (self._lose_archive, rng.choice([0, 0.5])),
            (self._compact, 0.3),
        ]
        if rng.random() < 0.15:
            # Nothing but this, so that what a sidecar leaves on its disk has to count.
            kinds = [(trouble, 1) for trouble in self._harmless]
            self.weather.lost = self.weather.unanswered = self.weather.late = 0.0
            self.weather.slow = self.network.slow = 0.003
            self.fair = True
        whichever, weights = zip(*kinds, strict=True)
        mean = rng.choice([0.4, 1.0, 2.5])
        when = 0.5
        while (when := when + rng.expovariate(1 / mean)) < self._trouble:
            yield when, rng.choices(whichever, weights)[0]

    def _one(self) -> tuple[str, Process, Replica, asyncio.Task[Any]] | None:
        """A replica, if there is one."""
        if not self.replicas:
            return None
        address = self.rng.choice(list(self.replicas))
        return address, *self.replicas[address]

    def _after(self, seconds: float, undo: Callable[[], None]) -> None:
        self.loop.call_later(seconds, undo, context=NOBODY)

    def _kill(self) -> None:
        if (found := self._one()) is not None:
            self.said(f"{found[1].name} is killed")
            self._bury(found[0], found[1])

    def _leave(self) -> None:
        if (found := self._one()) is not None and not found[1].stopped:
            self.said(f"{found[1].name} is told to leave")
            found[1].call(found[3].cancel)

    def _stop(self) -> None:
        if (found := self._one()) is not None and not found[1].stopped:
            process, seconds = found[1], self.rng.choice([0.3, 2.0, 7.0, 12.0])
            self.said(f"{process.name} is stopped for {seconds} s")
            process.stop()
            for sidecar in self.sidecars.values():
                if self._knows_none_that_runs(sidecar):
                    self.disturbed[sidecar.name] = True
            self._after(seconds, lambda: self._go_on(process))

    def _knows_none_that_runs(self, sidecar: Sidecar) -> bool:
        """Whether a replica may take its shards from which it cannot be told: one that it has not learned of, while
        those that it has are stopped."""
        known = sidecar.known()
        there = [self.replicas[address][0] for address in known if address in self.replicas]
        return len(known) < len(self.addresses) and all(process.stopped for process in there)

    def _go_on(self, process: Process) -> None:
        if process.alive and process.stopped:
            self.said(f"{process.name} goes on")
            process.go_on()

    def _choke(self) -> None:
        """A replica is stopped with offers in its buffers, which arrive when others own its shards."""
        if (found := self._one()) is None or found[1].stopped:
            return
        process, seconds = found[1], self.rng.choice([6.5, 8.0])
        self.said(f"nothing of {process.name} reaches a sidecar, and then it is stopped")
        self._cut_sidecars(process.host, seconds, both=False)
        self._ask(2, 0.5)
        self._after(self.rng.choice([0.1, 0.5, 1.5]), lambda: None if self.calm else process.stop())
        self._after(seconds + self.rng.choice([-0.5, 0.5]), lambda: self._go_on(process))

    def _isolate(self) -> None:
        """A host loses its sidecars, then the store and the other replicas, and finds all of them again."""
        host, seconds = self._host(), self.rng.choice([2.0, 7.0, 9.0])
        self.said(f"{host} is cut off for {seconds} s")
        self._cut_sidecars(host, seconds, both=True)
        others = [STORE, *(address.partition(":")[0] for address in self.addresses)]
        self._after(self.rng.choice([0.0, 0.5, 1.5]), lambda: self._cut_ways(host, others, seconds))

    def _cut_sidecars(self, host: str, seconds: float, *, both: bool) -> None:
        for name in self.sidecars:
            self.disturbed[name] = True
        self._cut_ways(host, list(self.sidecars), seconds, both=both)

    def _cut_ways(self, host: str, others: list[str], seconds: float, *, both: bool = True) -> None:
        for other in others:
            for way in ((host, other), (other, host)) if both else ((host, other),):
                if not self.calm and other != host:
                    self.network.cut(*way)
                    self._after(seconds, lambda way=way: self.network.repair(*way))  # type: ignore[misc]

    def _cut(self, one: str, other: str) -> None:
        seconds = self.rng.choice([0.5, 3.0, 9.0])
        ways = self.rng.choice([((one, other), (other, one)), ((one, other),), ((other, one),)])
        self.said(f"cut for {seconds} s: {ways}")
        for way in ways:
            self.network.cut(*way)
            self._after(seconds, lambda way=way: self.network.repair(*way))  # type: ignore[misc]

    def _host(self) -> str:
        return self.rng.choice(self.addresses).partition(":")[0]

    def _cut_store(self) -> None:
        self._cut(self._host(), STORE)

    def _cut_replicas(self) -> None:
        one, other = self._host(), self._host()
        if one != other:
            self._cut(one, other)

    def _cut_sidecar(self) -> None:
        name = self.rng.choice(list(self.sidecars))
        self.disturbed[name] = True
        self._cut(name, self._host())

    def _cut_client(self) -> None:
        self._cut(CLIENT, self._host())

    def _restart_sidecar(self) -> None:
        name = self.rng.choice(list(self.sidecars))
        self.said(f"{self.sidecars[name].process.name} is killed")
        self._kill_sidecar(self.sidecars[name])

    def _kill_sidecar(self, sidecar: Sidecar) -> None:
        if self.sidecars[sidecar.name] is not sidecar:
            return
        self._coming_back.discard(sidecar.name)
        self.disturbed[sidecar.name] = True
        self.history.left.append((sidecar.name, sidecar.kill()))
        self.network.reset(sidecar.process)
        self._attach(sidecar.name)

    def _doom_sidecar(self) -> None:
        """It is killed with the next answer of its agents on its disk, of which nobody has heard."""
        sidecar = self.rng.choice(list(self.sidecars.values()))
        self.said(f"{sidecar.process.name} is doomed")
        sidecar.doomed = lambda: self._kill_sidecar(sidecar)

    def _stop_sidecar(self) -> None:
        name = self.rng.choice(list(self.sidecars))
        process, seconds = self.sidecars[name].process, self.rng.choice([0.5, 4.0, 12.0])
        if not process.stopped:
            self.said(f"{process.name} is stopped for {seconds} s")
            self.disturbed[name] = True
            process.stop()
            self._after(seconds, lambda: self._go_on(process))

    def _agent_dies(self) -> None:
        sidecar = self.rng.choice(list(self.sidecars.values()))
        self.said(f"the agent of {sidecar.name} dies")
        sidecar.process.call(sidecar.agent_dies)

    def _revoke(self) -> None:
        """Somebody revokes the certificate of a sidecar."""
        if (found := self._one()) is None or (revocations := found[2].revocations) is None:
            return
        sidecar = self.rng.choice(list(self.sidecars.values()))
        self.said(f"{found[1].name} is asked to revoke the certificate of {sidecar.process.name}")
        self.disturbed[sidecar.name] = True
        self._to_revoke.add(sidecar.serial)
        found[1].spawn(self._revoked(revocations, sidecar.serial))

    async def _revoked(self, revocations: Revocations, serial: int) -> None:
        try:
            await revocations.revoke(Subject("demo", serial=f"{serial:x}"), "trouble", "tester")
        except (ApiError, StoreError):
            return  # nobody was told that it is
        self.history.revoked[serial] = self.loop.now

    def _clock_jumps(self) -> None:
        if (found := self._one()) is not None:
            # No further off than a minute: what waits until its clock says so is to end before PEACE is over.
            jump = self.rng.choice([-60.0, -2.0, 2.0, 60.0])
            found[1].clock_offset = max(-60.0, min(60.0, found[1].clock_offset + jump))
            self.said(f"the clock of {found[1].name} is off by {found[1].clock_offset}")

    def _lose_archive(self) -> None:
        self.archive.away = True
        self._after(self.rng.choice([1.0, 5.0]), self._find_archive)

    def _find_archive(self) -> None:
        self.archive.away = False

    def _compact(self) -> None:
        self.model.compact(self.model.revision - self.rng.choice([0, 0, 20]))

    # Peace.

    def _calm_down(self) -> None:
        self.said("all is well from now on")
        self.calm = True
        self.weather.lost = self.weather.unanswered = self.weather.late = 0.0
        self.weather.slow = self.network.slow = 0.002
        self.archive.away = False
        self.network.repair_all()
        for address in self.addresses:
            self._start(address)
        for process, _, _ in self.replicas.values():
            self._go_on(process)
        for sidecar in self.sidecars.values():
            self._go_on(sidecar.process)
            sidecar.recover()

    def _settled(self) -> bool:
        if self._coming_back or not all(errand.done() for errand in self.errands):
            return False
        replicas = self.running()
        if len(replicas) < len(self.addresses) or any(replica.host is None for replica in replicas):
            return False
        hosts = [replica.host for replica in replicas if replica.host is not None]
        if sum(len(host.shards) for host in hosts) != self.shards:
            return False
        if any(shard.runs or shard.inbox for host in hosts for shard in host.shards):
            return False
        nodes = [sidecar.node for sidecar in self.sidecars.values()]
        return all(node is not None and not node.inflight.held for node in nodes)

    def _left(self) -> str:
        open_errands = [number for number, errand in enumerate(self.errands) if not errand.done()]
        shards = [
            (replica.replica_id, shard.index, shard.epoch, list(shard.runs), len(shard.inbox))
            for replica in self.running()
            if replica.host is not None
            for shard in replica.host.shards
        ]
        held = [
            (attempt.attempt_id, attempt.state.name)
            for sidecar in self.sidecars.values()
            if sidecar.node is not None
            for attempt in sidecar.node.inflight.held.values()
        ]
        return f"errands {open_errands}, shards {shards}, held {held}"


def _all_of(kind: type[BaseException], error: BaseException) -> bool:
    """Whether nothing else is the reason."""
    if isinstance(error, BaseExceptionGroup):
        return all(_all_of(kind, each) for each in error.exceptions)
    return isinstance(error, kind)
