"""Which replica should own which shard, and what one replica does about it now. Pure; standard library only.

Owners are chosen by rendezvous hashing with bounded load: each replica has a score for each shard, the highest wins,
but nobody has more than an equal part, rounded up, since limits are split into equal parts. A replica that comes takes
some shards of every other, one that goes leaves its own to all the others, and few move between those that stay.

Nothing here is needed for safety, which rests on the compares of `shards.log`: two replicas may see different
memberships and decide differently; the store lets one of them have its way. What is decided here is only that shards
are not moved without need:

- A shard whose owner is gone is taken at once by whoever it falls to.
- A live owner gives a shard away only to a replica that has been there for a while (`REST`), one shard at a time: the
  next one goes when the last has been taken. A replica that comes and goes moves nothing.
- A replica that leaves gives all away at once.
- A shard that a replica could not rebuild falls to another, as long as one is there that has not failed with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

REST = 3_000_000
"""Microseconds a replica must have been there before it is given shards of live owners."""


@dataclass(frozen=True, slots=True)
class Member:
    """A live replica: `seen` is when it was first noticed here, in microseconds of a clock that only grows.

    `join_address` is empty where nobody can join, and of older versions.
    """

    replica_id: str
    address: str
    version: str
    start_time: int
    leaving: bool
    seen: int
    join_address: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a shard, as the store says. `revision`: of the key that says so."""

    replica_id: str
    epoch: int
    successor_id: str
    revision: int
    unable: frozenset[str] = frozenset()
    """Replicas that could not rebuild the shard."""

    @property
    def claimant(self) -> str:
        """The replica that owns it, or that it was handed over to: while it is there, nobody else takes the shard."""
        return self.successor_id or self.replica_id


@dataclass(frozen=True, slots=True)
class Moves:
    """What a replica is to do: `take` these shards, `give` those away, each to the replica named."""

    take: tuple[int, ...] = ()
    give: tuple[tuple[int, str], ...] = ()


def assigned(shard: int, replicas: Collection[str]) -> str | None:
    """The replica with the highest score for a shard; None when there is none."""
    return max(replicas, key=lambda replica: _score(shard, replica), default=None)


@lru_cache(maxsize=16)
def layout(shards: int, replicas: frozenset[str]) -> tuple[str, ...]:
    """The replica that each shard falls to, by the shard's number; empty without replicas.

    The pairs of a shard and a replica have their turn by score, the highest first: it holds if the shard has none yet
    and the replica has room. So it is the same for everybody, and a change of the membership moves few shards.
    """
    room = dict.fromkeys(replicas, -(-shards // max(1, len(replicas))))
    owners: dict[int, str] = {}
    for (_, name), shard in sorted(((_score(n, name), n) for n in range(shards) for name in replicas), reverse=True):
        if shard not in owners and room[name]:
            owners[shard] = name
            room[name] -= 1
    return tuple(owners[shard] for shard in sorted(owners))


def heir(shard: int, shards: int, replicas: Collection[str], unable: Collection[str]) -> str | None:
    """The replica a shard of so many falls to: one that could not rebuild it only when there is no other. None when
    there is none."""
    if not replicas:
        return None
    able = [name for name in replicas if name not in unable] or replicas
    falls_to = layout(shards, frozenset(replicas))[shard]
    return falls_to if falls_to in able else assigned(shard, able)


def _score(shard: int, replica: str) -> tuple[bytes, str]:
    return hashlib.blake2b(f"{shard}/{replica}".encode(), digest_size=8).digest(), replica


def decide(
    me: str,
    shards: int,
    members: Mapping[str, Member],
    owners: Mapping[int, Owner],
    held: Collection[int],
    now: int,
) -> Moves:
    """What replica `me` does now. `held`: shards it has, or is about to have. `now`: by the clock of `Member.seen`."""
    myself = members.get(me)
    if myself is None:
        return Moves()  # our lease has ended: first we have to be there again
    staying = {member.replica_id for member in members.values() if not member.leaving}
    if myself.leaving:
        return Moves(
            give=tuple(
                (n, to) for n in sorted(held) if (to := heir(n, shards, staying, _unable(owners, n))) is not None
            )
        )
    rested = {name for name in staying if name == me or now - members[name].seen >= REST}
    take = tuple(n for n in range(shards) if n not in held and _takes(me, n, shards, members, owners.get(n), rested))
    if any(owner.replica_id == me and owner.successor_id in members for owner in owners.values()):
        return Moves(take)  # one that was given away is still on its way
    for n in sorted(held):
        owner, to = owners.get(n), heir(n, shards, rested, _unable(owners, n))
        if to is not None and to != me and owner is not None and owner.claimant == me:
            return Moves(take, ((n, to),))
    return Moves(take)


def _takes(
    me: str, shard: int, shards: int, members: Mapping[str, Member], owner: Owner | None, rested: Collection[str]
) -> bool:
    if owner is not None and owner.claimant == me:
        return True
    orphaned = owner is None or owner.claimant not in members
    return orphaned and heir(shard, shards, rested, owner.unable if owner is not None else ()) == me


def _unable(owners: Mapping[int, Owner], shard: int) -> Collection[str]:
    owner = owners.get(shard)
    return owner.unable if owner is not None else ()
