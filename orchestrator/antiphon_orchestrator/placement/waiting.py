"""Tasks that wait: in queues for slots, in order of priority, then deadline, then arrival, and among those that limits
keep out. One may do both, when agents that it may have are busy and others are at their limits: whichever has room
first gets it.

Never: a choice among agents, which is the fleet's.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from itertools import count

from ..admission import Requirement, SchemaSet
from ..policy import PolicyPort
from .candidates import Instance, Need, Offered, Waiter
from .limits import Full, Limits, TaskKey
from .permits import Permits

First = tuple[Waiter, int, Need]
"""The first of a queue; the number tells it from others that are equal."""


class Waiting(Permits):
    """The part of a fleet that keeps who waits."""

    def __init__(
        self, policy: PolicyPort, schemas: SchemaSet, now: Callable[[], int], weights: Mapping[str, int]
    ) -> None:
        super().__init__(policy, schemas)
        self.limits = Limits(now, weights)
        self._queues: dict[Need, list[Waiter]] = {}
        # Needs with a queue by what they ask for: a slot that comes free looks at those that its instance can meet.
        self._asking: dict[tuple[str, str], dict[Need, None]] = {}
        # By what is asked for, the first of each of its queues. What is not that any more is left out when it comes up.
        self._firsts: dict[tuple[str, str], list[First]] = {}
        self._waiting: dict[TaskKey, tuple[Need, Waiter]] = {}
        self._left: dict[Need, int] = {}
        # Why a task that waits for a slot is not to have some agents or instances.
        self._avoids: dict[TaskKey, dict[str, str]] = {}
        self._arrivals = count()
        # Who offers what is asked for; those who are away are among them.
        self._by_capability: dict[tuple[str, str], list[Offered]] = {}

    @property
    def waiting(self) -> int:
        """Tasks that wait for a slot."""
        return len(self._waiting)

    def wait(
        self,
        need: Need,
        priority: int,
        deadline: int,
        shard: int,
        run_id: str,
        task: int,
        member: int,
        full: Full | None = None,
        before: Waiter | None = None,
    ) -> None:
        """Puts a task into the queue of its need, until a slot comes for it or it leaves; with `full` among those that
        wait for limits which are full, and for slots of others than those that it names. `before`: as what it has
        waited until now, so that it keeps its place."""
        self.leave(run_id, task, member)
        arrival, passed = (next(self._arrivals), frozenset()) if before is None else (before.arrival, before.passed)
        waiter = Waiter(-priority, deadline, arrival, shard, run_id, task, member, passed)
        key = (run_id, task, member)
        if full is not None:
            if full.counters:
                self.limits.park(full, need, waiter)
            if not full.hope:
                return
            need = need._replace(taken=need.taken.union(full.avoid))
            self._avoids[key] = full.avoid
        self._waiting[key] = (need, waiter)
        queue = self._queues.get(need)
        if queue is None:
            queue = self._queues[need] = []
            self._asking.setdefault(asked(need), {})[need] = None
        heapq.heappush(queue, waiter)
        if queue[0] is waiter:
            self._put_first(need)

    def leave(self, run_id: str, task: int, member: int) -> None:
        """A task that wants no slot any more, if it waited for one; else what nobody offers is waited for for ever."""
        if self.limits.waiting:
            self.limits.leave((run_id, task, member))
        found = self._waiting.pop((run_id, task, member), None)
        if found is None:
            return
        if self._avoids:
            self._avoids.pop((run_id, task, member), None)
        need = found[0]
        queue = self._queues[need]
        left = self._left[need] = self._left.get(need, 0) + 1
        if left == len(queue):
            self._end_queue(need)
        elif left * 2 > len(queue):
            # Its place in the heap is not known; clearing up at half costs each one that leaves a constant.
            self._queues[need] = [waiter for waiter in queue if self._waits(waiter)]
            heapq.heapify(self._queues[need])
            del self._left[need]
            self._put_first(need)

    def alike(self, key: TaskKey) -> bool:
        """Whether a task waits as any other of its need does: for a slot, of whoever fits."""
        return key not in self._avoids and not self.limits.holds(key)

    def policy_changed(self) -> None:
        """Whoever waits because of a policy is to be placed anew: it may be another, or gone."""
        for key in list(self._avoids):
            if not self.limits.holds(key):
                self.limits.call(self._waiting[key][1], None)
        self.limits.policy_changed()

    def _ask_again(self, instance: Instance) -> None:
        """It may be another than it was: whoever was not to have it is placed anew, or would pass it by for ever."""
        names = {instance.agent, instance.instance_id}
        found = [self._waiting[key][1] for key, avoid in self._avoids.items() if not names.isdisjoint(avoid)]
        for waiter in sorted(found):
            self.limits.call(waiter, None)

    def _give_up_on(self, gone: Instance) -> None:
        """It does not come back: whoever passed others by for it, and has nobody else to wait for, is placed anew,
        which fails it."""
        names = {(gone.namespace, offered.name) for offered in gone.offers}
        hope: dict[Need, bool] = {}
        for key in self._avoids:
            need, waiter = self._waiting[key]
            if asked(need) in names and not self.limits.holds(key):
                if need not in hope:
                    hope[need] = bool(self._suited(need))
                if not hope[need]:
                    self.limits.call(waiter, None)

    def _suited(self, need: Need) -> list[Offered]:
        """Who may have a task once there is a slot, whatever keeps it from having one now."""
        requirement = Requirement.parse(need.capability)
        return [
            offered
            for offered in self._by_capability.get((need.namespace, requirement.name), ())
            if requirement.matches(offered.version) and self._unsuited(offered, need) is None
        ]

    def _unsuited(self, offered: Offered, need: Need) -> str | None:
        """The first hard filter that an instance fails for as long as it is what it is."""
        instance = offered.instance
        if not (self._received(offered, need) if need.parts else need.labels) <= offered.clearance:
            return "clearance"
        if any(instance.description.labels.get(key) != value for key, value in need.agent_labels):
            return "constraint"
        if need.max_cost and offered.cost > need.max_cost:
            return "cost"
        for trait in need.traits:
            if trait not in offered.traits:
                return f"not_{trait}"
        return "taken" if instance.agent in need.taken or instance.instance_id in need.taken else None

    def _waits(self, waiter: Waiter) -> bool:
        found = self._waiting.get((waiter.run_id, waiter.task, waiter.member))
        return found is not None and found[1] is waiter

    def _put_first(self, need: Need) -> None:
        """Another is the first of a queue than before."""
        name = asked(need)
        firsts = self._firsts.setdefault(name, [])
        heapq.heappush(firsts, (self._queues[need][0], next(self._arrivals), need))
        needs = self._asking[name]
        if len(firsts) > 2 * len(needs) + 8:
            firsts[:] = [(self._queues[each][0], next(self._arrivals), each) for each in needs]
            heapq.heapify(firsts)

    def _take_first(self, name: tuple[str, str]) -> First | None:
        """The first of all queues for what is asked for, which is to be put back unless its queue has another."""
        firsts = self._firsts.get(name)
        while firsts:
            first = heapq.heappop(firsts)
            queue = self._queues.get(first[2])
            if queue is not None and queue[0] is first[0]:
                return first
        return None

    def _put_back(self, first: First) -> None:
        if (firsts := self._firsts.get(asked(first[2]))) is not None:
            heapq.heappush(firsts, first)

    def _end_queue(self, need: Need) -> None:
        del self._queues[need]
        self._left.pop(need, None)
        asking = self._asking[asked(need)]
        del asking[need]
        if not asking:
            del self._asking[asked(need)], self._firsts[asked(need)]


def asked(need: Need) -> tuple[str, str]:
    """Namespace and name of the capability that is asked for."""
    return need.namespace, need.capability.partition("@")[0]
