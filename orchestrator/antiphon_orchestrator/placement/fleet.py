"""The live instances of agents with their slots, and the choice among them.

A choice is a pure look-up over memory: hard filters first (kept per kind of request until the fleet changes), then the
lowest expected time among those with a free slot, then policy. It reserves the slot at once, so that a turn can place
many tasks; whoever ends an attempt gives the slot back. Tasks that find no slot wait here in order of priority, then
deadline, then arrival; capacity that comes free is reserved for the first of them and handed to its shard.

Never: I/O, waiting, or a placement without a policy decision.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import count

from antiphon.v1 import capability_pb2, run_pb2

from .. import telemetry
from ..admission import Reduced, Requirement, SchemaSet, SchemaViolation, Unusable, Values, Version
from ..engine.events import Placement
from ..engine.failure import Failure, FailureKind
from ..policy import Decision, PolicyPort, Request
from .candidates import DEFAULT_LATENCY, Instance, Need, Offered, Permit, Refused, Waiter
from .hedging import Hedging
from .results import Results

__all__ = ["Fleet", "Instance", "Need", "Offered", "Refused", "Waiter", "log_use"]

log = telemetry.logger("policy")

OTHERS_RECORDED = 8
"""Candidates besides the chosen one that a routing decision names (protocol.md §10)."""

SMOOTHING = 0.2
"""Weight of the newest latency in the exponentially weighted mean."""

EFFECTS = {0: "egress", 1: "pure", 2: "read", 3: "write", 4: "egress"}
"""antiphon.v1.Effect for policy; undeclared counts as the strictest."""


NO_LABELS: frozenset[str] = frozenset()


class Fleet:
    """All live instances of one orchestrator. `deliver(waiter, offered)` hands a slot to a shard, for its next turn."""

    def __init__(self, policy: PolicyPort, schemas: SchemaSet) -> None:
        self._policy = policy
        self._schemas = schemas
        self._instances: dict[str, Instance] = {}
        self._by_capability: dict[tuple[str, str], list[Offered]] = {}
        self._eligible: dict[Need, list[Offered]] = {}
        self._queues: dict[Need, list[Waiter]] = {}
        # Needs with a queue by what they ask for: a slot that comes free looks at those that its instance can meet.
        self._asking: dict[tuple[str, str], dict[Need, None]] = {}
        self._waiting: dict[tuple[str, int, int], tuple[Need, Waiter]] = {}
        self._left: dict[Need, int] = {}
        self._held: dict[str, int] = {}
        self._suspended: set[tuple[str, str]] = set()
        self._decisions: dict[str, run_pb2.PolicyDecision] = {}
        self._outputs: dict[tuple[str, str], str] = {}
        self._labelling: set[tuple[str, str]] = set()
        self._releases: dict[tuple[str, str, str, frozenset[str]], Permit] = {}
        # What is said of a choice without alternatives, by its score.
        self._alone: dict[float, bytes] = {}
        self._arrivals = count()
        self.deliver: Callable[[Waiter, Offered], None] = lambda waiter, offered: None
        self.hedging = Hedging()
        self.results = Results()

    @property
    def values(self) -> Values:
        """The payloads that were looked into, shared with whoever else looks."""
        return self._schemas.values

    # Instances.

    def attach(self, instance: Instance) -> None:
        """Adds an instance, or replaces the one of the same id. Attempts adopted before it came count as in use."""
        former = self._instances.get(instance.instance_id)
        if former is not None:
            instance.in_use, instance.latency = former.in_use, former.latency
            instance.completed, instance.failed = former.completed, former.failed
            self._forget(former)
        else:
            instance.in_use = self._held.pop(instance.instance_id, 0)
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
                _traits(capability),
            )
            instance.offers.append(offered)
            self.declare(instance.namespace, offered.label, capability.output_schema)
            self._by_capability.setdefault((instance.namespace, capability.name), []).append(offered)
        self._instances[instance.instance_id] = instance
        self._eligible.clear()
        self.pump(instance)

    def detach(self, instance_id: str) -> Instance | None:
        """Removes an instance; attempts still out to it stay with their runs."""
        instance = self._instances.pop(instance_id, None)
        if instance is not None:
            self._forget(instance)
            if instance.in_use:
                self._held[instance_id] = instance.in_use
        return instance

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

    def offered(self, namespace: str, requirement: str, trait: str = "") -> bool:
        """Whether any live instance offers what a task asks for, and declares it pure or idempotent; for admission."""
        traits = (trait,) if trait else ()
        return bool(self._fit(Need(namespace, requirement, (), 0.0, frozenset(), (), traits)))

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

    def give_back(self, instance_id: str, latency: float | None = None, failed: bool = False) -> None:
        """Returns a slot. `latency`: seconds from offer to outcome, when there was one."""
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
        if self._queues:
            self.pump(instance)

    # Choice.

    def place(
        self, need: Need, principal: str, principal_kind: str, payload: bytes, number: int
    ) -> Placement | Refused | None:
        """A reserved place for an attempt, a refusal, or None when it has to wait. `number`: of the attempt, from 1."""
        if self._queues and need in self._queues:
            return None  # others came first
        eligible = self._fit(need)
        open_entries = [o for o in eligible if o.instance.slots > o.instance.in_use]
        if not open_entries:
            return None
        if len(open_entries) > 1:
            open_entries.sort(key=Offered.score)
        denied: Decision | None = None
        unfit: Refused | None = None
        for index, offered in enumerate(open_entries):
            result = self._decide(offered, need, principal, principal_kind, payload, number)
            if isinstance(result, Refused):
                return result
            if isinstance(result, Decision):
                denied = result
                continue
            why = self._describe(eligible, open_entries[index + 1 :], offered, index)
            placed = self._placement(offered, result, why, payload)
            if isinstance(placed, Refused):
                unfit = placed  # for this one; another may do without what it is not to have
                continue
            offered.instance.in_use += 1
            return placed
        if denied is None:
            return unfit
        return Refused(Failure(FailureKind.POLICY, denied.reason, denied.decision_id, retryable=False))

    def take(
        self, offered: Offered, need: Need, principal: str, principal_kind: str, payload: bytes, number: int
    ) -> Placement | Refused | None:
        """Turns a slot that was reserved for a waiter into its place; gives the slot back when it may not be used.

        None: the instance has gone, drains or was suspended since, and the task has to be placed anew.
        """
        instance = offered.instance
        if offered not in self._fit(need):
            self.give_back(instance.instance_id)
            return None
        result = self._decide(offered, need, principal, principal_kind, payload, number)
        if isinstance(result, Permit):
            placed = self._placement(offered, result, self._describe(self._fit(need), [], offered, 0), payload)
            if isinstance(placed, Refused):
                self.give_back(instance.instance_id)
            return placed
        self.give_back(instance.instance_id)
        if isinstance(result, Decision):
            return Refused(Failure(FailureKind.POLICY, result.reason, result.decision_id, retryable=False))
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

    def _reduce(self, offered: Offered, permit: Permit, payload: bytes) -> Reduced | Refused | None:
        try:
            reduced = self._schemas.reduce(offered.input_schema, payload, permit.redactions, _demanding(permit))
        except Unusable as unusable:
            if not permit.redactions:
                message = f"what {offered.label} declares of the input cannot be told: it {unusable}"
                return Refused(Failure(FailureKind.INVALID_INPUT, message, retryable=False))
            message = f"policy {_demanding(permit)} demands redaction, but the input {unusable}"
            return Refused(Failure(FailureKind.POLICY, message, permit.decision.decision_id, retryable=False))
        if reduced is not None and permit.redactions:
            violation = self.check_input(offered, reduced.payload)
            if violation is not None:
                message = (
                    f"policy {_demanding(permit)} redacts what {offered.label} cannot do without: {violation.message}"
                )
                return Refused(Failure(FailureKind.POLICY, message, permit.decision.decision_id, retryable=False))
        return reduced

    def _decide(
        self, offered: Offered, need: Need, principal: str, principal_kind: str, payload: bytes, number: int
    ) -> Permit | Decision | Refused:
        """The permit with what it adds to a routing decision; a denial; or an input that does not fit."""
        violation = self.check_input(offered, payload)
        if violation is not None:
            message = f"the input does not fit {offered.label}: {violation.message}"
            return Refused(Failure(FailureKind.INVALID_INPUT, message, retryable=False, field=violation.pointer))
        labels = self._received(offered, need) if need.parts else need.labels
        key = (principal, labels, number)
        permit = offered.permits.get(key)
        if permit is None or permit.epoch != self._policy.epoch:
            if len(offered.permits) >= 4096:
                offered.permits.clear()
            request = Request.dispatch(
                principal,
                principal_kind,
                need.namespace,
                offered.name,
                version=str(offered.version),
                effect=offered.effect,
                labels=labels,
                agent=offered.instance.agent,
                agent_clearance=offered.clearance,
                attempt=number,
            )
            decision = self._policy.decide_batch((request,))[0]
            template = run_pb2.RoutingDecision(
                chosen=offered.instance.instance_id, capability=offered.label, policy=self.policy_message(decision)
            )
            permit = offered.permits[key] = Permit(decision, template.SerializeToString())
        return permit if permit.allowed else permit.decision

    def check_input(self, offered: Offered, payload: bytes) -> SchemaViolation | None:
        return self._schemas.check(offered.input_schema, payload) if offered.input_schema else None

    def declare(self, namespace: str, label: str, output_schema: str) -> None:
        """Makes an output schema known; also of a capability whose agents are away while outcomes still come."""
        self._outputs[namespace, label] = output_schema
        if output_schema and self._schemas.fields(output_schema).all_labels:
            self._labelling.add((namespace, label))
        else:
            self._labelling.discard((namespace, label))

    def check_output(self, namespace: str, label: str, payload: bytes) -> SchemaViolation | None:
        """What an output of `label` (name@version) breaks of its schema."""
        schema = self._outputs.get((namespace, label))
        return self._schemas.check(schema, payload) if schema else None

    def output_schema(self, namespace: str, label: str) -> str:
        """That of `label`, empty when it accepts anything, or is not known."""
        return self._outputs.get((namespace, label), "")

    def label_output(self, namespace: str, label: str, payload: bytes) -> bytes:
        """An output of `label` that fits its schema, with the labels that the schema declares."""
        if not self._labelling or (namespace, label) not in self._labelling:
            return payload
        return self._schemas.label(self._outputs[namespace, label], payload)

    def released(self, permit: Permit, namespace: str, label: str, payload: bytes) -> bytes | str | None:
        """An output as a run's principal may have it; None when that is all of it, a text when it cannot be made."""
        try:
            schema = self._outputs.get((namespace, label), "")
            reduced = self._schemas.strike(schema, payload, permit.redactions, _demanding(permit))
        except Unusable as unusable:
            return f"policy {_demanding(permit)} demands redaction, but the output {unusable}"
        return None if reduced is None else reduced.payload

    def may_release(
        self, principal: str, principal_kind: str, namespace: str, capability: str, labels: frozenset[str]
    ) -> Permit:
        """Whether a run's principal may have an output with these labels."""
        key = (principal, namespace, capability, labels)
        known = self._releases.get(key)
        if known is None or known.epoch != self._policy.epoch:
            if len(self._releases) >= 8192:
                self._releases.clear()
            request = Request.release(principal, principal_kind, namespace, capability, labels=labels)
            decision = self._policy.decide_batch((request,))[0]
            known = self._releases[key] = Permit(decision, self.policy_message(decision).SerializeToString())
        if known.logged:
            log_use(known.decision, "release", capability)
        return known

    def may_call(
        self, principal: str, principal_kind: str, namespace: str, capability: str, agent: str, labels: frozenset[str]
    ) -> Decision:
        """Whether an agent may ask for a capability on behalf of a run's principal."""
        request = Request.call(principal, principal_kind, namespace, capability, agent=agent, labels=labels)
        decision = self._policy.decide_batch((request,))[0]
        if decision.logged:
            log_use(decision, "call", capability)
        return decision

    def labels(self, payload: bytes) -> frozenset[str]:
        """Keys of all labels of a serialised payload."""
        return self._schemas.values.known(payload).label_keys if payload else NO_LABELS

    def label_parts(self, payload: bytes) -> tuple[tuple[str, frozenset[str]], ...]:
        """`Need.parts` of a serialised payload."""
        return self._schemas.values.known(payload).label_parts()

    def _received(self, offered: Offered, need: Need) -> frozenset[str]:
        """The labels of what the agent would get."""
        fields = self._schemas.fields(offered.input_schema)
        of_parts = {key for _, keys in need.parts for key in keys}
        received = {key for pointer, keys in need.parts if fields.may_receive(pointer) for key in keys}
        return frozenset((need.labels - of_parts) | received)

    def policy_message(self, decision: Decision) -> run_pb2.PolicyDecision:
        """The decision as it is recorded; equal decisions share one message."""
        message = self._decisions.get(decision.decision_id)
        if message is None:
            if len(self._decisions) >= 8192:
                self._decisions.clear()
            message = self._decisions[decision.decision_id] = run_pb2.PolicyDecision(
                decision_id=decision.decision_id,
                epoch=decision.epoch,
                permit=decision.allowed,
                policies=decision.policies,
                obligations=[o.name + (f"({','.join(o.params)})" if o.params else "") for o in decision.obligations],
                # What permits says the list of policies; only a denial needs words.
                reason="" if decision.allowed else decision.reason,
            )
        return message

    def _describe(self, eligible: list[Offered], others: list[Offered], chosen: Offered, denied: int) -> bytes:
        """What a routing decision says of this one choice, serialised; expected times to a ten-thousandth second."""
        score = round(chosen.score(), 4)
        alone = len(eligible) == 1 and not denied
        if alone and (known := self._alone.get(score)) is not None:
            return known
        decision = run_pb2.RoutingDecision()
        decision.score = score
        decision.considered = len(eligible)
        for other in others[:OTHERS_RECORDED]:
            decision.others.add(
                instance=other.instance.instance_id, score=other.score(), free_slots=max(0, other.instance.free)
            )
        if len(eligible) > 1:
            busy = sum(1 for o in eligible if o is not chosen and o.instance.free <= 0)
            if busy:
                decision.refusals.add(reason="no_slot", count=busy)
        if denied:
            decision.refusals.add(reason="policy", count=denied)
        result: bytes = decision.SerializeToString()
        if alone:
            if len(self._alone) >= 4096:
                self._alone.clear()
            self._alone[score] = result
        return result

    def explain(self, need: Need) -> run_pb2.RoutingDecision:
        """What placement says now of a task that waits."""
        result = run_pb2.RoutingDecision(capability=need.capability)
        refusals: dict[str, int] = {}
        everything = self._by_capability.get((need.namespace, Requirement.parse(need.capability).name), [])
        for offered in everything:
            reason = self._unfit(offered, need, Requirement.parse(need.capability))
            if reason is None and offered.instance.free <= 0:
                reason = "no_slot"
            if reason is None:
                result.others.add(instance=offered.instance.instance_id, score=offered.score())
            else:
                refusals[reason] = refusals.get(reason, 0) + 1
        result.considered = len(everything)
        for name, number in sorted(refusals.items()):
            result.refusals.add(reason=name, count=number)
        ahead = len(self._queues.get(need, ()))
        if not everything:
            offered_names = [name for (of, name), some in self._by_capability.items() if some and of == need.namespace]
            near = get_close_matches(Requirement.parse(need.capability).name, offered_names, 1, 0.8)
            hint = f"did you mean {near[0]}?" if near else "start an agent that does"
            result.summary = f"nobody offers {need.capability}; {hint}"
        elif refusals.get("no_slot", 0):
            result.summary = f"all fitting agents are busy; {ahead} tasks wait for them"
        else:
            result.summary = "no agent fits: " + ", ".join(f"{n} by {r}" for r, n in sorted(refusals.items()))
        return result

    # Waiting.

    def wait(self, need: Need, priority: int, deadline: int, shard: int, run_id: str, task: int, member: int) -> None:
        """Puts a task into the queue of its need, until a slot comes for it or it leaves."""
        self.leave(run_id, task, member)
        waiter = Waiter(-priority, deadline, next(self._arrivals), shard, run_id, task, member)
        self._waiting[run_id, task, member] = (need, waiter)
        queue = self._queues.get(need)
        if queue is None:
            queue = self._queues[need] = []
            self._asking.setdefault(_asked(need), {})[need] = None
        heapq.heappush(queue, waiter)

    def leave(self, run_id: str, task: int, member: int) -> None:
        """A task that wants no slot any more, if it waited for one; else what nobody offers is waited for for ever."""
        found = self._waiting.pop((run_id, task, member), None)
        if found is None:
            return
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

    def _waits(self, waiter: Waiter) -> bool:
        found = self._waiting.get((waiter.run_id, waiter.task, waiter.member))
        return found is not None and found[1] is waiter

    def _end_queue(self, need: Need) -> None:
        del self._queues[need]
        self._left.pop(need, None)
        asking = self._asking[_asked(need)]
        del asking[need]
        if not asking:
            del self._asking[_asked(need)]

    def pump(self, instance: Instance | None = None) -> None:
        """Reserves free slots for those who wait, whatever they wait for in their order, and hands them over.

        `instance`: the one whose slots came free, None for any.
        """
        needs: Iterable[Need] = self._queues
        if instance is not None:
            names = {(instance.namespace, offered.name): None for offered in instance.offers}
            needs = [need for name in names for need in self._asking.get(name, ())]
        heads = [(self._queues[need][0], need) for need in needs]
        heapq.heapify(heads)
        while heads:
            waiter, need = heads[0]
            best: Offered | None = None
            if self._waits(waiter):
                free = [o for o in self._fit(need) if o.instance.slots > o.instance.in_use]
                if not free:
                    heapq.heappop(heads)
                    continue
                best = free[0] if len(free) == 1 else min(free, key=Offered.score)
                best.instance.in_use += 1
                del self._waiting[waiter.run_id, waiter.task, waiter.member]
            else:
                self._left[need] -= 1
            queue = self._queues[need]
            heapq.heappop(queue)
            if queue:
                heapq.heapreplace(heads, (queue[0], need))
            else:
                heapq.heappop(heads)
                self._end_queue(need)
            if best is not None:
                self.deliver(waiter, best)

    def _fit(self, need: Need) -> list[Offered]:
        eligible = self._eligible.get(need)
        if eligible is None:
            if len(self._eligible) >= 8192:
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
        if (instance.namespace, instance.agent) in self._suspended:
            return "suspended"
        if instance.draining:
            return "draining"
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


def _traits(capability: capability_pb2.Capability) -> frozenset[str]:
    pure = EFFECTS.get(capability.effect) == "pure"
    return frozenset((["pure"] if pure else []) + (["idempotent"] if pure or capability.idempotent else []))


def _demanding(permit: Permit) -> str:
    """The ids of the policies that demand the redactions of a permit."""
    return ", ".join(permit.decision.redacting)


def log_use(decision: Decision, action: str, what: str) -> None:
    """What the obligation `log` demands: a line for each use of a permit."""
    log.info(
        "policy_used",
        action=action,
        source=what,
        decision_id=decision.decision_id,
        policies=",".join(decision.policies),
        epoch=decision.epoch,
    )


def _asked(need: Need) -> tuple[str, str]:
    """Namespace and name of the capability that is asked for."""
    return need.namespace, need.capability.partition("@")[0]
