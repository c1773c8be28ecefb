"""Which policies are in force: seeded, changed in one commit, followed by another replica, kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from antiphon.store.v1 import records_pb2
from antiphon.v1 import policy_pb2
from antiphon_orchestrator.policy import (
    Action,
    CedarPolicies,
    PolicyBundle,
    PolicyError,
    PolicyFile,
    Request,
    ResourceKind,
    dev_profile,
)
from antiphon_orchestrator.policy_book import (
    FOLDER,
    KEPT,
    PROFILE,
    EpochChanged,
    EpochNotFound,
    LocksOut,
    PolicyBook,
    RequestReused,
)
from antiphon_orchestrator.store import SqliteStore, keys
from antiphon_orchestrator.store.port import Put, Store, Txn

OLGA = "spiffe://antiphon.internal/ns/demo/operator/olga"
ADMIN = Request(Action.CHANGE_POLICY, OLGA, "operator", "demo", ResourceKind.NAMESPACE, "demo")
ALL = '@id("all") permit (principal, action, resource);'


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with SqliteStore(tmp_path / "store.db") as made:
        yield made


class Replica:
    """One replica's policies over a store, and the epochs its sidecars were told."""

    def __init__(self, store: Store) -> None:
        self.policies = CedarPolicies()
        self.book = PolicyBook(store, self.policies, lambda: 7)
        self.told: list[int] = []
        self._heard = asyncio.Event()
        self.book.changed = self._hear

    def _hear(self, epoch: int) -> None:
        self.told.append(epoch)
        self._heard.set()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follows the store; ends once another epoch is in force here, which must not take two seconds of its time."""
        following = asyncio.create_task(self.book.run())
        try:
            yield
            for _ in range(200):  # no shorter than two seconds, and as much longer as a busy machine keeps us waiting
                if self._heard.is_set():
                    break
                await asyncio.sleep(0.01)
            assert self._heard.is_set(), "no other epoch was put in force"
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    async def activate(self, text: str, expected: int, request_id: str = "") -> policy_pb2.PolicySet:
        name = request_id or f"r{expected}"
        return await self.book.activate(OLGA, name, expected, [PolicyFile("a.cedar", text)], ADMIN)


def bundle(text: str) -> PolicyBundle:
    return PolicyBundle.of(1, [PolicyFile("a.cedar", text)])


async def begun(store: Store, seed: PolicyBundle | None = None, origin: str = FOLDER) -> Replica:
    replica = Replica(store)
    await replica.book.begin(seed, origin)
    return replica


async def test_without_a_seed_nothing_is_in_force_until_somebody_activates(store: Store) -> None:
    replica = await begun(store)
    assert replica.policies.epoch == 0 and await replica.book.sets() == []
    with pytest.raises(EpochNotFound):
        await replica.book.get(0)
    made = await replica.activate(ALL, 0)
    assert (made.epoch, made.policy_count, made.creator, made.active) == (1, 1, OLGA, True)
    assert replica.told == [1] and replica.policies.check(ADMIN).allowed


async def test_a_seed_begins_a_store_and_no_later_one_replaces_it(store: Store) -> None:
    assert (await begun(store, bundle(ALL))).policies.epoch == 1
    again = await begun(store, bundle(ALL))
    assert [one.epoch for one in await again.book.sets()] == [1]
    other = await begun(store, bundle(ALL.replace("all", "other")))
    assert other.policies.epoch == 1 and other.policies.check(ADMIN).policies == ("all",)


async def test_the_development_profile_is_renewed_until_somebody_activates_a_set(store: Store) -> None:
    older = PolicyBundle.of(1, [PolicyFile("dev.cedar", ALL)])
    assert (await begun(store, older, PROFILE)).policies.epoch == 1
    renewed = await begun(store, dev_profile(), PROFILE)
    assert renewed.policies.epoch == 2
    await renewed.activate(ALL, 2)
    assert (await begun(store, dev_profile(), PROFILE)).policies.epoch == 3
    assert (await begun(store, older, PROFILE)).policies.epoch == 3


async def test_another_replica_follows_within_two_seconds(store: Store) -> None:
    one, other = await begun(store, bundle(ALL)), await begun(store)
    async with other.following():
        await one.activate(ALL.replace("all", "second"), 1)
    assert other.told == [2] and other.policies.check(ADMIN).policies == ("second",)
    with pytest.raises(EpochChanged) as refused:
        await other.activate(ALL, 1, "late")
    assert refused.value.current == 2


async def test_what_another_replica_activated_before_one_listens_is_not_missed(store: Store) -> None:
    one, other = await begun(store, bundle(ALL)), await begun(store)
    await one.activate(ALL.replace("all", "second"), 1)
    await other.book.sets()
    async with other.following():
        pass
    assert other.policies.epoch == 2


async def test_policies_that_cannot_be_read_here_deny_everything_and_stop_a_start(store: Store) -> None:
    replica = await begun(store, bundle(ALL))
    newer = records_pb2.PolicyText(files=[policy_pb2.PolicyFile(name="a.cedar", text=f'@newer("x") {ALL}')])
    record = records_pb2.PolicyRecord(policy=policy_pb2.PolicySet(epoch=2))
    puts = (
        Put(keys.policy_text(2), newer.SerializeToString()),
        Put(keys.policy_epoch(2), record.SerializeToString()),
        Put(keys.policy_current(), records_pb2.PolicyCurrent(epoch=2).SerializeToString()),
    )
    async with replica.following():
        await store.commit(Txn((), puts))
    assert not replica.policies.check(ADMIN).allowed and replica.told == [2]
    with pytest.raises(PolicyError, match="unknown annotation @newer"):
        await begun(store)


async def test_so_many_epochs_are_kept_and_any_of_them_can_be_rolled_back_to(store: Store) -> None:
    replica = await begun(store, bundle(ALL))
    for epoch in range(1, KEPT + 3):
        await replica.activate(ALL.replace("all", f"all-{epoch}"), epoch)
    kept = [one.epoch for one in await replica.book.sets()]
    assert kept == list(range(KEPT + 3, 3, -1)) and len(kept) == KEPT
    with pytest.raises(EpochNotFound):
        await replica.book.roll_back(OLGA, "back", kept[0], 3, ADMIN)
    back = await replica.book.roll_back(OLGA, "back", kept[0], kept[-1], ADMIN)
    assert back.rolled_back_to == kept[-1] and replica.policies.check(ADMIN).policies == (f"all-{kept[-1] - 1}",)
    # Its own source is kept no longer; the answer to the same request is.
    assert (await replica.book.roll_back(OLGA, "back", kept[0], kept[-1], ADMIN)).epoch == back.epoch
    files = (await replica.book.get(0)).files
    assert [file.name for file in files] == ["a.cedar"]


async def test_the_same_request_has_one_effect_and_another_content_is_refused(store: Store) -> None:
    replica = await begun(store, bundle(ALL))
    first = await replica.activate(ALL, 1, "same")
    assert (await replica.activate(ALL, 1, "same")).epoch == first.epoch == 2
    with pytest.raises(RequestReused):
        await replica.activate(ALL + "// more", 1, "same")
    assert replica.policies.epoch == 2


async def test_an_obligation_nobody_carries_out_is_refused_and_read_when_it_is_kept(store: Store) -> None:
    demanding = ALL + '@id("a") @obligation("redct") permit (principal, action == Action::"dispatch", resource);'
    with pytest.raises(PolicyError, match="there is no @obligation"):
        await begun(store, bundle(demanding))
    replica = await begun(store, bundle(ALL))
    with pytest.raises(PolicyError, match="there is no @obligation"):
        await replica.activate(demanding, 1)
    # A version that knows it put it in force.
    text = records_pb2.PolicyText(files=[policy_pb2.PolicyFile(name="a.cedar", text=demanding)])
    record = records_pb2.PolicyRecord(policy=policy_pb2.PolicySet(epoch=2))
    puts = (
        Put(keys.policy_text(2), text.SerializeToString()),
        Put(keys.policy_epoch(2), record.SerializeToString()),
        Put(keys.policy_current(), records_pb2.PolicyCurrent(epoch=2).SerializeToString()),
    )
    async with replica.following():
        await store.commit(Txn((), puts))
    assert replica.policies.check(ADMIN).allowed and (await begun(store)).policies.epoch == 2
    await replica.activate(ALL, 2)
    assert (await replica.book.roll_back(OLGA, "back", 3, 2, ADMIN)).epoch == 4


async def test_of_two_who_expect_the_same_epoch_one_wins(store: Store) -> None:
    one, other = await begun(store, bundle(ALL)), await begun(store)
    results = await asyncio.gather(one.activate(ALL, 1, "a"), other.activate(ALL, 1, "b"), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["EpochChanged", "PolicySet"]


async def test_nothing_is_changed_by_what_is_refused(store: Store) -> None:
    replica = await begun(store, bundle(ALL))
    for text, error in (("permit(", PolicyError), (ALL.replace("permit", "forbid"), LocksOut), ("", LocksOut)):
        with pytest.raises(error):
            await replica.activate(text, 1)
    assert replica.policies.epoch == 1 and len(await replica.book.sets()) == 1 and replica.told == []


async def test_a_replica_whose_history_was_compacted_catches_up(store: Store) -> None:
    one, other = await begun(store, bundle(ALL)), await begun(store)
    await one.activate(ALL.replace("all", "second"), 1)
    await one.activate(ALL.replace("all", "third"), 2)
    await store.compact((await store.range(keys.policy_current())).revision)
    async with other.following():
        pass
    assert other.policies.epoch == 3 and other.told == [3]
