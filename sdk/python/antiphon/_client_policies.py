"""The part of the client that reads and changes policies."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping

from antiphon.v1 import (
    policy_pb2,
    policy_service_pb2,
)

from ._client_base import ClientBase


class PolicyCalls(ClientBase):
    """Policies, their epochs, and what they decide."""

    async def check_policy(
        self,
        action: str,
        resource: str = "",
        *,
        principal: str = "",
        resource_kind: str = "",
        facts: Mapping[str, str | Iterable[str]] | None = None,
    ) -> policy_pb2.DecisionRecord:
        """What would be decided in the caller's namespace, and why; nothing is remembered of it.

        `principal` is a SPIFFE id, the caller's own by default. A fact that is not given is the least there is.
        """
        request = policy_service_pb2.CheckRequest(
            principal=principal, action=action, resource_kind=resource_kind, resource_id=resource
        )
        for name, value in (facts or {}).items():
            request.facts.add(name=name, values=[value] if isinstance(value, str) else list(value))
        return (await self._ask(lambda to: to.policies.Check, request)).decision

    def list_policies(self, *, page_size: int = 0) -> AsyncIterator[policy_pb2.PolicySet]:
        """The kept sets of policies without their files, the newest first."""
        request = policy_service_pb2.ListPoliciesRequest(page_size=page_size)
        return self._pages(lambda to: to.policies.ListPolicies, request, lambda page: page.policies)

    async def get_policy(self, epoch: int = 0) -> policy_pb2.PolicySet:
        """A set of policies with its files, by default the one in force. Raises `PolicyEpochNotFound`."""
        request = policy_service_pb2.GetPolicyRequest(epoch=epoch)
        return (await self._ask(lambda to: to.policies.GetPolicy, request)).policy

    async def activate_policies(
        self, files: Mapping[str, str], *, expected_epoch: int, request_id: str | None = None
    ) -> policy_pb2.PolicySet:
        """Put a whole set in force: texts by file name. For operators.

        Raises `PolicyInvalid` with every mistake, `PolicyEpochChanged`, `PolicyLocksOut`.
        """
        request = policy_service_pb2.ActivatePoliciesRequest(
            request_id=request_id or uuid.uuid4().hex, expected_epoch=expected_epoch
        )
        for name, text in files.items():
            request.files.add(name=name, text=text)
        return (await self._ask(lambda to: to.policies.ActivatePolicies, request)).policy

    async def roll_back_policies(
        self, epoch: int, *, expected_epoch: int, request_id: str | None = None
    ) -> policy_pb2.PolicySet:
        """Put the content of an earlier epoch in force again, as a new one. For operators. Raises as above."""
        request = policy_service_pb2.RollBackRequest(
            request_id=request_id or uuid.uuid4().hex, epoch=epoch, expected_epoch=expected_epoch
        )
        return (await self._ask(lambda to: to.policies.RollBack, request)).policy

    def list_decisions(
        self,
        *,
        principal: str = "",
        action: str = "",
        allowed: bool | None = None,
        decision_id: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[policy_pb2.DecisionRecord]:
        """Recent decisions about the caller's namespace, the newest first, those that fit all filters."""
        outcomes = {
            None: policy_service_pb2.DECISION_OUTCOME_UNSPECIFIED,
            True: policy_service_pb2.DECISION_OUTCOME_ALLOW,
            False: policy_service_pb2.DECISION_OUTCOME_DENY,
        }
        request = policy_service_pb2.ListDecisionsRequest(
            principal=principal,
            action=action,
            outcome=outcomes[allowed],
            decision_id=decision_id,
            page_size=page_size,
        )
        return self._pages(lambda to: to.policies.ListDecisions, request, lambda page: page.decisions)
