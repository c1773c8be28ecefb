"""What nobody watches and comes while a transaction is under way goes out as one; each is told what became of it."""

from __future__ import annotations

import asyncio

import pytest
from antiphon_orchestrator.store import CommitResult, Compare, Delete, Put, StoreFull, StoreUnavailable, Target, Txn
from antiphon_orchestrator.store.etcd import grouping
from antiphon_orchestrator.store.etcd.grouping import MOST_BYTES, Groups
from antiphon_orchestrator.store.port import UP_TO_LAST


class Etcd:
    """Takes transactions one after the other, when the test says so. A key that is there cannot be made again."""

    def __init__(self) -> None:
        self.sent: list[Txn] = []
        self.there: set[bytes] = set()
        self._answers: list[asyncio.Future[None]] = []
        self.groups = Groups(self._send, (b"log/", b"kept/"))

    async def _send(self, txn: Txn) -> CommitResult:
        self.sent.append(txn)
        answer = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        await answer
        if any(compare.key in self.there for compare in txn.compares):
            return CommitResult(False, 1, dict.fromkeys(txn.otherwise_get))
        self.there |= {op.key for op in txn.ops if isinstance(op, Put)}
        return CommitResult(True, 1, {})

    def append(self, shard: int, seq: int, value: bytes = b"") -> asyncio.Task[CommitResult]:
        key = b"log/%d/%d" % (shard, seq)
        txn = Txn((Compare(key, Target.CREATE_REVISION, 0),), (Put(key, value),), (key,))
        return asyncio.create_task(self.groups.commit(txn))

    async def behind_one(self, *shards: int) -> list[asyncio.Task[CommitResult]]:
        """One that is under way, of shard 0, and those of others that came meanwhile."""
        first = self.append(0, 1)
        await self.settled()
        return [first, *(self.append(shard, 1) for shard in shards)]

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def answer(self, error: Exception | None = None) -> None:
        """Answers all that was sent, then lets everybody go on."""
        answers, self._answers = self._answers, []
        for one in answers:
            if one.cancelled():
                continue
            if error is None:
                one.set_result(None)
            else:
                one.set_exception(error)
        await self.settled()

    @property
    def puts(self) -> list[list[bytes]]:
        return [[op.key for op in txn.ops] for txn in self.sent]


async def test_those_that_come_in_one_pass_of_the_loop_go_together_and_those_that_come_meanwhile_after_them() -> None:
    etcd = Etcd()
    tasks = [etcd.append(shard, 1) for shard in (0, 1)]
    await etcd.settled()
    tasks += [etcd.append(shard, 1) for shard in (2, 3, 4)]
    await etcd.settled()
    assert etcd.puts == [[b"log/0/1", b"log/1/1"]]
    await etcd.answer()
    assert etcd.puts[1:] == [[b"log/2/1", b"log/3/1", b"log/4/1"]]
    await etcd.answer()
    assert all([(await one).succeeded for one in tasks])


async def test_who_works_only_when_it_would_leave_at_once_waits_for_what_is_under_way() -> None:
    etcd = Etcd()
    assert etcd.groups.under_way() is None
    (first,) = await etcd.behind_one()
    waits = etcd.groups.under_way()
    assert waits is not None
    waiting = asyncio.ensure_future(waits)
    await etcd.settled()
    assert not waiting.done()
    await etcd.answer()
    await waiting
    assert (await first).succeeded
    assert etcd.groups.under_way() is None


async def test_a_slow_store_is_waited_for_only_so_long() -> None:
    etcd = Etcd()
    (first,) = await etcd.behind_one()
    waits = etcd.groups.under_way()
    assert waits is not None
    async with asyncio.timeout(10):
        await waits
    assert not first.done()
    assert etcd.groups.under_way() is None
    await etcd.answer()
    assert (await first).succeeded


async def test_what_goes_together_is_worked_out_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MOST_GATHERING", -1.0)
    etcd = Etcd()
    first = etcd.append(0, 1)
    await asyncio.sleep(0)
    assert not etcd.sent
    waits = etcd.groups.under_way()
    assert waits is not None
    waiting = asyncio.ensure_future(waits)
    await etcd.settled()
    await etcd.answer()
    await waiting
    assert (await first).succeeded


async def test_where_one_of_them_is_fenced_off_the_others_are_committed_and_it_is_told() -> None:
    etcd = Etcd()
    etcd.there.add(b"log/2/1")
    tasks = [etcd.append(shard, 1) for shard in (0, 1, 2, 3)]
    for _ in range(4):
        await etcd.settled()
        await etcd.answer()
    assert [(await one).succeeded for one in tasks] == [True, True, False, True]
    assert (await tasks[2]).observed == {b"log/2/1": None}


async def test_an_unclear_outcome_is_everybodys() -> None:
    etcd = Etcd()
    tasks = await etcd.behind_one(1, 2)
    await etcd.settled()
    await etcd.answer()
    await etcd.answer(StoreUnavailable("no answer"))
    assert (await tasks[0]).succeeded
    for one in tasks[1:]:
        with pytest.raises(StoreUnavailable):
            await one
    again = etcd.append(1, 1)
    await etcd.settled()
    await etcd.answer()
    assert (await again).succeeded, "what follows is not held up"


async def test_who_gives_up_leaves_the_others_an_unclear_outcome_and_holds_up_nobody() -> None:
    etcd = Etcd()
    tasks = await etcd.behind_one(1, 2)
    await etcd.settled()
    await etcd.answer()
    tasks[1].cancel()  # the one that sent
    await etcd.settled()
    with pytest.raises(StoreUnavailable):
        await tasks[2]
    last = etcd.append(3, 1)
    await etcd.settled()
    await etcd.answer()
    assert (await last).succeeded


async def test_the_turn_of_one_that_gave_up_passes_on() -> None:
    etcd = Etcd()
    tasks = await etcd.behind_one(1)
    await etcd.settled()
    etcd._answers.pop().set_result(None)
    # Told to send in this very moment, and cancelled before it could.
    while not tasks[0].done():  # noqa: ASYNC110 - it is the very turn of the loop that matters
        await asyncio.sleep(0)
    tasks[1].cancel()
    await etcd.settled()
    last = etcd.append(2, 1)
    await etcd.settled()
    await etcd.answer()
    assert (await last).succeeded


async def test_the_limits_of_a_transaction_hold_for_the_whole() -> None:
    etcd = Etcd()
    first = etcd.append(0, 1)
    await etcd.settled()
    large = [etcd.append(shard, 1, b"x" * (MOST_BYTES // 2)) for shard in (1, 2, 3)]
    small = [etcd.append(4, seq) for seq in range(200)]
    for _ in range(6):
        await etcd.settled()
        await etcd.answer()
    assert all([(await one).succeeded for one in (first, *large, *small)])
    assert max(map(len, etcd.puts)) == 128
    assert max(sum(len(op.value) for op in txn.ops if isinstance(op, Put)) for txn in etcd.sent) <= MOST_BYTES


async def test_two_puts_of_one_key_never_go_together() -> None:
    etcd = Etcd()
    tasks = [etcd.append(0, 1), etcd.append(1, 1), etcd.append(1, 1)]
    for _ in range(4):
        await etcd.settled()
        await etcd.answer()
    assert sorted([(await one).succeeded for one in tasks]) == [False, True, True]
    assert all(len(keys) == len(set(keys)) for keys in etcd.puts)


@pytest.mark.parametrize(
    "op",
    [
        Put(b"agent/a", b""),
        Put(b"log/1/1", b"", lease=7),
        Delete(b"agent/a"),
        Delete(b"log/1/1", b"m"),
        Delete(b"log/1/1", UP_TO_LAST),
    ],
    ids=repr,
)
async def test_what_is_watched_or_leased_goes_alone(op: Put | Delete) -> None:
    etcd = Etcd()
    first = etcd.append(0, 1)
    await etcd.settled()
    other = asyncio.create_task(etcd.groups.commit(Txn((), (op,))))
    await etcd.settled()
    assert len(etcd.sent) == 2
    await etcd.answer()
    assert (await first).succeeded and (await other).succeeded


OWNED = Compare(b"shard/1/owner", Target.VALUE, b"me")


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (Txn((OWNED,), (Put(b"log/1/2", b""),)), Txn((OWNED,), (Delete(b"log/1/0", b"log/1/2"),)), True),
        (Txn((OWNED,), (Put(b"log/1/1", b""),)), Txn((OWNED,), (Delete(b"log/1/0", b"log/1/2"),)), False),
        (Txn((OWNED,), (Delete(b"log/1/0", b"log/1/2"),)), Txn((OWNED,), (Put(b"log/1/1", b""),)), False),
        (Txn((), (Delete(b"log/1/0", b"log/1/2"),)), Txn((), (Delete(b"log/1/1", b"log/1/3"),)), True),
        (
            Txn((), (Put(b"kept/1", b""),)),
            Txn((Compare(b"kept/1", Target.MOD_REVISION, 4),), (Put(b"kept/2", b""),)),
            False,
        ),
        (
            Txn((Compare(b"kept/1", Target.MOD_REVISION, 4),), (Put(b"kept/2", b""),)),
            Txn((), (Put(b"kept/1", b""),)),
            False,
        ),
        (
            Txn((Compare(b"kept/1", Target.MOD_REVISION, 4),), (Put(b"kept/2", b""),)),
            Txn((), (Delete(b"kept/1"),)),
            False,
        ),
        (
            Txn((), (Delete(b"kept/1"),)),
            Txn((Compare(b"kept/1", Target.MOD_REVISION, 4),), (Put(b"kept/2", b""),)),
            False,
        ),
    ],
)
async def test_those_of_which_one_changes_what_another_names_do_not_go_together(
    one: Txn, other: Txn, together: bool
) -> None:
    etcd = Etcd()
    first = etcd.append(0, 1)
    await etcd.settled()
    tasks = [asyncio.create_task(etcd.groups.commit(txn)) for txn in (one, other)]
    for _ in range(3):
        await etcd.settled()
        await etcd.answer()
    assert [len(txn.ops) for txn in etcd.sent] == ([1, 2] if together else [1, 1, 1])
    await asyncio.gather(first, *tasks)


async def test_in_a_full_store_deletions_are_not_held_up_by_what_they_went_with() -> None:
    etcd = Etcd()
    first = etcd.append(0, 1)
    await etcd.settled()
    trim = asyncio.create_task(etcd.groups.commit(Txn((), (Delete(b"log/1/0", b"log/1/9"),))))
    append = etcd.append(2, 1)
    await etcd.settled()
    await etcd.answer()
    await etcd.answer(StoreFull("no space"))
    assert [len(txn.ops) for txn in etcd.sent] == [1, 2, 1, 1], "each finds out for itself"
    await etcd.answer()
    assert all([(await task).succeeded for task in (first, trim, append)])
