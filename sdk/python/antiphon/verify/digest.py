"""What a report vouches for. The orchestrator computes it as well; it needs protobuf alone."""

from __future__ import annotations

import hashlib

from antiphon.v1 import registry_pb2


def digest_of(description: registry_pb2.AgentDescription) -> str:
    """VerifyReport.capabilities_digest of what an agent announces."""
    hashed = hashlib.sha256()
    for capability in sorted(description.capabilities, key=lambda one: (one.name, one.version)):
        data = capability.SerializeToString(deterministic=True)
        hashed.update(len(data).to_bytes(4, "big") + data)
    return hashed.hexdigest()
