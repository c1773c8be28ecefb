"""Audit: append-only chains of what was done and refused, each record bound to all before it (DECISIONS.md, D19).

Each shard has a chain, whose records are in its log first; all other acts are in the chain `calls`. What a record and
its hash are is said in the contracts (antiphon/v1/audit.proto); the verifier is the SDK's.
"""

from .chain import Chain, Fact, signed_content
from .log import CALLS, AuditLog

__all__ = ["CALLS", "AuditLog", "Chain", "Fact", "signed_content"]
