"""Which shards move, and when: properties of the pure part of the cluster."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from antiphon_orchestrator.cluster.assignment import REST, Member, Moves, Owner, assigned, decide, layout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHARDS = 32
NOW = 10 * REST

QUIET = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.text("0123456789abcdef", min_size=16, max_size=16)
groups = st.sets(names, min_size=1, max_size=8)


def members(*there: str, seen: int = 0, leaving: tuple[str, ...] = ()) -> dict[str, Member]:
    return {name: Member(name, f"{name}:7443", "1", 0, name in leaving, seen) for name in there}


def owned(by: dict[int, str], revision: int = 1) -> dict[int, Owner]:
    return {shard: Owner(name, 1, "", revision) for shard, name in by.items()}


def settled(replicas: set[str], shards: int = SHARDS) -> dict[int, str]:
    return dict(enumerate(layout(shards, frozenset(replicas))))


def held_by(name: str, by: dict[int, str]) -> list[int]:
    return [shard for shard, owner in by.items() if owner == name]


class Replicas:
    """All replicas deciding in turns on one store, as the store would have it."""

    def __init__(self, *there: str) -> None:
        self.members = members(*there)
        self.owners: dict[int, Owner] = {}
        self.now = NOW

    def turn(self, me: str) -> Moves:
        held = [shard for shard, owner in self.owners.items() if owner.claimant == owner.replica_id == me]
        moves = decide(me, SHARDS, self.members, self.owners, held, self.now)
        for shard in moves.take:
            former = self.owners.get(shard)
            self.owners[shard] = Owner(me, former.epoch + 1 if former else 1, "", 1)
        for shard, heir in moves.give:
            self.owners[shard] = Owner(me, self.owners[shard].epoch, heir, 1)
        return moves

    def settle(self) -> dict[int, str]:
        while any([self.turn(name) != Moves() for name in sorted(self.members)]):
            pass
        return {shard: owner.claimant for shard, owner in self.owners.items()}


@QUIET
@given(groups, names, st.integers(1, 200))
def test_one_that_comes_takes_its_part_and_few_others_move(replicas: set[str], newcomer: str, shards: int) -> None:
    replicas = replicas - {newcomer}
    before, after = settled(replicas, shards), settled(replicas | {newcomer}, shards)
    if replicas:
        moved = [shard for shard in before if after[shard] not in (before[shard], newcomer)]
        assert len(moved) <= -(-shards // (len(replicas) + 1)) + len(replicas)


@QUIET
@given(groups, st.integers(1, 200))
def test_nobody_has_more_than_an_equal_part(replicas: set[str], shards: int) -> None:
    spread = Counter(settled(replicas, shards).values())
    assert sum(spread.values()) == shards
    assert set(spread) <= replicas and max(spread.values()) <= -(-shards // len(replicas))


@QUIET
@given(groups, st.randoms())
def test_all_find_the_same_owners_in_whatever_order_they_know_the_replicas(
    replicas: set[str], order: random.Random
) -> None:
    shuffled = sorted(replicas)
    order.shuffle(shuffled)
    layout.cache_clear()
    one = settled(replicas)
    layout.cache_clear()
    assert settled(set(shuffled)) == one


def test_without_replicas_a_shard_falls_to_nobody() -> None:
    assert layout(SHARDS, frozenset()) == ()


@QUIET
@given(st.sets(names, min_size=1, max_size=5))
def test_whoever_is_there_comes_to_one_layout_in_which_every_shard_is_owned(replicas: set[str]) -> None:
    assert Replicas(*replicas).settle() == settled(replicas)


@QUIET
@given(st.sets(names, min_size=2, max_size=5), st.data())
def test_the_shards_of_one_that_died_are_taken_and_few_others_move(replicas: set[str], data: st.DataObject) -> None:
    cluster = Replicas(*replicas)
    before = cluster.settle()
    dead = data.draw(st.sampled_from(sorted(replicas)))
    del cluster.members[dead]
    after = cluster.settle()
    assert after == settled(replicas - {dead})
    moved = [shard for shard in before if before[shard] not in (dead, after[shard])]
    assert len(moved) <= -(-SHARDS // len(replicas)) + len(replicas) - 1


@QUIET
@given(st.sets(names, min_size=2, max_size=5), st.data())
def test_one_that_leaves_gives_everything_away_and_takes_nothing(replicas: set[str], data: st.DataObject) -> None:
    cluster = Replicas(*replicas)
    cluster.settle()
    leaver = data.draw(st.sampled_from(sorted(replicas)))
    cluster.members.update(members(leaver, leaving=(leaver,)))
    after = cluster.settle()
    assert leaver not in after.values()
    assert after == settled(replicas - {leaver})


@QUIET
@given(groups, names)
def test_one_that_has_just_come_is_given_nothing_of_live_owners(replicas: set[str], newcomer: str) -> None:
    cluster = Replicas(*replicas)
    before = cluster.settle()
    if newcomer in replicas:
        return
    cluster.members.update(members(newcomer, seen=cluster.now))
    assert cluster.settle() == before
    cluster.now += REST - 1
    del cluster.members[newcomer]  # it flaps: whoever stays must not have noticed
    assert cluster.settle() == before


def test_a_live_owner_gives_one_shard_at_a_time() -> None:
    there = members("a", "b")
    by = dict.fromkeys(range(SHARDS), "a")
    owners = owned(by)
    first = decide("a", SHARDS, there, owners, by, NOW)
    assert len(first.give) == 1
    shard, heir = first.give[0]
    owners[shard] = Owner("a", 1, heir, 2)
    held = [n for n in by if n != shard]
    assert decide("a", SHARDS, there, owners, held, NOW) == Moves()
    owners[shard] = Owner(heir, 2, "", 3)
    assert len(decide("a", SHARDS, there, owners, held, NOW).give) == 1


def test_a_shard_that_was_handed_over_is_taken_by_its_successor_alone_while_that_one_is_there() -> None:
    owners = {0: Owner("a", 1, "b", 5)}
    three = members("a", "b", "c")
    assert 0 in decide("b", 1, three, owners, (), NOW).take
    assert decide("c", 1, three, owners, (), NOW) == Moves()
    del three["b"]
    takers = [name for name in three if 0 in decide(name, 1, three, owners, (), NOW).take]
    assert takers == [assigned(0, three)]


def test_one_whose_marker_is_gone_does_nothing() -> None:
    assert decide("a", SHARDS, members("b"), owned(dict.fromkeys(range(SHARDS), "a")), range(4), NOW) == Moves()


def test_a_shard_whose_log_cannot_be_read_here_is_not_given_before_it_is_owned() -> None:
    # It is held, since it is being taken, but the store does not name us yet.
    assert decide("a", 1, members("a", "b"), {}, (0,), NOW) == Moves()


def test_a_shard_falls_to_nobody_who_could_not_rebuild_it_while_another_is_there() -> None:
    there = members("a", "b", "c")
    first = assigned(0, there)
    assert first is not None
    others = [name for name in there if name != first]
    second = assigned(0, others)
    assert second is not None
    orphan = {0: Owner(first, 1, "gone", 5, frozenset({first}))}
    assert [name for name in there if 0 in decide(name, 1, there, orphan, (), NOW).take] == [second]
    kept = {0: Owner(second, 2, "", 6, frozenset({first}))}
    assert decide(second, 1, there, kept, (0,), NOW) == Moves(), "it is not given back"
    leaving = {name: replace(member, leaving=name == second) for name, member in there.items()}
    (third,) = (name for name in others if name != second)
    assert decide(second, 1, leaving, kept, (0,), NOW).give == ((0, third),)
    hopeless = {0: Owner(first, 1, "gone", 5, frozenset(there))}
    assert [name for name in there if 0 in decide(name, 1, there, hopeless, (), NOW).take] == [first]
