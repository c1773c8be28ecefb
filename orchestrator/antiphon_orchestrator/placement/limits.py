"""Limits that policy sets with the obligation `limit`: how many attempts may begin in a time, and be out at once.

A limit has a counter for the policy that sets it and, as its `per` says, for each namespace, capability and agent.
What finds no room is parked here, not in the queues for slots: a slot does not help it. Whoever comes later does not
overtake it. When there is room, as many are called up as fit, by the weights of their namespaces, then priority, then
deadline; the room is kept for them until their shard has placed them anew.

What is out is known from the routing decisions of attempts, so that a new owner counts what it finds. Counters are of
one replica: each enforces its part of a limit, see `divide`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from antiphon.v1 import run_pb2

from ..engine.events import Placement
from ..engine.failure import Failure, FailureKind
from ..policy import Decision, Limit
from .candidates import Instance, Need, Offered, Permit, Refused, Waiter
from .shares import FairQueue

Key = tuple[str, str, str, str]
"""Policy, namespace, capability, agent; empty where the counter is not of a single one."""

TaskKey = tuple[str, int, int]
"""Run, task, member."""

MOST_PLACES = 16
"""Limits at which one task waits at once."""

MOST_COUNTERS = 10_000
"""Counters above which those that nothing is out to, and that are as good as new, are forgotten."""

_MARK = b"limit("


class Counter:
    """What one limit has let pass. `calling`: tasks that were called up and are not placed yet, in that order."""

    def __init__(self, limit: Limit, now: int, weights: Mapping[str, int]) -> None:
        self.limit = limit
        self.tokens = 1e9  # full, whatever that is
        self.since = now
        self.out = 0
        self.calling: dict[TaskKey, Waiter] = {}
        self.left = 0
        """Entries of `parked` that wait no longer."""
        self.parked = FairQueue(weights)

    @property
    def called(self) -> int:
        return len(self.calling)

    def before(self, waiter: Waiter) -> int:
        """How many of those that were called up come before one that was, too."""
        number = 0
        for other in self.calling.values():
            if other[:3] >= waiter[:3]:
                break
            number += 1
        return number


class Full:
    """Why nobody has a task now. `counters`: limits that have no room for it, one for each candidate that they keep
    out; `refused`: the candidates that it is not to have, with the reason (policy, input or limit)."""

    def __init__(self) -> None:
        self.counters: list[Counter] = []
        self.refused: dict[Offered, str] = {}
        self.hope = False
        """Whether there are others, which may have it once they have a slot."""
        self.avoid: dict[str, str] = {}
        """The agents or instances that it is not to have meanwhile, with the reason; only with `hope`."""
        self.refusal: Refused | None = None
        """With what it fails, when there are neither limits nor others to wait for: a denial, if there is one."""

    def add(self, offered: Offered, reason: Counter | Decision | Refused) -> None:
        if isinstance(reason, Counter):
            self.refused[offered] = "limit"
            if reason not in self.counters and len(self.counters) < MOST_PLACES:
                self.counters.append(reason)
        elif isinstance(reason, Decision):
            self.refused[offered] = "policy"
            failure = Failure(FailureKind.POLICY, reason.reason, reason.decision_id, retryable=False)
            self.refusal = Refused(failure)
        else:
            self.refused[offered] = "input"
            self.refusal = self.refusal or reason

    def wait_for(self, candidates: list[Offered]) -> None:
        """There is hope in those of the candidates that are not refused."""
        left = [offered.instance for offered in candidates if offered not in self.refused]
        agents, instances = {one.agent for one in left}, {one.instance_id for one in left}
        self.hope = True
        for offered, reason in self.refused.items():
            if offered.instance.agent not in agents:
                self.avoid[offered.instance.agent] = reason
            elif offered.instance.instance_id not in instances:
                self.avoid[offered.instance.instance_id] = reason


class Limits:
    """All counters of one replica. `call(waiter, counter)` has a parked task placed anew, with the room that the
    counter keeps for it, if any; `woken` is called when `due` may have become earlier. `now`: microseconds since 1970.
    """

    def __init__(self, now: Callable[[], int], weights: Mapping[str, int]) -> None:
        self._now = now
        self._weights = weights
        self._counters: dict[Key, Counter] = {}
        self._parked: dict[TaskKey, tuple[Full, Waiter, Need]] = {}
        self._dry: dict[Counter, None] = {}
        self._replicas = 1
        self._rank = 0
        self.call: Callable[[Waiter, Counter | None], None] = lambda waiter, counter: None
        self.woken: Callable[[], None] = lambda: None

    @property
    def waiting(self) -> int:
        """Tasks that a limit holds up."""
        return len(self._parked)

    @property
    def active(self) -> bool:
        """Whether there is any counter: without one nothing needs to be told here."""
        return bool(self._counters)

    # Room.

    def full(self, permit: Permit, need: Need, agent: str, before: Waiter | None, waited: bool) -> Counter | None:
        """The first limit of a permit that has no room for an attempt of `agent`; None when all have.

        `before`: as what it has waited. Where its turn has come already it waits for those before it and nobody else:
        two limits would pass their tasks to each other for ever. `waited`: for a slot, so that nobody who is parked
        came before it. Nor is room kept from it: whoever was called up may be behind it in the queue for that very
        slot, and each would have what the other waits for.
        """
        for limit in permit.limits:
            counter = self._counter(limit, need, agent)
            if waited:
                kept = 0
            elif before is not None and counter in before.passed:
                kept = counter.before(before)
            elif counter.parked.size:
                return counter
            else:
                kept = counter.called
            if self._room(counter) <= kept:
                return counter
        return None

    def take(self, permit: Permit, need: Need, agent: str) -> None:
        """An attempt is out: `full` has just found room for it."""
        for limit in permit.limits:
            counter = self._counter(limit, need, agent)
            counter.out += 1
            if limit.rate:
                counter.tokens -= 1.0

    def hold(self, namespace: str, placement: Placement) -> None:
        """Counts an attempt that is out already: recovered from the log."""
        for limit in limits_of(placement):
            key = _key(limit, namespace, placement.capability, placement.agent)
            counter = self._counters.get(key)
            if counter is None:
                counter = self._counters[key] = Counter(limit, self._now(), self._weights)
            counter.out += 1

    def free(self, namespace: str, placement: Placement) -> None:
        """An attempt is not out any more."""
        for limit in limits_of(placement):
            counter = self._counters.get(_key(limit, namespace, placement.capability, placement.agent))
            if counter is not None:
                counter.out = max(0, counter.out - 1)
                self._call_up(counter)

    def _counter(self, limit: Limit, need: Need, agent: str) -> Counter:
        """The counter of a limit that is in force."""
        key = _key(limit, need.namespace, need.capability, agent)
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= MOST_COUNTERS:
                self._forget()
            counter = self._counters[key] = Counter(limit, self._now(), self._weights)
        counter.limit = limit
        return counter

    def _forget(self) -> None:
        for key, counter in list(self._counters.items()):
            if not counter.out and not counter.called and not counter.parked.size and self._full_again(counter):
                del self._counters[key]

    def _full_again(self, counter: Counter) -> bool:
        self._room(counter)
        return not counter.limit.rate or counter.tokens >= self._burst(counter.limit)

    def _room(self, counter: Counter) -> int:
        """Attempts that may begin now, those that are called up included."""
        limit = counter.limit
        room = 1 << 30
        if limit.concurrent:
            room = self._part(limit.concurrent) - counter.out
        if limit.rate:
            now, burst = self._now(), self._burst(limit)
            gained = max(0, now - counter.since) / 1e6 * limit.rate / self._replicas
            counter.tokens = min(burst, counter.tokens + gained)
            counter.since = now
            room = min(room, int(counter.tokens + 1e-9))
        return room

    def _burst(self, limit: Limit) -> float:
        return max(1.0, limit.burst / self._replicas)

    def _part(self, whole: int) -> int:
        """This replica's part of so many, at least one."""
        return max(1, whole // self._replicas + (self._rank < whole % self._replicas))

    # Waiting.

    def park(self, full: Full, need: Need, waiter: Waiter) -> None:
        """Keeps a task until one of the limits that had no room for it has."""
        key = (waiter.run_id, waiter.task, waiter.member)
        self.leave(key)
        self._parked[key] = (full, waiter, need)
        for counter in full.counters:
            counter.parked.push(need.namespace, waiter[:3], waiter)
            if counter.limit.rate and counter not in self._dry:
                self._dry[counter] = None
                self.woken()

    def holds(self, key: TaskKey) -> bool:
        """Whether a limit holds the task up."""
        return key in self._parked

    def leave(self, key: TaskKey) -> None:
        """A task that waits no longer, if it was parked."""
        found = self._parked.pop(key, None)
        if found is not None:
            for counter in found[0].counters:
                self._one_left(counter)

    def _one_left(self, counter: Counter) -> None:
        """Its place in the queue is not known; clearing up at half costs each one that leaves a constant."""
        counter.left += 1
        if counter.left * 2 > counter.parked.size:
            counter.parked.keep(self._waits)
            counter.left = 0

    def _waits(self, waiter: Waiter) -> bool:
        found = self._parked.get((waiter.run_id, waiter.task, waiter.member))
        return found is not None and found[1] is waiter

    def _next(self, counter: Counter) -> Waiter | None:
        """The next who waits for a limit, and does so no longer; None when nobody does."""
        while counter.parked.size:
            waiter: Waiter = counter.parked.pop()
            if not self._waits(waiter):
                counter.left -= 1
                continue
            found = self._parked.pop((waiter.run_id, waiter.task, waiter.member))
            for other in found[0].counters:
                if other is not counter:
                    self._one_left(other)
            return waiter
        return None

    def settle(self, counter: Counter, waiter: Waiter) -> None:
        """A task that was called up has been placed, or does not want to be any more."""
        counter.calling.pop((waiter.run_id, waiter.task, waiter.member), None)
        self._call_up(counter)

    def _call_up(self, counter: Counter) -> None:
        self._call_those_who_fit(counter)
        if counter in self._dry:
            self.woken()

    def _call_those_who_fit(self, counter: Counter) -> None:
        while counter.parked.size and self._room(counter) > counter.called:
            waiter = self._next(counter)
            if waiter is None:
                return
            self._call(waiter, counter)

    def _call(self, waiter: Waiter, counter: Counter) -> None:
        waiter = waiter._replace(passed=waiter.passed | {counter})
        counter.calling[waiter.run_id, waiter.task, waiter.member] = waiter
        self.call(waiter, counter)

    def divide(self, replicas: int, rank: int) -> None:
        """From now on this is number `rank`, from 0, of so many replicas, and enforces its part: rates and bursts by
        their number, what may be out in whole attempts. Less than one attempt is no part."""
        self._replicas, self._rank = max(1, replicas), rank
        for counter in list(self._counters.values()):
            self._call_up(counter)
        self.woken()

    def policy_changed(self) -> None:
        """Limits may be others, or gone: whoever is parked is to be placed anew."""
        for counter in {counter: None for full, _, _ in self._parked.values() for counter in full.counters}:
            while (waiter := self._next(counter)) is not None:
                self._call(waiter, counter)

    def more(self, instance: Instance) -> None:
        """An agent has come, or come back as another: whoever is kept out by limits of other agents is placed anew,
        unless it waits for slots as well."""
        names = {offered.name for offered in instance.offers}
        found = [
            (waiter, full.counters[0])
            for full, waiter, need in self._parked.values()
            if not full.hope and need.namespace == instance.namespace and need.capability.partition("@")[0] in names
            if any("agent" in counter.limit.per for counter in full.counters)
            if all(offered.instance.agent != instance.agent or why != "limit" for offered, why in full.refused.items())
        ]
        for waiter, counter in sorted(found, key=lambda one: one[0]):
            self.leave((waiter.run_id, waiter.task, waiter.member))
            self._call(waiter, counter)

    # Time.

    def due(self) -> int | None:
        """When a rate has room again for somebody who is parked."""
        first: int | None = None
        for counter in self._dry:
            self._room(counter)
            missing = 1.0 + counter.called - counter.tokens
            # With tokens it waits for an attempt that comes back, which needs no clock.
            if missing > 0 and counter.limit.rate:
                time = counter.since + int(missing / counter.limit.rate * self._replicas * 1e6) + 1
                first = time if first is None else min(first, time)
        return first

    def look(self) -> None:
        """Calls up whom the time that went by has made room for."""
        for counter in list(self._dry):
            self._call_those_who_fit(counter)
            if not counter.parked.size:
                del self._dry[counter]

    # For people.

    def explain(self, key: TaskKey) -> str:
        """Why a task is parked; empty when it is not."""
        found = self._parked.get(key)
        if found is None:
            return ""
        counter = found[0].counters[0]
        limit = counter.limit
        said = []
        if limit.concurrent:
            said.append(f"{counter.out} of {self._part(limit.concurrent)} attempts are out")
        if limit.rate:
            said.append(f"{limit.rate / self._replicas:g} a second may begin")
        if self._replicas > 1:
            said.append(f"this replica's part of {self._replicas}")
        return f"policy {limit.policy} limits it: {', '.join(said)}; {counter.parked.size - counter.left} tasks wait"


def limits_of(placement: Placement) -> Iterator[Limit]:
    """The limits that the decision about an attempt names."""
    if _MARK not in placement.decision:
        return
    decision = run_pb2.RoutingDecision.FromString(placement.decision)
    for text in decision.policy.obligations:
        if text.startswith("limit(") and text.endswith(")"):
            yield Limit.of(text[6:-1].split(","))


def _key(limit: Limit, namespace: str, capability: str, agent: str) -> Key:
    """`capability` may have a version, which does not count."""
    per = limit.per
    return (
        limit.policy,
        namespace if "namespace" in per else "",
        capability.partition("@")[0] if "capability" in per else "",
        agent if "agent" in per else "",
    )
