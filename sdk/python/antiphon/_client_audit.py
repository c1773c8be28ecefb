"""The part of the client that reads audit records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime

from antiphon.v1 import (
    audit_pb2,
    audit_service_pb2,
)

from ._client_base import ClientBase


class AuditCalls(ClientBase):
    """Audit records, their checkpoint and proofs; for operators."""

    def list_audit_records(
        self,
        chain: str,
        *,
        newest_first: bool = False,
        complete: bool = False,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        principal: str = "",
        action: str = "",
        outcome: audit_pb2.AuditOutcome.ValueType = audit_pb2.AUDIT_OUTCOME_UNSPECIFIED,
        namespace: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[audit_pb2.AuditRecord]:
        """Records of one chain in its order, or from the newest back; `get_audit_checkpoint` names the chains.

        `complete` gives what does not match, or may not be read, as hidden records, so that `verify_audit` can look at
        the whole. For operators. Raises `AuditChainNotFound`.
        """
        request = audit_service_pb2.ListRecordsRequest(
            chain=chain,
            newest_first=newest_first,
            complete=complete,
            principal=principal,
            action=action,
            outcome=outcome,
            namespace=namespace,
            page_size=page_size,
        )
        if start_time is not None:
            request.start_time.FromDatetime(start_time)
        if end_time is not None:
            request.end_time.FromDatetime(end_time)
        return self._pages(lambda to: to.audit.ListRecords, request, lambda page: page.records)

    async def get_audit_checkpoint(self) -> audit_pb2.AuditCheckpoint:
        """Where every audit chain stands, signed by the orchestrator. For operators."""
        request = audit_service_pb2.GetCheckpointRequest()
        return (await self._ask(lambda to: to.audit.GetCheckpoint, request)).checkpoint

    async def get_audit_proof(self, chain: str, seq: int, upto_seq: int = 0) -> audit_service_pb2.GetProofResponse:
        """What leads from a record to the hash at `upto_seq`, or at the end of its chain. For operators.

        Raises `AuditChainNotFound`, `AuditRecordNotFound`.
        """
        request = audit_service_pb2.GetProofRequest(chain=chain, seq=seq, upto_seq=upto_seq)
        return await self._ask(lambda to: to.audit.GetProof, request)

    async def digest_runs(self, runs: Iterable[audit_pb2.RunDigest]) -> Sequence[audit_pb2.RunDigest]:
        """The digests of parts of runs as their histories stand in the archive now; at most 100. For operators."""
        request = audit_service_pb2.DigestRunsRequest(runs=runs)
        return (await self._ask(lambda to: to.audit.DigestRuns, request)).runs
