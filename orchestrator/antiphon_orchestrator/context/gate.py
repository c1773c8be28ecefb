"""Policy before every entry: who may read or write it. A decision that demands more than a log line is a denial, since
nothing here could carry it out."""

from __future__ import annotations

from antiphon.v1 import context_pb2
from antiphon.v1.error_pb2 import ErrorReason

from ..api.errors import ApiError, Violation, request_invalid
from ..audit import AuditLog
from ..policy import Action, Decision, PolicyPort, Request
from .rules import Scope, ScopeUnnamed, Standing

NO_LABELS: frozenset[str] = frozenset()


class Gate:
    """`audit` gets a row for each refusal; what was permitted stands in the entry's own provenance."""

    def __init__(self, policy: PolicyPort, audit: AuditLog) -> None:
        self._policy = policy
        self._audit = audit

    def scope(self, message: context_pb2.ContextScope, who: Standing, field: str = "scope") -> Scope:
        """The scope that is meant. Raises ApiError (REQUEST_INVALID) for one that must be named and is not."""
        try:
            return Scope.of(message, who)
        except ScopeUnnamed as unnamed:
            missing = "name it: only a task can leave out that it means its own"
            raise request_invalid([Violation(f"{field}.{unnamed.field}", missing)]) from None

    def may_read(self, who: Standing, scope: Scope, key: str, labels: frozenset[str]) -> bool:
        """Whether an entry may be shown; one of many, so a refusal is no event."""
        return _permits(self._decide(Action.READ_CONTEXT, who, scope, key, labels)[1])

    def read(self, who: Standing, scope: Scope, key: str, labels: frozenset[str]) -> None:
        """Raises ApiError (POLICY_DENIED)."""
        self._permit(Action.READ_CONTEXT, who, scope, key, labels)

    def write(self, who: Standing, scope: Scope, key: str, labels: frozenset[str] = NO_LABELS) -> str:
        """The id of the decision that permits it. Raises ApiError (POLICY_DENIED)."""
        return self._permit(Action.WRITE_CONTEXT, who, scope, key, labels)

    def _permit(self, action: Action, who: Standing, scope: Scope, key: str, labels: frozenset[str]) -> str:
        request, decision = self._decide(action, who, scope, key, labels)
        if not _permits(decision):
            self._audit.record(request, decision)
            demands = ", ".join(one.name for one in decision.obligations if one.name != "log")
            cause = f"the policy demands {demands}, which is not possible here" if decision.allowed else decision.reason
            raise ApiError(
                ErrorReason.ERROR_REASON_POLICY_DENIED,
                action=action.value,
                decision_id=decision.decision_id,
                cause=cause,
            )
        return decision.decision_id

    def _decide(
        self, action: Action, who: Standing, scope: Scope, key: str, labels: frozenset[str]
    ) -> tuple[Request, Decision]:
        request = Request.entry(
            action,
            who.principal,
            who.principal_kind,
            who.namespace,
            scope.resource,
            key,
            labels=labels,
            agent=who.agent,
            own=scope.own(who),
        )
        return request, self._policy.decide_batch((request,))[0]


def _permits(decision: Decision) -> bool:
    return decision.allowed and all(one.name == "log" for one in decision.obligations)
