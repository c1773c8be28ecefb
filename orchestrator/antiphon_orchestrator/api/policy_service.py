"""PolicyService: shows and changes policies, and answers questions about decisions. See policy_service.proto."""

from __future__ import annotations

import re
from typing import Any

import grpc
from antiphon.v1 import policy_pb2, policy_service_pb2_grpc
from antiphon.v1 import policy_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import Identity, InvalidName

from ..audit import AuditLog, Fact
from ..cluster.peers import Peers
from ..placement.fleet import Fleet
from ..policy import (
    Action,
    CedarPolicies,
    Decision,
    FactInvalid,
    PolicyError,
    PolicyFile,
    Recent,
    Request,
    ResourceKind,
    facts_of,
)
from ..policy.schema import RESOURCES
from ..policy_book import EpochChanged, EpochNotFound, LocksOut, PolicyBook, RequestReused
from .call import Caller, caller
from .errors import ApiError, Violation, request_invalid
from .paging import decode_token, encode_token

Context = grpc.aio.ServicerContext[Any, Any]

_PAGE = 50
_PLACE = re.compile(r"([^:]+(?::\d+)?): (.*)", re.DOTALL)


class PolicyService(policy_service_pb2_grpc.PolicyServiceServicer):
    def __init__(self, book: PolicyBook, policies: CedarPolicies, fleet: Fleet, audit: AuditLog, peers: Peers) -> None:
        self._book = book
        self._policies = policies
        self._fleet = fleet
        self._audit = audit
        self._peers = peers

    async def Check(self, request: api.CheckRequest, context: Context) -> api.CheckResponse:
        question = _question(request, caller())
        return api.CheckResponse(decision=self._record(question, self._policies.check(question)))

    async def ListPolicies(self, request: api.ListPoliciesRequest, context: Context) -> api.ListPoliciesResponse:
        found = decode_token(request, int)
        rest = [one for one in await self._book.sets() if found is None or one.epoch < int(found[0])]
        page = rest[: request.page_size or _PAGE]
        token = encode_token(request, (page[-1].epoch,)) if len(rest) > len(page) else ""
        return api.ListPoliciesResponse(policies=page, next_page_token=token)

    async def GetPolicy(self, request: api.GetPolicyRequest, context: Context) -> api.GetPolicyResponse:
        try:
            return api.GetPolicyResponse(policy=await self._book.get(request.epoch))
        except EpochNotFound as error:
            raise ApiError(ErrorReason.ERROR_REASON_POLICY_EPOCH_NOT_FOUND, epoch=request.epoch) from error

    async def ActivatePolicies(
        self, request: api.ActivatePoliciesRequest, context: Context
    ) -> api.ActivatePoliciesResponse:
        who = caller()
        files = [PolicyFile(file.name, file.text) for file in request.files]
        try:
            policy = await self._book.activate(
                who.principal, request.request_id, request.expected_epoch, files, _again(who)
            )
        except _REFUSALS as error:
            raise _refusal(error, who, request.expected_epoch) from error
        await self._changed("activate_policies", who, policy)
        return api.ActivatePoliciesResponse(policy=policy)

    async def RollBack(self, request: api.RollBackRequest, context: Context) -> api.RollBackResponse:
        who = caller()
        try:
            policy = await self._book.roll_back(
                who.principal, request.request_id, request.expected_epoch, request.epoch, _again(who)
            )
        except _REFUSALS as error:
            raise _refusal(error, who, request.expected_epoch) from error
        await self._changed("roll_back_policies", who, policy)
        return api.RollBackResponse(policy=policy)

    async def _changed(self, action: str, who: Caller, policy: policy_pb2.PolicySet) -> None:
        """A change is answered when it is in the audit chain, too."""
        details = {"digest": policy.digest, "policies": str(policy.policy_count)}
        if policy.rolled_back_to:
            details["rolled_back_to"] = str(policy.rolled_back_to)
        resource = f"Policy::{who.namespace}/{policy.epoch}"
        await self._audit.write(
            Fact(action, who.namespace, who.principal, resource, policy_epoch=policy.epoch, details=details)
        )

    async def ListDecisions(self, request: api.ListDecisionsRequest, context: Context) -> api.ListDecisionsResponse:
        who, size = caller(), request.page_size or _PAGE
        if request.action:
            _action(request.action)
        found = decode_token(request, int, str)
        before = None if found is None else (int(found[0]), str(found[1]))
        records = self._decided(who, request, before, size)
        if who.forwarded:
            return api.ListDecisionsResponse(decisions=records)
        path = "/antiphon.v1.PolicyService/ListDecisions"
        for part in await self._peers.everyone(path, request.SerializeToString(), who):
            records += api.ListDecisionsResponse.FromString(part).decisions
        records.sort(key=_order, reverse=True)
        more = len(records) > size
        token = encode_token(request, _order(records[size - 1])) if more else ""
        return api.ListDecisionsResponse(decisions=records[:size], next_page_token=token)

    def _decided(
        self, who: Caller, request: api.ListDecisionsRequest, before: tuple[int, str] | None, size: int
    ) -> list[policy_pb2.DecisionRecord]:
        """What was decided here, the newest first; one more than belongs to a page, if there are so many."""
        identity = _named(request.principal, who)
        fitting = [
            one
            for one in self._policies.recent()
            if one.request.namespace == who.namespace
            and (before is None or (one.time, one.decision.decision_id) < before)
            and _fits(request, identity, one)
        ]
        # A clock that was set back must not hide from a later page what was decided since.
        fitting.sort(key=lambda one: (one.time, one.decision.decision_id), reverse=True)
        records = []
        for one in fitting[: size + 1]:
            record = self._record(one.request, one.decision)
            record.create_time.FromMicroseconds(one.time)
            records.append(record)
        return records

    def _record(self, question: Request, decision: Decision) -> policy_pb2.DecisionRecord:
        record = policy_pb2.DecisionRecord(
            principal=question.principal,
            action=question.action.value,
            resource_kind=question.resource_kind.value,
            resource_id=question.resource_id,
            namespace=question.namespace,
            decision=self._fleet.policy_message(decision),
            places=self._policies.places(decision),
        )
        record.decision.reason = decision.reason
        for name, value in question.attributes:
            record.facts.add(name=name, values=_words(value))
        return record


_REFUSALS = (PolicyError, EpochChanged, EpochNotFound, LocksOut, RequestReused)


def _refusal(error: Exception, who: Caller, expected: int) -> ApiError:
    match error:
        case PolicyError():
            violations = [_violation(problem) for problem in error.problems]
            return ApiError(ErrorReason.ERROR_REASON_POLICY_INVALID, violations=violations, count=len(violations))
        case EpochChanged():
            return ApiError(ErrorReason.ERROR_REASON_POLICY_EPOCH_CHANGED, expected=expected, current=error.current)
        case LocksOut():
            return ApiError(ErrorReason.ERROR_REASON_POLICY_LOCKS_OUT, principal=who.principal, cause=str(error))
        case RequestReused():
            return ApiError(ErrorReason.ERROR_REASON_REQUEST_ID_REUSED, request_id=str(error))
        case _:
            return ApiError(ErrorReason.ERROR_REASON_POLICY_EPOCH_NOT_FOUND, epoch=str(error))


def _violation(problem: str) -> Violation:
    found = _PLACE.fullmatch(problem)
    return Violation(found[1], found[2]) if found else Violation("files", problem)


def _again(who: Caller) -> Request:
    """May the caller change policies? As the access check asks it."""
    return Request(
        Action.CHANGE_POLICY,
        who.principal,
        who.identity.kind.value,
        who.namespace,
        ResourceKind.NAMESPACE,
        who.namespace,
    )


def _question(request: api.CheckRequest, who: Caller) -> Request:
    action = _action(request.action)
    kinds = RESOURCES[action]
    try:
        kind = ResourceKind(request.resource_kind) if request.resource_kind else _usual(kinds, request.resource_id)
    except ValueError:
        raise request_invalid([Violation("resource_kind", f"there are {', '.join(ResourceKind)}")]) from None
    try:
        facts = facts_of(action, {fact.name: fact.values for fact in request.facts})
    except FactInvalid as error:
        raise request_invalid([Violation("facts", str(error))]) from error
    identity = _named(request.principal, who) or who.identity
    resource_id = request.resource_id or (who.namespace if kind is ResourceKind.NAMESPACE else "")
    if not resource_id:
        raise request_invalid([Violation("resource_id", f"{action} is about a {kind}; name one")])
    return Request(action, identity.uri, identity.kind.value, who.namespace, kind, resource_id, facts)


def _action(text: str) -> Action:
    try:
        return Action(text)
    except ValueError:
        raise request_invalid([Violation("action", f"there is none; there are {', '.join(Action)}")]) from None


def _usual(kinds: tuple[ResourceKind, ...], resource_id: str) -> ResourceKind:
    """What an action is about when nobody says: its first kind, or the namespace when nothing is named."""
    return ResourceKind.NAMESPACE if not resource_id and ResourceKind.NAMESPACE in kinds else kinds[0]


def _named(principal: str, who: Caller) -> Identity | None:
    """Whom a SPIFFE id names, or KIND/NAME in the caller's namespace; None for nobody."""
    if not principal:
        return None
    uri = f"{who.principal.rsplit('/', 2)[0]}/{principal}" if principal.count("/") == 1 else principal
    try:
        return Identity.parse(uri)
    except InvalidName as error:
        raise request_invalid([Violation("principal", f"{error}; write KIND/NAME, or all of that")]) from error


def _fits(wanted: api.ListDecisionsRequest, identity: Identity | None, one: Recent) -> bool:
    if identity is not None and identity.uri != one.request.principal:
        return False
    if wanted.action and wanted.action != one.request.action:
        return False
    if wanted.decision_id and wanted.decision_id != one.decision.decision_id:
        return False
    outcome = api.DECISION_OUTCOME_ALLOW if one.decision.allowed else api.DECISION_OUTCOME_DENY
    return wanted.outcome in (api.DECISION_OUTCOME_UNSPECIFIED, outcome)


def _order(record: policy_pb2.DecisionRecord) -> tuple[int, str]:
    """Where a decision stands among those of all replicas."""
    return record.create_time.ToMicroseconds(), record.decision.decision_id


def _words(value: object) -> list[str]:
    if isinstance(value, frozenset):
        return sorted(value)
    return [str(value).lower() if isinstance(value, bool) else str(value)]
