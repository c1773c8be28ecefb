"""What policies and schemas say of a candidate, of an output and of a call, kept for as long as it holds.

Never: a choice among candidates, or anything about slots.
"""

from __future__ import annotations

from antiphon.v1 import capability_pb2, run_pb2

from .. import telemetry
from ..admission import Reduced, SchemaSet, SchemaViolation, Unusable, Values
from ..engine.failure import Failure, FailureKind
from ..policy import Decision, PolicyPort, Request
from .candidates import Need, Offered, Permit, Refused

log = telemetry.logger("policy")

EFFECTS = {0: "egress", 1: "pure", 2: "read", 3: "write", 4: "egress"}
"""antiphon.v1.Effect for policy; undeclared counts as the strictest."""

NO_LABELS: frozenset[str] = frozenset()


def traits_of(capability: capability_pb2.Capability) -> frozenset[str]:
    """What a capability is declared to be: pure, idempotent, or both."""
    pure = EFFECTS.get(capability.effect) == "pure"
    return frozenset((["pure"] if pure else []) + (["idempotent"] if pure or capability.idempotent else []))


class Permits:
    """The part of a fleet that asks policies and schemas. One permit is asked for once in a policy epoch."""

    def __init__(self, policy: PolicyPort, schemas: SchemaSet) -> None:
        self._policy = policy
        self._schemas = schemas
        self._decisions: dict[str, run_pb2.PolicyDecision] = {}
        self._outputs: dict[tuple[str, str], str] = {}
        self._labelling: set[tuple[str, str]] = set()
        self._releases: dict[tuple[str, str, str, frozenset[str]], Permit] = {}

    @property
    def values(self) -> Values:
        """The payloads that were looked into, shared with whoever else looks."""
        return self._schemas.values

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
