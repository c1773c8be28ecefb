"""The live instances of agents with their slots, and the choice among them.

A choice is a pure look-up over memory: hard filters first (kept per kind of request until the fleet changes), then the
lowest expected time among those with a free slot, then policy. It reserves the slot at once, so that a turn can place
many tasks; whoever ends an attempt gives the slot back. Tasks that find no slot wait here in order of priority, then
deadline, then arrival; capacity that comes free is reserved for the first of them and handed to its shard.

Never: I/O, waiting, or a placement without a policy decision.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches

from antiphon.v1 import run_pb2

from ..admission import Requirement, SchemaSet, Version
from ..engine.events import Placement
from ..engine.failure import Failure
from ..policy import Decision, PolicyPort
from .breaker import BLAMED, CLOSED, HALF_OPEN, OPEN, Breaker
from .candidates import DEFAULT_LATENCY, Instance, Need, Offered, Permit, Refused, Waiter
from .hedging import Hedging
from .limits import Counter as LimitCounter
from .limits import Full, TaskKey
from .permits import EFFECTS, log_use, traits_of
from .results import Results
from .shares import read_weights
from .waiting import First, Waiting, asked

__all__ = ["Fleet", "Instance", "Need", "Offered", "Refused", "Schedule", "Waiter", "log_use"]

OTHERS_RECORDED = 8
"""Candidates besides the chosen one that a routing decision names (protocol.md §10)."""

SMOOTHING = 0.2
"""Weight of the newest latency in the exponentially weighted mean."""

FEW = 16
"""Candidates up to which all are compared. Of more, two with a free slot are drawn: nearly as good, for less."""

DRAWS = 12
"""Draws for those two; where hardly anybody has a slot all are looked at after all."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Who gets how much, and when an instance gets nothing."""

    weights: tuple[str, ...] = ()
    """NAMESPACE=WEIGHT, from 1 to 1000: shares of namespaces where they wait for the same; others have weight 1."""
    breaker_failures: int = 10
    """Failures among the last twice as many outcomes that open the breaker of an instance, if `breaker_share` of them
    failed."""
    breaker_share: float = 0.5
    """The share of those outcomes that must have failed."""
    breaker_pause: timedelta = timedelta(seconds=1)
    """How long a breaker stays open, the first time; each time that it opens again right after is twice as long, up to
    eight times."""


def _now() -> int:
    return time.time_ns() // 1000


class Fleet(Waiting):
    """All live instances of one orchestrator. `deliver(waiter, offered)` hands a slot to a shard, for its next turn;
    `broke(instance)` is told of every breaker that changes. `now`: microseconds since 1970, by which breakers and
    limits go; when `due`, somebody has to `look`.

    Agents are their namespace's own, so that namespaces never wait for the same slots; see limits.py and the shards'
    queue of new runs for where they do.
    """

    def __init__(
        self,
        policy: PolicyPort,
        schemas: SchemaSet,
        now: Callable[[], int] = _now,
        schedule: Schedule = Schedule(),
    ) -> None:
        weights = read_weights(schedule.weights)
        super().__init__(policy, schemas, now, weights)
        self.weights = weights
        self._now = now
        self._schedule = schedule
        self._pause = schedule.breaker_pause // timedelta(microseconds=1)
        self._instances: dict[str, Instance] = {}
        self._away: dict[str, Instance] = {}
        self._eligible: dict[Need, list[Offered]] = {}
        self._held: dict[str, int] = {}
        self._suspended: set[tuple[str, str]] = set()
        self._breaking: dict[str, Instance] = {}
        # What is said of a choice without alternatives, by its score.
        self._alone: dict[float, bytes] = {}
        self.deliver: Callable[[Waiter, Offered], None] = lambda waiter, offered: None
        self.broke: Callable[[Instance], None] = lambda instance: None
        self.hedging = Hedging()
        self.results = Results()

    # Instances.

    def attach(self, instance: Instance) -> None:
        """Adds an instance, or replaces the one of the same id. Attempts adopted before it came count as in use."""
        former = self._instances.get(instance.instance_id)
        if former is not None:
            instance.in_use, instance.latency = former.in_use, former.latency
            instance.completed, instance.failed = former.completed, former.failed
            instance.breaker = former.breaker
            instance.admit()
            self._forget(former)
        else:
            instance.in_use = self._held.pop(instance.instance_id, 0)
            former = self._away.pop(instance.instance_id, None)
            if former is not None:
                self._forget(former)
        for capability in instance.description.capabilities:
            latency = capability.expected_latency
            offered = Offered(
                instance,
                capability.name,
                f"{capability.name}@{capability.version}",
                Version.parse(capability.version),
                EFFECTS.get(capability.effect, "egress"),
                frozenset(capability.clearance),
                capability.cost,
                (latency.seconds + latency.nanos / 1e9) or DEFAULT_LATENCY,
                capability.input_schema,
                self._schemas.fields(capability.input_schema).may_drop,
                traits_of(capability),
            )
            instance.offers.append(offered)
            self.declare(instance.namespace, offered.label, capability.output_schema)
            self._by_capability.setdefault((instance.namespace, capability.name), []).append(offered)
        self._instances[instance.instance_id] = instance
        if instance.instance_id in self._breaking:
            self._breaking[instance.instance_id] = instance
        self._eligible.clear()
        self.pump(instance)
        if self.limits.waiting:
            self.limits.more(instance)
        if self._avoids:
            self._ask_again(instance)
            if former is not None:
                self._give_up_on(former)

    def detach(self, instance_id: str, away: bool = False) -> Instance | None:
        """Removes an instance; attempts still out to it stay with their runs. `away`: it may come back, and those who
        wait for it do so until it does, or its sidecar is given up."""
        instance = self._instances.pop(instance_id, None)
        if instance is not None:
            self._breaking.pop(instance_id, None)
            if instance.in_use:
                self._held[instance_id] = instance.in_use
            if away:
                instance.away = True
                self._away[instance_id] = instance
                self._eligible.clear()
            else:
                self._forget(instance)
                self._give_up_on(instance)
        return instance

    def give_up(self, incarnation: str) -> None:
        """Those of the sidecar that are away do not come back."""
        for instance in [one for one in self._away.values() if one.incarnation == incarnation]:
            del self._away[instance.instance_id]
            self._forget(instance)
            self._give_up_on(instance)

    def _forget(self, instance: Instance) -> None:
        for offered in instance.offers:
            entries = self._by_capability[instance.namespace, offered.name]
            entries.remove(offered)
            if not entries:
                del self._by_capability[instance.namespace, offered.name]
        self._eligible.clear()

    def window(self, instance_id: str, generation: int, slots: int) -> Instance | None:
        """Sets a window, unless a newer one is known. Returns the instance when the window now holds."""
        instance = self._instances.get(instance_id)
        if instance is None or generation < instance.window_generation:
            return None
        instance.window_generation, instance.slots = generation, slots
        instance.admit()
        self.pump(instance)
        return instance

    def drain(self, instance_id: str) -> None:
        """No more work for an instance."""
        if (instance := self._instances.get(instance_id)) is not None:
            instance.draining = True
            self._eligible.clear()

    def suspend(self, namespace: str, agent: str, suspended: bool) -> None:
        """Stops, or starts, new work for all instances of an agent."""
        (self._suspended.add if suspended else self._suspended.discard)((namespace, agent))
        self._eligible.clear()
        self.pump()

    def instances(self, namespace: str | None = None) -> Iterator[Instance]:
        return (i for i in self._instances.values() if namespace is None or i.namespace == namespace)

    def instance(self, instance_id: str) -> Instance | None:
        return self._instances.get(instance_id)

    def clearance(self, placement: Placement) -> frozenset[str]:
        """The labels that the capability which an attempt is out for may be given; none when its instance is gone."""
        instance = self._instances.get(placement.instance)
        offers = instance.offers if instance is not None else ()
        return next((offered.clearance for offered in offers if offered.label == placement.capability), frozenset())

    def offered(self, namespace: str, requirement: str, trait: str = "") -> bool:
        """Whether any live instance offers what a task asks for, and declares it pure or idempotent; for admission."""
        need = Need(namespace, requirement, (), 0.0, frozenset(), (), (trait,) if trait else ())
        if self._fit(need):
            return True
        wanted = Requirement.parse(requirement)
        offers = self._by_capability.get((namespace, wanted.name), ())
        return any(self._unfit(offered, need, wanted) == "breaker" for offered in offers)

    def demand(self, instance: Instance) -> int:
        """Attempts that are out to an instance or wait for one like it."""
        asked = {
            need
            for offered in instance.offers
            for need in self._asking.get((instance.namespace, offered.name), ())
            if self._unfit(offered, need, Requirement.parse(need.capability)) is None
        }
        return instance.in_use + sum(len(self._queues[need]) for need in asked)

    # Slots.

    def hold(self, instance_id: str) -> None:
        """Counts an attempt that is out already: recovered from the log, or adopted."""
        instance = self._instances.get(instance_id)
        if instance is not None:
            instance.in_use += 1
        else:
            self._held[instance_id] = self._held.get(instance_id, 0) + 1

    def give_back(
        self, instance_id: str, latency: float | None = None, failed: bool = False, failure: Failure | None = None
    ) -> None:
        """Returns a slot. `latency`: seconds from offer to outcome, when there was one; `failure`: why it failed."""
        instance = self._instances.get(instance_id)
        if instance is None:
            left = self._held.get(instance_id, 0) - 1
            if left > 0:
                self._held[instance_id] = left
            else:
                self._held.pop(instance_id, None)
            return
        instance.in_use -= 1
        if latency is not None:
            latency = max(0.0, latency)  # a clock that was set back would make the instance look better than any
            old = instance.latency
            instance.latency = latency if old is None else old + SMOOTHING * (latency - old)
            instance.completed += 1
            instance.failed += failed
            if failed or instance.breaker is not None:
                self._judge(instance, failure)
        elif (breaker := instance.breaker) is not None:
            breaker.allowed = instance.in_use + 1  # nothing was learnt: a half open one may try another
            instance.admit()
        if self._queues:
            self.pump(instance)

    # Breakers.

    @property
    def broken(self) -> int:
        """Instances whose breaker is open, or half open."""
        return len(self._breaking)

    def _judge(self, instance: Instance, failure: Failure | None) -> None:
        """Notes an outcome in the breaker of an instance, which it gets with the first failure that is its own."""
        kind = failure.kind if failure is not None and failure.kind in BLAMED else None
        breaker = instance.breaker
        if breaker is None:
            if kind is None:
                return
            schedule = self._schedule
            breaker = instance.breaker = Breaker(
                schedule.breaker_failures, schedule.breaker_share, self._pause, instance.completed - instance.failed
            )
        changed = breaker.note(kind, self._now())
        if breaker.idle:
            instance.breaker = None
        if changed:
            self._switch(instance, breaker)

    def _switch(self, instance: Instance, breaker: Breaker) -> None:
        if breaker.state == CLOSED:
            self._breaking.pop(instance.instance_id, None)
        else:
            self._breaking[instance.instance_id] = instance
            breaker.allowed = instance.in_use + 1
        instance.admit()
        self._eligible.clear()
        self.broke(instance)

    def due(self) -> int | None:
        """When `look` has something to do, in microseconds since 1970: a pause is over, or a rate has room again."""
        first = self.limits.due()
        for instance in self._breaking.values():
            breaker = instance.breaker
            if breaker is not None and breaker.state == OPEN and (first is None or breaker.until < first):
                first = breaker.until
        return first

    def look(self) -> None:
        """Does what is due by now."""
        self.limits.look()
        now = self._now()
        for instance in list(self._breaking.values()):
            breaker = instance.breaker
            if breaker is not None and breaker.look(now):
                self._switch(instance, breaker)
                self.pump(instance)

    # Choice.

    def place(
        self,
        need: Need,
        principal: str,
        principal_kind: str,
        payload: bytes,
        number: int,
        before: Waiter | None = None,
    ) -> Placement | Refused | Full | None:
        """A reserved place for an attempt, a refusal, or None when it has to wait for a slot; Full when it has to wait
        for limits, or for slots of some agents only.

        `number`: of the attempt, from 1. `before`: as what it has waited, when a limit called it up.
        """
        if before is None and self._queues and need in self._queues:
            return None  # others came first
        eligible = self._fit(need)
        if len(eligible) > FEW and (two := self._draw(eligible)):
            result = self._first(eligible, two, need, principal, principal_kind, payload, number, before)
            if isinstance(result, Placement):
                return result
        open_entries = [o for o in eligible if o.instance.usable > o.instance.in_use]
        if not open_entries and before is None:
            return None
        if len(open_entries) > 1:
            open_entries.sort(key=Offered.score)
        result = self._first(eligible, open_entries, need, principal, principal_kind, payload, number, before)
        if isinstance(result, Full):
            return self._otherwise(result, need, principal, principal_kind, payload, number, before)
        return result

    def _draw(self, eligible: list[Offered]) -> list[Offered]:
        """Two with a free slot by chance, the better one first; none when they are hard to find."""
        first: Offered | None = None
        for _ in range(DRAWS):
            drawn = eligible[random.randrange(len(eligible))]
            if drawn.instance.usable <= drawn.instance.in_use or drawn is first:
                continue
            if first is None:
                first = drawn
            else:
                return [first, drawn] if first.score() <= drawn.score() else [drawn, first]
        return []

    def _first(
        self,
        eligible: list[Offered],
        entries: list[Offered],
        need: Need,
        principal: str,
        principal_kind: str,
        payload: bytes,
        number: int,
        before: Waiter | None,
        waited: bool = False,
        full: Full | None = None,
    ) -> Placement | Full:
        """The first of these candidates, which have slots, that policy and limits let have the task; or why none has
        it, after the reasons that are known. It may have `waited` for the slot of all of them."""
        for index, offered in enumerate(entries):
            result = self._decide(offered, need, principal, principal_kind, payload, number)
            reason: LimitCounter | Decision | Refused
            if isinstance(result, Permit):
                agent = offered.instance.agent
                counter = self.limits.full(result, need, agent, before, waited) if result.limits else None
                if counter is None:
                    why = self._describe(eligible, entries[index + 1 :], offered, full)
                    placed = self._placement(offered, result, why, payload)
                    if isinstance(placed, Placement):
                        if result.limits:
                            self.limits.take(result, need, agent)
                        offered.instance.in_use += 1
                        return placed
                    reason = placed  # for this one; another may do without what it is not to have
                else:
                    reason = counter
            else:
                reason = result
            full = full or Full()
            full.add(offered, reason)
            if len(full.counters) >= FEW:
                break
        return full or Full()

    def _otherwise(
        self,
        full: Full,
        need: Need,
        principal: str,
        principal_kind: str,
        payload: bytes,
        number: int,
        before: Waiter | None,
    ) -> Placement | Refused | Full | None:
        """What becomes of a task that nobody of those looked at may have: one that was passed over gets it, or it waits
        for those who may have it, once they are not busy, broken or stopped any more, and for limits. Only when there
        are neither, it fails."""
        requirement = Requirement.parse(need.capability)
        candidates = self._suited(need)
        others = [offered for offered in candidates if offered not in full.refused]
        if full.counters and len(others) > FEW:  # who waits for a limit need not know all, but those who do least
            others = heapq.nsmallest(FEW, others, key=lambda offered: offered.instance.in_use)
        for offered in others:
            result = self._decide(offered, need, principal, principal_kind, payload, number)
            reason: LimitCounter | Decision | Refused | None = None
            if isinstance(result, Permit):
                if result.limits:
                    reason = self.limits.full(result, need, offered.instance.agent, before, False)
                if reason is None and (offered.may_drop or result.redactions):
                    reduced = self._reduce(offered, result, payload)
                    reason = reduced if isinstance(reduced, Refused) else None
            else:
                reason = result
            if reason is None and self._unfit(offered, need, requirement) is None and offered.instance.free > 0:
                return self._first(
                    candidates, [offered], need, principal, principal_kind, payload, number, before, full=full
                )
            if reason is None:
                full.wait_for(candidates)
                break
            full.add(offered, reason)
        if full.counters or full.hope:
            return full if full.refused else None
        return full.refusal

    def take(
        self,
        offered: Offered,
        need: Need,
        principal: str,
        principal_kind: str,
        payload: bytes,
        number: int,
        before: Waiter,
    ) -> Placement | Refused | Full | None:
        """Turns a slot that was reserved for a waiter into its place; when it may not be used, it is given back, and
        the task placed anew: as `place`."""
        instance, requirement = offered.instance, Requirement.parse(need.capability)
        full: Full | None = None
        if self._instances.get(instance.instance_id) is instance and self._unfit(offered, need, requirement) is None:
            entries = [offered]
            if len(instance.offers) > 1:
                entries += [
                    other
                    for other in instance.offers
                    if other.name == offered.name
                    and other is not offered
                    and self._unfit(other, need, requirement) is None
                ]
            instance.in_use -= 1
            eligible = self._fit(need)
            result = self._first(eligible, entries, need, principal, principal_kind, payload, number, before, True)
            if isinstance(result, Placement):
                return result
            instance.in_use += 1
            full = result
        self.give_back(instance.instance_id)
        others = [o for o in self._fit(need) if o.instance.free > 0 and o.instance is not instance]
        others.sort(key=Offered.score)
        result = self._first(others, others, need, principal, principal_kind, payload, number, before, full=full)
        if isinstance(result, Full):
            return self._otherwise(result, need, principal, principal_kind, payload, number, before)
        return result

    def rehearse(
        self, need: Need, principal: str, principal_kind: str, payload: bytes, number: int
    ) -> list[tuple[Offered, Placement]]:
        """Where an attempt might go if all had slots, one instance of each version; nothing is reserved."""
        found: dict[str, tuple[Offered, Placement]] = {}
        for offered in self._fit(need):
            if offered.label not in found:
                result = self._decide(offered, need, principal, principal_kind, payload, number)
                placed = self._placement(offered, result, b"", payload) if isinstance(result, Permit) else None
                if isinstance(placed, Placement):
                    found[offered.label] = offered, placed
        return list(found.values())

    def _placement(self, offered: Offered, permit: Permit, why: bytes, payload: bytes) -> Placement | Refused:
        """The place as it is recorded, with the input as it is handed on; a refusal when that cannot be made."""
        instance = offered.instance
        recorded = permit.recorded + why
        placement = Placement(instance.agent, instance.instance_id, offered.label, recorded, permit.epoch)
        if permit.logged:
            log_use(permit.decision, "dispatch", f"{offered.label} on {instance.agent}")
        if offered.may_drop or permit.redactions:
            reduced = self._reduce(offered, permit, payload)
            if isinstance(reduced, Refused):
                return reduced
            if reduced is not None:
                told = run_pb2.RoutingDecision(withheld_count=reduced.count)
                for pointer, reason in reduced.withheld:
                    told.withheld.add(pointer=pointer, reason=reason)
                placement.decision = recorded + told.SerializeToString()
                placement.reduced_input = reduced.payload
        return placement

    def _describe(self, eligible: list[Offered], others: list[Offered], chosen: Offered, full: Full | None) -> bytes:
        """What a routing decision says of this one choice, serialised; expected times to a ten-thousandth second."""
        score = round(chosen.score(), 4)
        alone = len(eligible) == 1 and full is None and not self._breaking
        if alone and (known := self._alone.get(score)) is not None:
            return known
        decision = run_pb2.RoutingDecision()
        decision.score = score
        decision.considered = len(eligible)
        for other in others[:OTHERS_RECORDED]:
            decision.others.add(
                instance=other.instance.instance_id, score=other.score(), free_slots=max(0, other.instance.free)
            )
        # Of many candidates two were drawn; to count the rest would cost what drawing saves.
        if 1 < len(eligible) <= FEW:
            busy = sum(1 for o in eligible if o is not chosen and o.instance.free <= 0)
            if busy:
                decision.refusals.add(reason="no_slot", count=busy)
        for reason, count in sorted(Counter(full.refused.values()).items()) if full is not None else ():
            decision.refusals.add(reason=reason, count=count)
        if self._breaking and (broken := self._count_broken(chosen)):
            decision.refusals.add(reason="breaker", count=broken)
        result: bytes = decision.SerializeToString()
        if alone:
            if len(self._alone) >= 4096:
                self._alone.clear()
            self._alone[score] = result
        return result

    def _count_broken(self, chosen: Offered) -> int:
        """Instances that offer the same version as the chosen one, and get nothing since their breaker is open."""
        return sum(
            1
            for instance in self._breaking.values()
            if instance.namespace == chosen.instance.namespace
            and instance.breaker_state == OPEN
            and any(offered.label == chosen.label for offered in instance.offers)
        )

    def explain(self, need: Need, task: TaskKey | None = None) -> run_pb2.RoutingDecision:
        """What placement says now of a task that waits; without one, of any that asks for this."""
        result = run_pb2.RoutingDecision(capability=need.capability)
        refusals: dict[str, int] = {}
        requirement = Requirement.parse(need.capability)
        everything = self._by_capability.get((need.namespace, requirement.name), [])
        avoid = self._avoids.get(task, {}) if task is not None else {}
        for offered in everything:
            instance = offered.instance
            refused = avoid.get(instance.agent, avoid.get(instance.instance_id))
            reason = self._unfit(offered, need, requirement) or refused
            if reason is None and instance.free <= 0:
                reason = "breaker" if instance.breaker_state == HALF_OPEN else "no_slot"
            if reason is None:
                result.others.add(instance=instance.instance_id, score=offered.score())
            else:
                refusals[reason] = refusals.get(reason, 0) + 1
        result.considered = len(everything)
        for name, number in sorted(refusals.items()):
            result.refusals.add(reason=name, count=number)
        waits_for = self._waiting[task][0] if task in self._waiting else need
        ahead = len(self._queues.get(waits_for, ()))
        if task is not None and (limited := self.limits.explain(task)):
            result.summary = limited
        elif all(offered.instance.away for offered in everything):
            offered_names = [of[1] for of, some in self._by_capability.items() if some and of[0] == need.namespace]
            near = get_close_matches(requirement.name, offered_names, 1, 0.8)
            hint = f"did you mean {near[0]}?" if near else "start an agent that does"
            result.summary = f"nobody offers {need.capability}; {hint}"
        elif result.others:
            result.summary = f"{result.others[0].instance} fits and has free slots"
        elif refusals.get("no_slot", 0):
            busy = "all agents that may have it are busy" if avoid else "all fitting agents are busy"
            result.summary = f"{busy}; {ahead} tasks wait for them"
        elif refusals.get("breaker", 0):
            result.summary = next(
                f"{o.instance.instance_id} gets nothing for now: {o.instance.breaker.reason}"
                for o in everything
                if o.instance.breaker is not None and o.instance.breaker_state != CLOSED
            )
        else:
            result.summary = "no agent fits: " + ", ".join(f"{n} by {r}" for r, n in sorted(refusals.items()))
        return result

    # Waiting.

    def pump(self, instance: Instance | None = None) -> None:
        """Reserves free slots for those who wait, whatever they wait for in their order, and hands them over.

        `instance`: the one whose slots came free, None for any.
        """
        if instance is None:
            names = list(self._asking)
        else:
            names = list({(instance.namespace, offered.name): None for offered in instance.offers})
        heads = [first for name in names if (first := self._take_first(name)) is not None]
        heapq.heapify(heads)
        passed: list[First] = []
        given: list[tuple[Waiter, Offered]] = []
        while heads and (instance is None or instance.usable > instance.in_use):
            first = heapq.heappop(heads)
            waiter, _, need = first
            waits = self._waits(waiter)
            free = self._free(need, instance) if waits else []
            if waits and not free:
                passed.append(first)
            else:
                if free:
                    best = free[0] if len(free) == 1 else min(free, key=Offered.score)
                    best.instance.in_use += 1
                    key = (waiter.run_id, waiter.task, waiter.member)
                    del self._waiting[key]
                    self._avoids.pop(key, None)
                    given.append((waiter, best))
                else:
                    self._left[need] -= 1
                queue = self._queues[need]
                heapq.heappop(queue)
                if len(queue) > self._left.get(need, 0):
                    self._put_first(need)
                else:
                    self._end_queue(need)
            if (following := self._take_first(asked(need))) is not None:
                heapq.heappush(heads, following)
        for first in (*heads, *passed):
            self._put_back(first)
        for waiter, best in given:
            self.deliver(waiter, best)

    def _free(self, need: Need, instance: Instance | None) -> list[Offered]:
        """Candidates with a free slot. Of many only the one whose slot came free: nobody waits beside another."""
        eligible = self._fit(need)
        if instance is None or len(eligible) <= FEW:
            return [o for o in eligible if o.instance.usable > o.instance.in_use]
        if instance.usable <= instance.in_use:
            return []
        name, requirement = asked(need)[1], Requirement.parse(need.capability)
        return [o for o in instance.offers if o.name == name and self._unfit(o, need, requirement) is None]

    def _fit(self, need: Need) -> list[Offered]:
        eligible = self._eligible.get(need)
        if eligible is None:
            if len(self._eligible) >= 8192 + 2 * len(self._queues):
                self._eligible.clear()
            requirement = Requirement.parse(need.capability)
            eligible = self._eligible[need] = [
                offered
                for offered in self._by_capability.get((need.namespace, requirement.name), [])
                if self._unfit(offered, need, requirement) is None
            ]
        return eligible

    def _unfit(self, offered: Offered, need: Need, requirement: Requirement) -> str | None:
        """The first hard filter that an instance fails."""
        instance = offered.instance
        if not requirement.matches(offered.version):
            return "version"
        if instance.away:
            return "away"
        if (instance.namespace, instance.agent) in self._suspended:
            return "suspended"
        if instance.draining:
            return "draining"
        if instance.breaker is not None and instance.breaker.state == OPEN:
            return "breaker"
        return self._unsuited(offered, need)
