"""New runs that wait for a busy shard: behind what is there, among each other by weight, and bounded by namespace."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from antiphon_orchestrator import telemetry
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.placement.fleet import Fleet, Schedule
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.archiver import Archiver
from antiphon_orchestrator.shards.audited import AuditPages
from antiphon_orchestrator.shards.host import Host, _Seat
from antiphon_orchestrator.shards.leaving import abandon
from antiphon_orchestrator.shards.log import ShardLog
from antiphon_orchestrator.shards.shard import Shard
from antiphon_orchestrator.shards.turn import FIRST_OF_BACKLOG, MAX_INPUTS
from shard_rig import POLICY, Rig, instance

from tests.fakes.plans import Node, plan

LIMIT = 100
METRICS = telemetry.Metrics()


class Seated:
    """A host with one shard in it that nobody drives."""

    def __init__(self, limit: int = LIMIT, weights: tuple[str, ...] = ()) -> None:
        self.rig = Rig(Fleet(POLICY, SchemaSet(Values()), lambda: self.rig.now, Schedule(weights=weights)))
        rig = cast(Any, self.rig)
        self.host = Host(
            rig,
            self.rig.fleet,
            rig,
            Archiver(rig),
            rig,
            rig,
            rig,
            replica_id="r",
            shard_count=1,
            inbox_limit=limit,
            metrics=METRICS,
        )
        log = ShardLog(rig, 0, "r")
        self.seat = _Seat(self.rig.shard, log, AuditPages(rig, log, "chain", "r"))
        self.host._seats[0] = self.seat

    @property
    def shard(self) -> Shard:
        return self.rig.shard

    def submit(self, name: str, namespace: str = "demo", sink: i.Sink = lambda answer: None, **how: Any) -> i.Submit:
        principal = f"spiffe://antiphon.internal/ns/{namespace}/client/tester"
        item = self.rig.submit(name, plan(Node()), sink, principal=principal, **how)
        self.host.submit(0, item)
        return item

    def begun(self) -> list[str]:
        return list(self.shard.runs)


def test_a_shard_that_is_not_busy_takes_new_runs_as_they_come() -> None:
    seated = Seated()
    for number in range(5):
        seated.submit(f"r{number}", priority=number)
    assert len(seated.shard.inbox) == 5 and not seated.shard.backlog.size
    seated.rig.tell()
    assert seated.begun() == [f"r{number}" for number in range(5)]


def busy(seated: Seated, reads: int = MAX_INPUTS) -> None:
    """So much waits in the inbox that a turn has enough of it."""
    for _ in range(reads):
        seated.shard.inbox.append(i.Read("nothing", lambda run: None, lambda answer: None))


def test_new_runs_wait_for_a_busy_shard_and_are_taken_by_weight_then_priority() -> None:
    seated = Seated(weights=("big=3",))
    busy(seated, MAX_INPUTS)
    for number in range(100):
        seated.submit(f"s{number:02}", "small", priority=0)
        seated.submit(f"b{number:02}", "big", priority=1 if number == 99 else 0)
    seated.rig.turn()
    first = seated.begun()
    assert len(first) == FIRST_OF_BACKLOG, "a few, so that none waits for ever"
    assert sum(name[0] == "b" for name in first) == 12
    assert next(name for name in first if name[0] == "b") == "b99"
    seated.rig.tell()
    assert len(seated.begun()) == 200


def test_what_comes_of_runs_that_are_there_is_never_refused_and_new_runs_are_by_namespace() -> None:
    seated = Seated()
    for number in range(300):
        if seated.host.full(0, "loud"):
            break
        seated.submit(f"l{number}", "loud")
    assert number <= 2 * LIMIT
    assert seated.host.full(0, "loud") and not seated.host.full(0, "quiet")
    for number in range(300):
        if seated.host.full(0, "quiet"):
            break
        seated.submit(f"q{number}", "quiet")
    assert number >= LIMIT // 2 - 1, "half of the places are its own"
    seated.rig.fleet.attach(instance(slots=1))
    seated.rig.tell()
    assert not seated.host.full(0, "loud")


async def test_a_stream_waits_until_its_own_namespace_has_room() -> None:
    seated = Seated(limit=1)
    seated.submit("r0")
    seated.submit("r1")
    waiting = asyncio.create_task(seated.host.room(0, "demo"))
    await asyncio.sleep(0)
    assert not waiting.done()
    seated.rig.tell()
    seated.seat.room.set()
    async with asyncio.timeout(5):
        await waiting


def test_a_caller_who_leaves_before_its_run_has_begun_is_not_waited_with() -> None:
    seated = Seated()
    busy(seated)
    for number in range(FIRST_OF_BACKLOG):
        seated.submit(f"urgent{number}", priority=9)
    told: list[Any] = []
    item = seated.submit("r0", sink=told.append, wait=True)
    seated.shard.inbox.appendleft(i.Leave("", item.key, item.sink))
    seated.rig.turn()
    assert "r0" not in seated.begun()
    seated.rig.tell()
    assert "r0" in seated.begun() and not seated.shard.runs["r0"].waiters


def test_a_shard_that_goes_away_turns_its_backlog_away() -> None:
    seated = Seated()
    busy(seated)
    told: list[Any] = []
    for number in range(3):
        seated.submit(f"r{number}", sink=told.append)
    abandon(seated.shard, seated.rig.fleet, None)
    assert [type(answer) for answer in told] == [i.Moved] * 3
