"""Failures: work ran and did not succeed. A handler raises one to say which kind, and with it which retry rule applies.

    TaskFailure
    ├── TransientFailure   may succeed when tried again; retried by default
    ├── PermanentFailure   will fail again with the same input
    ├── InvalidInput       the input does not fit
    ├── InvalidOutput      the output does not fit
    ├── BudgetExceeded     a budget of cost or work is used up
    ├── TaskCancelled      the attempt was cancelled
    ├── CallFailed         a capability the handler called failed; raised by `TaskContext.call`
    └── RunFailed          a run did not succeed; raised by `output_of`

Any other exception of a handler is TRANSIENT with its traceback as cause, as users of durable execution expect: what
nobody foresaw deserves another try, and the retry rule bounds it. An error is another thing, a refused call: `_errors`.
"""

from __future__ import annotations

import traceback

from antiphon.v1 import failure_pb2 as pb

_MESSAGE, _CODE, _CAUSE, _FIELD = 4096, 128, 16384, 1024


class TaskFailure(Exception):
    """Work did not succeed. `code` is a stable word of the agent's own, such as "quota_exceeded"."""

    kind: pb.FailureKind.ValueType = pb.FAILURE_KIND_PERMANENT
    # For classes derived from it that do not call the constructor below.
    message: str = ""
    code: str = ""
    retryable: bool = False
    """False: no retry can help, whatever the task's retry rules say."""
    field: str = ""
    """JSON pointer of the value at fault; empty means the whole value."""

    def __init__(self, message: str, code: str = "", *, retryable: bool = False, field: str = "") -> None:
        """What is given in place of a text, such as the exception that was caught, is told as `str` tells it."""
        super().__init__(message)
        self.message = _text(message)
        self.code = _text(code)
        self.retryable = retryable
        self.field = _text(field)


class TransientFailure(TaskFailure):
    """May succeed when tried again: a dependency was away, a rate limit."""

    kind = pb.FAILURE_KIND_TRANSIENT

    def __init__(self, message: str, code: str = "", *, retryable: bool = True) -> None:
        super().__init__(message, code, retryable=retryable)


class PermanentFailure(TaskFailure):
    """Will fail again with the same input."""


class InvalidInput(TaskFailure):
    """The input does not fit; `field` is the JSON pointer of the value at fault."""

    kind = pb.FAILURE_KIND_INVALID_INPUT


class InvalidOutput(TaskFailure):
    """The output does not fit; `field` is the JSON pointer of the value at fault."""

    kind = pb.FAILURE_KIND_INVALID_OUTPUT


class BudgetExceeded(TaskFailure):
    """A budget of cost or work is used up."""

    kind = pb.FAILURE_KIND_BUDGET


class TaskCancelled(TaskFailure):
    """The attempt was cancelled; raised by `TaskContext.raise_if_cancelled` in plain functions."""

    kind = pb.FAILURE_KIND_CANCELLED


class RecordedFailure(TaskFailure):
    """A failure out of a record; `failure` is the message as recorded."""

    def __init__(self, message: str, failure: pb.Failure) -> None:
        super().__init__(message, failure.code, retryable=failure.retryable, field=failure.field)
        self.failure = failure


class CallFailed(RecordedFailure):
    """A capability the handler called failed. Uncaught, it fails the handler's own attempt.

    The kind is then TRANSIENT when the call's failure was worth a retry, else PERMANENT: what the callee's input or
    policy got wrong is not the caller's own input or policy.
    """

    def __init__(self, capability: str, failure: pb.Failure) -> None:
        super().__init__(f"{capability} failed: {failure.message or pb.FailureKind.Name(failure.kind)}", failure)
        again = failure.retryable and failure.kind in (pb.FAILURE_KIND_TRANSIENT, pb.FAILURE_KIND_LOST)
        self.kind = pb.FAILURE_KIND_TRANSIENT if again else pb.FAILURE_KIND_PERMANENT
        self.field = ""


class RunFailed(RecordedFailure):
    """A run ended FAILED or CANCELLED, or has not ended."""


def failure_of(error: BaseException) -> pb.Failure:
    """The record of what a handler raised, cut to the contract's limits. There is one of whatever it raised."""
    if isinstance(error, TaskFailure):
        cause = error.__cause__
        return pb.Failure(
            kind=error.kind,
            message=_in_utf8(error.message)[:_MESSAGE],
            code=_in_utf8(error.code)[:_CODE],
            retryable=bool(error.retryable),
            field=_in_utf8(error.field)[:_FIELD],
            cause=_trace(cause) if cause is not None else "",
        )
    name, text = type(error).__name__, _text(error)
    return pb.Failure(
        kind=pb.FAILURE_KIND_TRANSIENT,
        message=_in_utf8(f"{name}: {text}" if text not in ("", name) else name)[:_MESSAGE],
        retryable=True,
        cause=_trace(error),
    )


def _trace(error: BaseException) -> str:
    # The end of a traceback says most; a long one loses its beginning.
    return _in_utf8("".join(traceback.format_exception(error)))[-_CAUSE:]


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # the author's own code; its name is what there is to tell
        return type(value).__name__


def _in_utf8(value: object) -> str:
    # A text that an input brought may hold half of a surrogate pair, which no message takes.
    return _text(value).encode(errors="backslashreplace").decode()
