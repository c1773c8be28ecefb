"""How the slots of one agent are divided among orchestrator replicas. Pure; standard library only.

A replica never has more attempts out than its window. A larger window holds at once; a smaller one counts only after
its acknowledgement, because offers may be on their way. So a slot moves in two steps: the window of the one that has
too many shrinks, and when that is acknowledged and its attempts have ended, the window of the other grows.

Invariant: over all replicas of an agent, the sum of max(allowed, out) exceeds the agent's capacity only by what
was out, or allowed, when the capacity itself fell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

LARGEST_WINDOW = 20_000  # the contract's limit on Window.slots


class Grant:
    """The slots of one agent at one replica."""

    __slots__ = ("allowed", "generation", "out", "slots", "wanted")

    def __init__(self) -> None:
        self.slots = 0
        """The window last sent."""
        self.generation = 0
        """Its generation; 0 when none was sent."""
        self.allowed = 0
        """What the replica may still believe: the largest window since the last acknowledged one."""
        self.out = 0
        """Attempts it has here without an outcome."""
        self.wanted = 0
        """What it said it could use."""

    def acknowledge(self, generation: int) -> bool:
        """The replica keeps to that window; whether this was news."""
        if generation != self.generation or self.allowed == self.slots:
            return False
        self.allowed = self.slots
        return True


def divide(total: int, wanted: Sequence[int], turn: int) -> list[int]:
    """Max-min fair shares of `total` by what each wants; what nobody wants is spread evenly, so that an idle replica
    can offer without asking first. Remainders go to the replicas from number `turn` on, so that one slot goes round.
    """
    count = len(wanted)
    order = [(turn + place) % count for place in range(count)]
    shares = [0] * count
    left = total
    hungry = [index for index in order if wanted[index] > 0]
    while hungry and left:
        each = max(1, left // len(hungry))
        for index in hungry:
            portion = min(each, wanted[index] - shares[index], left)
            shares[index] += portion
            left -= portion
        hungry = [index for index in hungry if shares[index] < wanted[index]]
    for place, index in enumerate(order):
        shares[index] += left // count + (place < left % count)
    return shares


def settle(grants: Sequence[Grant], capacity: int, turn: int) -> Iterator[tuple[int, int]]:
    """Steps towards the fair division: (index of the grant, its new window) for each window that must be sent.

    The caller numbers and sends them. Call again when a window is acknowledged or an attempt ends, until
    `settled` holds.
    """
    targets = divide(min(max(capacity, 0), LARGEST_WINDOW), [grant.wanted for grant in grants], turn)
    spare = capacity - sum(max(grant.allowed, grant.out) for grant in grants)
    for index, (grant, target) in enumerate(zip(grants, targets, strict=True)):
        if target > grant.slots:
            # What the replica may already believe costs nothing; beyond that only spare slots can be granted.
            believed = max(grant.allowed, grant.out)
            target = max(min(target, believed + max(spare, 0)), grant.slots)
            spare -= max(target - believed, 0)
        if target != grant.slots:
            grant.slots = target
            grant.allowed = max(grant.allowed, target)
            yield index, target


def settled(grants: Sequence[Grant], capacity: int, turn: int) -> bool:
    """Whether every window is what the fair division says."""
    targets = divide(min(max(capacity, 0), LARGEST_WINDOW), [grant.wanted for grant in grants], turn)
    return all(grant.slots == target for grant, target in zip(grants, targets, strict=True))
