"""The loop of a shard on a real store: what it does with the log when the store is full, or the shard cannot be had."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from antiphon.store.v1 import records_pb2 as records
from antiphon_orchestrator import telemetry
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.cluster.membership import Membership
from antiphon_orchestrator.cluster.steward import Steward
from antiphon_orchestrator.engine.decide import Verdict
from antiphon_orchestrator.engine.events import RunPaused, TaskAgreed
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import RunState
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.shards import codec, reading, recovery
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.archiver import Archiver
from antiphon_orchestrator.shards.aside import MOST
from antiphon_orchestrator.shards.host import STUMBLES, Host, NoPlan, RecoveryFailed, Stumbled
from antiphon_orchestrator.shards.log import ShardLog
from antiphon_orchestrator.shards.looking import Looking
from antiphon_orchestrator.shards.shard import Shard
from antiphon_orchestrator.store import Put, SqliteStore, StoreFull, Txn, keys, prefix_end
from shard_rig import POLICY, Rig, instance

from tests.fakes.plans import Node, plan
from tests.harness import eventually

PLAN = plan(Node())
METRICS = telemetry.Metrics()


class FullStore:
    """A store that has no room for appends when it is told so; what is `spare`, and what deletes, goes through. Nor is
    it worth working for while it is not `idle`."""

    def __init__(self, real: SqliteStore) -> None:
        self.real = real
        self.full = False
        self.refused = 0
        self.meanwhile: Callable[[], None] = lambda: None
        """Called once, while the next append is under way."""
        self.idle = asyncio.Event()
        self.idle.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def under_way(self) -> Awaitable[object] | None:
        return None if self.idle.is_set() else self.idle.wait()

    async def commit(self, txn: Txn) -> Any:
        if not txn.spare and any(isinstance(op, Put) for op in txn.ops):
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            if self.full:
                self.refused += 1
                raise StoreFull("full")
        return await self.real.commit(txn)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FullStore]:
    async with SqliteStore(tmp_path / "store.db") as real:
        yield FullStore(real)


async def known(_: object) -> Plan:
    return PLAN


async def unknown(_: object) -> Plan:
    raise NoPlan("this version does not know it")


def host_of(store: FullStore, loader: Callable[[object], Awaitable[Plan]] = known, name: str = "r") -> tuple[Host, Rig]:
    rig = Rig(Fleet(POLICY, SchemaSet(Values())))
    rig.now = time.time_ns() // 1000
    beside = cast(Any, rig)
    host = Host(
        cast(Any, store),
        rig.fleet,
        beside,
        Archiver(cast(Any, None)),
        beside,
        beside,
        loader,
        replica_id=name,
        shard_count=1,
        inbox_limit=100,
        metrics=METRICS,
    )
    return host, rig


@asynccontextmanager
async def owned(host: Host) -> AsyncIterator[Shard]:
    """The shard, for as long as its owner lives; it ends as by a kill. What ends the owner ends who waits for it."""
    async with asyncio.TaskGroup() as group:
        life = group.create_task(host.own(0))
        await eventually(lambda: bool(host.shards))
        yield host.shard(0)
        life.cancel()


async def test_a_replica_whose_lease_has_ended_lets_go_of_what_others_took_when_it_is_back(store: FullStore) -> None:
    """Without waiting for its next look, until which it would speak of what it remembers."""
    host, _ = host_of(store)
    membership = Membership(cast(Any, store), "r", "1.0", 0)
    await membership.join("r:7443", "")
    Steward(host, membership, lambda: None)  # which does not look
    renewing = asyncio.create_task(membership.run())
    try:
        async with owned(host):
            (marker,) = (await store.range(keys.replica("r"))).kvs
            await store.revoke(marker.lease)
            other = ShardLog(cast(Any, store), 0, "other")
            await other.take()
            await eventually(lambda: not host.holds(0))
            assert await other.owned()
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


async def two_runs(host: Host, rig: Rig) -> tuple[Any, Any]:
    """One that goes on, r1, and one that has ended, r2; both are in the log."""
    told: list[object] = []
    for name in ("r1", "r2"):
        host.submit(0, rig.submit(name, PLAN, told.append))
    await eventually(lambda: len(told) == 2)
    host.put(0, i.Cancel("r2", "spiffe://antiphon.internal/ns/demo/client/tester", "enough", told.append))
    await eventually(lambda: len(told) == 3)
    runs = host.shard(0).runs
    assert (runs["r1"].run.state, runs["r2"].run.state) == (RunState.RUNNING, RunState.CANCELLED)
    return runs["r1"].run, runs["r2"].run


@contextmanager
def full(store: FullStore) -> Iterator[None]:
    store.full = True
    try:
        yield
    finally:
        store.full = False


async def test_what_comes_while_a_commit_is_under_way_is_worked_out_as_one_turn(store: FullStore) -> None:
    host, rig = host_of(store)
    told: list[object] = []
    async with owned(host) as shard:
        store.idle.clear()
        for name in ("r1", "r2", "r3"):
            host.submit(0, rig.submit(name, PLAN, told.append))
            await asyncio.sleep(0)
        assert not shard.runs
        store.idle.set()
        await eventually(lambda: len(told) == 3)
    assert [seq async for seq, _ in reading.segments(store.real, 0)] == [1]


async def test_a_run_whose_snapshot_finds_no_room_keeps_what_the_log_has_of_it(store: FullStore) -> None:
    host, rig = host_of(store)
    async with owned(host):
        long, ended = await two_runs(host, rig)
        with full(store):
            # One answer of the archive: r1, which is moved to the head of the log, and r2, which may be forgotten.
            host.put(0, i.Archived({"r1": long.event_seq, "r2": ended.event_seq}))
            await eventually(lambda: store.refused > 2)
    again, _ = host_of(store)
    async with owned(again) as shard:
        assert list(shard.runs) == ["r1"]
        assert [known[0] for known in shard.requests.values()] == ["r1"]


async def test_the_archive_is_given_nothing_of_a_turn_that_is_not_in_the_log(store: FullStore) -> None:
    host, rig = host_of(store)
    async with owned(host):
        long, ended = await two_runs(host, rig)
        host._long_log, rig.fleet.deliver = 1, host._deliver
        committed = long.event_seq
        with full(store):
            rig.fleet.attach(instance())  # r1 is offered to it: an event of a turn that is refused
            await eventually(lambda: store.refused > 0)
            assert long.event_seq > committed
            host.put(0, i.Archived({"r2": ended.event_seq}))
            before = store.refused
            await eventually(lambda: store.refused > before + 2)
            given = [one.first_seq + len(one.records) - 1 for one in host._archiver._pending if one.run.run_id == "r1"]
            assert max(given, default=0) <= committed


async def test_in_a_store_without_room_who_asks_gets_what_is_committed_or_is_told_why(store: FullStore) -> None:
    host, rig = host_of(store)
    told: dict[str, list[Any]] = {name: [] for name in ("left", "touched", "all", "none", "patient")}

    def ask() -> None:
        for name, run_id in (("left", "r2"), ("touched", "r1"), ("none", "r3")):
            host.put(0, i.Read(run_id, lambda run: run.state, told[name].append))
        host.put(0, i.Survey(lambda runs: len(list(runs)), told["all"].append))

    async with owned(host):
        await two_runs(host, rig)
        with full(store):
            rig.fleet.attach(instance())  # r1 is offered to it: an event of a turn that is refused
            await eventually(lambda: store.refused > 0)
            host.put(0, i.Read("r1", lambda run: run.state, told["patient"].append, patient=True))
            ask()
            assert told["left"] == [RunState.CANCELLED] and told["none"] == [None]
            for name in ("touched", "all"):
                assert [type(answer) for answer in told[name]] == [StoreFull]
            assert told["patient"] == []
        await eventually(lambda: told["patient"] == [RunState.RUNNING])
        ask()
        await eventually(lambda: told["touched"][1:] == [RunState.RUNNING] and told["all"][1:] == [2])


async def test_who_asked_just_before_a_store_had_no_room_is_told_as_well(store: FullStore) -> None:
    host, rig = host_of(store)
    told: list[Any] = []
    async with owned(host):
        await two_runs(host, rig)
        with full(store):
            store.meanwhile = lambda: host.put(0, i.Read("r1", lambda run: run.state, told.append))
            rig.fleet.attach(instance())
            await eventually(lambda: [type(answer) for answer in told] == [StoreFull])


async def test_who_asks_during_a_turn_that_is_written_waits_for_it_though_something_else_found_no_room(
    store: FullStore,
) -> None:
    host, rig = host_of(store)
    told: list[Any] = []
    async with owned(host):
        await two_runs(host, rig)
        host._seats[0].log.no_room(StoreFull("a page of audit records"))
        store.meanwhile = lambda: host.put(0, i.Read("r1", lambda run: run.state, told.append))
        rig.fleet.attach(instance())
        await eventually(lambda: told == [RunState.RUNNING])


async def test_a_shard_that_cannot_be_rebuilt_goes_to_a_replica_that_has_not_tried(store: FullStore) -> None:
    host, rig = host_of(store)
    async with owned(host):
        await two_runs(host, rig)
    unable, _ = host_of(store, unknown, "old")
    asked: list[list[str]] = []

    def heir(shard: int, but: Any) -> str:
        asked.append(sorted(but))
        return "new"

    unable.heir = heir
    with pytest.raises(RecoveryFailed):
        await unable.own(0)
    owner = records.ShardOwner.FromString((await store.range(keys.shard_owner(0))).kvs[0].value)
    assert (owner.successor_id, list(owner.unable_ids), asked) == ("new", ["old"], [["old"]])
    able, _ = host_of(store, known, "new")
    async with owned(able):
        owner = records.ShardOwner.FromString((await store.range(keys.shard_owner(0))).kvs[0].value)
        assert (owner.replica_id, list(owner.unable_ids)) == ("new", ["old"]), "nor does it go back"


async def test_the_graphs_of_runs_that_are_archived_need_not_be_there_any_more(store: FullStore) -> None:
    host, rig = host_of(store)
    async with owned(host) as shard:
        told: list[object] = []
        host.submit(0, rig.submit("r1", PLAN, told.append))
        await eventually(lambda: len(told) == 1)
        host.put(0, i.Cancel("r1", "spiffe://antiphon.internal/ns/demo/client/tester", "enough", told.append))
        await eventually(lambda: len(told) == 2)
        log = await store.range(keys.log_prefix(0), prefix_end(keys.log_prefix(0)))
        host.put(0, i.Archived({"r1": shard.runs["r1"].run.event_seq}))
        await eventually(lambda: not shard.runs and not shard.retain)
    # As a process leaves it that ended before it trimmed the log.
    await store.commit(Txn(ops=tuple(Put(kv.key, kv.value) for kv in log.kvs)))
    again, _ = host_of(store, unknown)
    async with owned(again) as other:
        assert not other.runs and len(other.kept) == 1


async def test_between_two_turns_others_have_the_loop(store: FullStore) -> None:
    host, rig = host_of(store)
    times = 0

    async def others() -> None:
        nonlocal times
        times += 1

    host.others = others
    async with owned(host):
        for number in (1, 2):
            told: list[object] = []
            before = times
            host.submit(0, rig.submit(f"r{number}", PLAN, told.append))
            await eventually(lambda told=told: bool(told))
            await eventually(lambda before=before: times > before)  # what was released left just before


TESTER = "spiffe://antiphon.internal/ns/demo/client/tester"


def bug(run_id: str, sink: i.Sink, *, halfway: bool = False) -> i.Steer:
    """What ends a turn: an exception, or an event that cannot be, after one that can."""

    def wish(run: Run, now: int) -> i.Steered:
        if not halfway:
            raise ZeroDivisionError("a bug")
        return i.Steered([RunPaused("me", ""), TaskAgreed(0, 0)], lambda run: run)

    return i.Steer(run_id, TESTER, "pause", "", {}, wish, sink)


async def told_of(host: Host, item: Callable[[i.Sink], i.Input]) -> object:
    told: list[object] = []
    host.put(0, item(told.append))
    await eventually(lambda: bool(told))
    return told[0]


async def stumble(host: Host, item: i.Steer, told: list[object]) -> None:
    """Owns the shard until that ends a turn; whoever asked is told to ask again."""
    life = asyncio.create_task(host.own(0))
    await eventually(lambda: bool(host.shards))
    host.put(0, item)
    with pytest.raises(Stumbled):
        await life
    assert isinstance(told.pop(), i.Moved)


@pytest.mark.proves("a bug in how one run is carried on")
@pytest.mark.parametrize("halfway", [False, True])
async def test_a_run_that_ends_turns_stands_aside_and_the_others_go_on(store: FullStore, halfway: bool) -> None:
    host, rig = host_of(store)
    rig.fleet.deliver = host._deliver
    rig.fleet.attach(instance(slots=2))
    told: list[object] = []
    async with owned(host):
        for name in ("r1", "r2"):
            host.submit(0, rig.submit(name, PLAN, told.append))
        await eventually(lambda: len(told) == len(rig.offers) == 2)
        assert rig.offers == ["r1/t0/0/1", "r2/t0/0/1"]
    told.clear()
    for _ in range(STUMBLES):
        await stumble(host, bug("r1", told.append, halfway=halfway), told)
    async with owned(host) as shard:
        assert host.aside() == 1
        host.put(0, i.Inventory("i", frozenset({"r1/t0/0/1", "r2/t0/0/1"}), shard.live_ids("i")))
        host.put(0, rig.report("r1/t0/0/1"))
        host.put(0, rig.report("r2/t0/0/1"))
        await eventually(lambda: bool(rig.verdicts))  # which leave once what was worked out is in the log
        assert shard.runs["r2"].run.state is RunState.SUCCEEDED
        assert rig.verdicts == [("r2/t0/0/1", Verdict.ACCEPTED)] and rig.unanswered == 1 and rig.cancels == []
        for ask in (lambda sink: i.Cancel("r1", TESTER, "", sink), lambda sink: bug("r1", sink)):
            answer = await told_of(host, ask)
            assert isinstance(answer, i.SetAside) and "traceback" in str(answer)
        seen = await told_of(
            host, lambda sink: i.Read("r1", lambda run: (run.state, run.paused, run.aside != ""), sink)
        )
        assert seen == (RunState.RUNNING, None, True)
        # Its attempt holds no slot: two new runs find both.
        for name in ("r3", "r4"):
            await told_of(host, lambda sink, name=name: rig.submit(name, PLAN, sink))
        await eventually(lambda: len(rig.offers) == 4)
        assert rig.offers[2:] == ["r3/t0/0/1", "r4/t0/0/1"]
    again, _ = host_of(store)
    async with owned(again) as shard:
        await told_of(again, lambda sink: i.Cancel("r1", TESTER, "", sink))
        assert shard.runs["r1"].run.cancel is not None, "the next process carries it on"


@contextmanager
def unreadable(*run_ids: str) -> Iterator[None]:
    """A version that cannot apply what the log has of these runs: it finds out halfway."""

    def halfway(applies: Callable[..., None]) -> Callable[..., None]:
        def fails(run: Run, *what: Any) -> None:
            applies(run, *what)
            if run.run_id in run_ids:
                raise ZeroDivisionError("a bug")

        return fails

    with (
        patch.object(recovery, "apply", halfway(recovery.apply)),
        patch.object(codec, "restore", halfway(codec.restore)),
    ):
        yield


async def log_keys(store: FullStore) -> list[bytes]:
    found = await store.range(keys.log_prefix(0), prefix_end(keys.log_prefix(0)))
    return [kv.key for kv in found.kvs]


@pytest.mark.proves("a bug in how one run is carried on")
@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("moved", [False, True])
async def test_a_run_that_cannot_be_rebuilt_stands_aside_for_whoever_takes_its_shard(
    store: FullStore, snapshot: bool, moved: bool
) -> None:
    host, rig = host_of(store)
    rig.fleet.deliver = host._deliver
    rig.fleet.attach(instance(slots=2))
    told: list[object] = []
    async with owned(host) as shard:
        for name in ("r1", "r2"):
            host.submit(0, rig.submit(name, PLAN, told.append))
        await eventually(lambda: len(told) == len(rig.offers) == 2)
        if snapshot:
            first = shard.pinned["r1"]
            host.put(0, i.Archived({"r1": shard.runs["r1"].run.event_seq}))
            await eventually(lambda: shard.pinned["r1"] > first)
    for name in ("a", "b"):  # each that takes it over
        host, rig = host_of(store, name=name)
        with unreadable("r1"):
            async with owned(host) as shard:
                assert host.aside() == 1
                host.put(0, i.Inventory("i", frozenset({"r1/t0/0/1", "r2/t0/0/1"}), shard.live_ids("i")))
                host.put(0, rig.report("r1/t0/0/1"))
                host.put(0, rig.report("r2/t0/0/1"))
                verdict = Verdict.ACCEPTED if name == "a" else Verdict.DUPLICATE
                await eventually(lambda rig=rig, verdict=verdict: rig.verdicts == [("r2/t0/0/1", verdict)])
                host.put(0, i.SidecarGone("i"))
                assert isinstance(await told_of(host, lambda sink: i.Cancel("r1", TESTER, "", sink)), i.SetAside)
                again = await told_of(host, lambda sink, rig=rig: rig.submit("other", PLAN, sink, request_id="r1"))
                assert isinstance(again, Run) and (again.run_id, again.state) == ("r1", RunState.RUNNING)
                assert "could not be rebuilt" in again.aside
                waits = await told_of(
                    host, lambda sink, rig=rig: rig.submit("other", PLAN, sink, wait=True, request_id="r1")
                )
                assert isinstance(waits, i.SetAside) and (waits.run_id, str(waits)) == ("r1", again.aside)
                seen = await told_of(host, lambda sink: i.Read("r1", lambda run: run.event_seq, sink))
                assert seen == len(shard.runs["r1"].records) + shard.runs["r1"].first_seq - 1
                if moved:
                    # The log is long, and the archive answers: no snapshot is made of what was not read.
                    first, host._long_log = shard.pinned["r1"], 1
                    host.put(0, i.Archived({"r2": shard.runs["r2"].run.event_seq}))
                    await eventually(lambda shard=shard, first=first: shard.pinned["r1"] > first)
                    host.put(0, i.Archived({"r1": shard.runs["r1"].run.event_seq}))
                    await told_of(host, lambda sink, rig=rig: rig.submit("r3", PLAN, sink))
                    await told_of(host, lambda sink, rig=rig: rig.submit("r4", PLAN, sink))
                    assert keys.log(0, first) not in await log_keys(store), "it does not hold the log"
                assert not any(attempt.startswith("r1") for attempt in rig.offers + rig.cancels)
                assert rig.unanswered == 1
        if moved:
            break
    host, rig = host_of(store, name="c")
    async with owned(host) as shard:
        assert host.aside() == 0 and shard.runs["r1"].run.state is RunState.RUNNING
        host.put(0, rig.report("r1/t0/0/1"))
        await eventually(lambda: bool(rig.verdicts))
        assert rig.verdicts == [("r1/t0/0/1", Verdict.ACCEPTED)] and rig.offers == []
        run = shard.runs["r1"].run
        assert (run.state, len(run.tasks[0].attempts)) == (RunState.SUCCEEDED, 1)


async def test_where_no_run_can_be_rebuilt_the_shard_goes_to_whoever_can(store: FullStore) -> None:
    host, rig = host_of(store)
    names = [f"r{number}" for number in range(MOST + 1)]
    told: list[object] = []
    async with owned(host):
        for name in names:
            host.submit(0, rig.submit(name, PLAN, told.append))
            host.put(0, i.Cancel(name, TESTER, "", told.append))
        await eventually(lambda: len(told) == 2 * len(names))
    again, _ = host_of(store)
    with unreadable(*names), pytest.raises(RecoveryFailed, match="runs of 65 families cannot be rebuilt"):
        await again.own(0)


@pytest.mark.proves("a bug in how one run is carried on")
async def test_a_run_that_cannot_be_taken_up_stands_aside_and_no_slot_is_given_back_twice(store: FullStore) -> None:
    host, rig = host_of(store)
    rig.fleet.attach(instance(slots=3))
    async with owned(host):
        for name in ("r0", "r1", "r2"):
            await told_of(host, lambda sink, name=name: rig.submit(name, PLAN, sink))
        await eventually(lambda: len(rig.offers) == 3)
    again, rig = host_of(store)
    rig.fleet.attach(one := instance(slots=3))
    begin = Looking.begin

    def fails(looking: Looking, run: Run, index: int = 0) -> Any:
        if run.run_id == "r1":
            raise ZeroDivisionError("a bug")
        return begin(looking, run, index)

    with patch.object(Looking, "begin", fails):
        for _ in range(STUMBLES):
            with pytest.raises(Stumbled):
                await again.own(0)
            assert one.in_use == 0
        async with owned(again) as shard:
            assert (again.aside(), shard.runs["r1"].run.aside != "", one.in_use) == (1, True, 2)


@pytest.mark.proves("a bug in how one run is carried on")
async def test_a_run_that_cannot_be_let_out_stands_aside_with_what_was_committed(store: FullStore) -> None:
    host, rig = host_of(store)
    rig.fleet.deliver = host._deliver
    told: list[object] = []
    for number in range(STUMBLES):
        life = asyncio.create_task(host.own(0))
        await eventually(lambda: bool(host.shards))
        if number == 0:
            for name in ("r1", "r2"):
                host.submit(0, rig.submit(name, PLAN, told.append))
            await eventually(lambda: len(told) == 2)
        rig.broken = "r1"  # its next offer, of one turn with that of r2
        with pytest.raises(Stumbled):
            if number == 0:
                rig.fleet.attach(instance(slots=2))
            else:
                host.put(0, i.Inventory("i", frozenset(), host.shard(0).live_ids("i")))
            await life
    async with owned(host) as shard:
        assert host.aside() == 1
        host.put(0, i.Inventory("i", frozenset(), shard.live_ids("i")))
        await eventually(lambda: rig.offers[-1:] == ["r2/t0/0/1"])
        host.put(0, rig.report("r2/t0/0/1"))
        await eventually(lambda: rig.verdicts == [("r2/t0/0/1", Verdict.ACCEPTED)])
    again, rig = host_of(store)
    async with owned(again) as shard:
        again.put(0, i.Inventory("i", frozenset(), shard.live_ids("i")))
        await eventually(lambda: rig.offers == ["r1/t0/0/1"])
        again.put(0, rig.report("r1/t0/0/1"))
        await eventually(lambda: shard.runs["r1"].run.state is RunState.SUCCEEDED)


async def test_an_answer_that_cannot_be_made_is_the_trouble_of_who_asked(store: FullStore) -> None:
    host, rig = host_of(store)
    async with owned(host):
        await told_of(host, lambda sink: rig.submit("r1", PLAN, sink))
        answers = [
            await told_of(host, lambda sink: i.Read("r1", lambda run: 1 // 0, sink)),
            await told_of(host, lambda sink: i.Survey(lambda runs: 1 // 0, sink)),
        ]
        assert all(isinstance(answer, i.Unanswered) for answer in answers)
        taken: list[object] = []

        def picky(answer: object) -> None:
            taken.append(answer)
            if isinstance(answer, Run):
                raise ZeroDivisionError("a bug")

        host.submit(0, rig.submit("r2", PLAN, picky, wait=True))
        host.put(0, i.Cancel("r2", TESTER, "", picky))
        await eventually(lambda: len(taken) == 4)
        assert [type(answer) for answer in taken] == [Run, i.Unanswered] * 2
        assert host.aside() == 0 and isinstance(await told_of(host, lambda sink: rig.submit("r3", PLAN, sink)), Run)


class Broken:
    """Evaluates nothing."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError("a bug")


@pytest.mark.proves("a bug in how one run is carried on")
@pytest.mark.parametrize("wait", [False, True])
async def test_a_run_that_cannot_be_begun_is_refused_however_often_it_comes(store: FullStore, wait: bool) -> None:
    host, rig = host_of(store)
    poison = replace(plan(Node(when=True)), evaluator=cast(Any, Broken()))
    for _ in range(2 * STUMBLES):
        life = asyncio.create_task(host.own(0))
        await eventually(lambda: bool(host.shards))
        told: list[object] = []
        host.submit(0, rig.submit("r1", poison, told.append, wait=wait))
        with pytest.raises(Stumbled):
            await life
        (answer,) = told
        assert isinstance(answer, i.SetAside) and "was not begun" in str(answer)
    async with owned(host) as shard:
        assert not shard.runs and isinstance(await told_of(host, lambda sink: rig.submit("r2", PLAN, sink)), Run)


async def test_what_ends_a_turn_at_no_run_ends_the_process(store: FullStore) -> None:
    host, _ = host_of(store)
    life = asyncio.create_task(host.own(0))
    await eventually(lambda: bool(host.shards))
    host.put(0, i.Inventory("i", frozenset({"one", cast(Any, 2)}), frozenset()))  # which cannot be sorted
    with pytest.raises(TypeError):
        await life
