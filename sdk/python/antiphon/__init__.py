"""Antiphon for Python: write agents, submit runs.

What `__all__` lists is the API; the modules behind it are private. Names are loaded when first used, so that an agent
process does not pay for the client, nor a server that only wants the generated messages for either. The exception class
of each error reason (`RunNotFound`, `GraphInvalid`, …) is part of the API; `_errors` draws the tree.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._agent import (
        Agent,
    )
    from ._audit import (
        AuditFinding,
        ChainVerifier,
        Tampering,
        verify_audit,
        verify_audit_proof,
    )
    from ._client import (
        Client,
        output_of,
    )
    from ._context import (
        TaskContext,
        current_task,
    )
    from ._credentials import (
        Credentials,
    )
    from ._entries import (
        entry_value,
    )
    from ._errors import (
        AntiphonError,
        FieldViolation,
        OperatorError,
        Remedy,
        RequestError,
        RetryableError,
        SetupError,
        StaleError,
        Unavailable,
    )
    from ._failures import (
        BudgetExceeded,
        CallFailed,
        InvalidInput,
        InvalidOutput,
        PermanentFailure,
        RunFailed,
        TaskCancelled,
        TaskFailure,
        TransientFailure,
    )
    from ._graph import (
        Compensate,
        Graph,
        Hedge,
        Quorum,
        Ref,
        Retry,
        TaskRef,
        Until,
        any_of,
        at_least,
        index,
        item,
        ref,
    )
    from ._graph_file import (
        LoadedGraph,
        Mistake,
        load_graph,
    )
    from ._reasons import (
        AccessDenied,
        AgentNotFound,
        ArchiveUnavailable,
        AttemptNotFound,
        AttemptTokenInvalid,
        AuditChainNotFound,
        AuditRecordNotFound,
        CallTooDeep,
        CapabilityConflict,
        CertificateExpired,
        CertificateNotAccepted,
        CertificateRequired,
        ClaimHeld,
        ClaimLost,
        ContextQuotaExceeded,
        CursorInvalid,
        DeadlineExceeded,
        DeadlineRequired,
        EntryConflict,
        EntryNotFound,
        GraphInvalid,
        GraphNotFound,
        GraphVersionExists,
        HistoryCompacted,
        InputInvalid,
        Internal,
        MessageTooLarge,
        MethodUnknown,
        NotGranted,
        NotServing,
        Overloaded,
        PageTokenInvalid,
        PayloadCorrupt,
        PayloadDigestMismatch,
        PayloadNotFound,
        PayloadsUnavailable,
        PolicyDenied,
        PolicyEpochChanged,
        PolicyEpochNotFound,
        PolicyInvalid,
        PolicyLocksOut,
        ProtocolViolation,
        RateLimited,
        ReplicaUnavailable,
        RequestIdReused,
        RequestInvalid,
        RunEnded,
        RunNotFound,
        ShardMoved,
        SignalNotExpected,
        SignalsExhausted,
        SigningRequestInvalid,
        StoreFull,
        StoreUnavailable,
        StreamReplaced,
        TaskNotFound,
        TaskStateConflict,
        TokenNotAccepted,
        VerifyReportNotAccepted,
    )
    from ._schema import (
        Labels,
    )
    from ._shared import (
        SharedContext,
    )
    from ._submission import (
        SubmitOptions,
    )
    from ._submitter import (
        Submitter,
    )
    from .v1.payload_pb2 import (
        Payload,
    )

__all__ = [
    "AccessDenied",
    "Agent",
    "AgentNotFound",
    "AntiphonError",
    "ArchiveUnavailable",
    "AttemptNotFound",
    "AttemptTokenInvalid",
    "AuditChainNotFound",
    "AuditFinding",
    "AuditRecordNotFound",
    "BudgetExceeded",
    "CallFailed",
    "CallTooDeep",
    "CapabilityConflict",
    "CertificateExpired",
    "CertificateNotAccepted",
    "CertificateRequired",
    "ChainVerifier",
    "ClaimHeld",
    "ClaimLost",
    "Client",
    "Compensate",
    "ContextQuotaExceeded",
    "Credentials",
    "CursorInvalid",
    "DeadlineExceeded",
    "DeadlineRequired",
    "EntryConflict",
    "EntryNotFound",
    "FieldViolation",
    "Graph",
    "GraphInvalid",
    "GraphNotFound",
    "GraphVersionExists",
    "Hedge",
    "HistoryCompacted",
    "InputInvalid",
    "Internal",
    "InvalidInput",
    "InvalidOutput",
    "Labels",
    "LoadedGraph",
    "MessageTooLarge",
    "MethodUnknown",
    "Mistake",
    "NotGranted",
    "NotServing",
    "OperatorError",
    "Overloaded",
    "PageTokenInvalid",
    "Payload",
    "PayloadCorrupt",
    "PayloadDigestMismatch",
    "PayloadNotFound",
    "PayloadsUnavailable",
    "PermanentFailure",
    "PolicyDenied",
    "PolicyEpochChanged",
    "PolicyEpochNotFound",
    "PolicyInvalid",
    "PolicyLocksOut",
    "ProtocolViolation",
    "Quorum",
    "RateLimited",
    "Ref",
    "Remedy",
    "ReplicaUnavailable",
    "RequestError",
    "RequestIdReused",
    "RequestInvalid",
    "Retry",
    "RetryableError",
    "RunEnded",
    "RunFailed",
    "RunNotFound",
    "SetupError",
    "ShardMoved",
    "SharedContext",
    "SignalNotExpected",
    "SignalsExhausted",
    "SigningRequestInvalid",
    "StaleError",
    "StoreFull",
    "StoreUnavailable",
    "StreamReplaced",
    "SubmitOptions",
    "Submitter",
    "Tampering",
    "TaskCancelled",
    "TaskContext",
    "TaskFailure",
    "TaskNotFound",
    "TaskRef",
    "TaskStateConflict",
    "TokenNotAccepted",
    "TransientFailure",
    "Unavailable",
    "Until",
    "VerifyReportNotAccepted",
    "any_of",
    "at_least",
    "current_task",
    "entry_value",
    "index",
    "item",
    "load_graph",
    "output_of",
    "ref",
    "verify_audit",
    "verify_audit_proof",
]

_HOMES = {
    "_agent": ("Agent",),
    "_audit": (
        "AuditFinding",
        "ChainVerifier",
        "Tampering",
        "verify_audit",
        "verify_audit_proof",
    ),
    "_client": (
        "Client",
        "output_of",
    ),
    "_context": (
        "TaskContext",
        "current_task",
    ),
    "_credentials": ("Credentials",),
    "_entries": ("entry_value",),
    "_errors": (
        "AntiphonError",
        "FieldViolation",
        "OperatorError",
        "Remedy",
        "RequestError",
        "RetryableError",
        "SetupError",
        "StaleError",
        "Unavailable",
    ),
    "_failures": (
        "BudgetExceeded",
        "CallFailed",
        "InvalidInput",
        "InvalidOutput",
        "PermanentFailure",
        "RunFailed",
        "TaskCancelled",
        "TaskFailure",
        "TransientFailure",
    ),
    "_graph": (
        "Compensate",
        "Graph",
        "Hedge",
        "Quorum",
        "Ref",
        "Retry",
        "TaskRef",
        "Until",
        "any_of",
        "at_least",
        "index",
        "item",
        "ref",
    ),
    "_graph_file": (
        "LoadedGraph",
        "Mistake",
        "load_graph",
    ),
    "_schema": ("Labels",),
    "_shared": ("SharedContext",),
    "_submission": ("SubmitOptions",),
    "_submitter": ("Submitter",),
    "v1.payload_pb2": ("Payload",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'antiphon' has no attribute {name!r}")
    # Whatever the table does not name is the exception of an error reason.
    value = globals()[name] = getattr(import_module(f".{_HOME.get(name, '_reasons')}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
