"""What a handler can know of its attempt and do on its behalf.

A context reads its assignment when asked: most handlers ask nothing, and thousands run each second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from antiphon.v1.agent_service_pb2 import Assignment, CallRequest, CallResponse
from antiphon.v1.context_request_pb2 import ContextRequest, ContextResponse
from antiphon.v1.payload_pb2 import Label, Payload
from antiphon.v1.run_pb2 import PartialOutput

from . import _json
from ._failures import CallFailed, InvalidOutput, TaskCancelled
from ._schema import codec
from .partials import JSON_BYTES, TEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._holding import Holding
    from ._shared import SharedContext

_current: ContextVar[TaskContext | None] = ContextVar("antiphon_current_task", default=None)
_log = logging.getLogger("antiphon.task")

EXTRAS = 262_144
"""Most bytes of all that comes with a value: labels, and other texts."""
_CALL_ID = 64
"""Most characters of a call's id."""
_PIECE_LABELS = 15_360
"""Most bytes of the labels of a piece of output, which has less than the 32 KiB that sidecars take, then."""


def current_task() -> TaskContext | None:
    """The context of the task this code runs for; None outside of a handler."""
    return _current.get()


def entered(context: TaskContext) -> None:
    """Make `context` the one that code in the present asyncio task or thread sees."""
    _current.set(context)


OnPartial = Callable[[PartialOutput], None]
"""Is shown a piece of what a call is making; must not wait."""


class Line(Protocol):
    """What a context needs of its worker."""

    inline_limit: int
    """Most bytes of a value within a message."""

    def progress(self, attempt_id: str, fraction: float, message: str) -> None:
        """Tell how far an attempt is."""
        ...

    def emit(self, attempt_id: str, pieces: list[PartialOutput]) -> None:
        """Send pieces of output."""
        ...

    async def call(self, request: CallRequest, on_partial: OnPartial | None = None) -> CallResponse:
        """Send a call and wait for its outcome."""
        ...

    async def ask(self, request: ContextRequest) -> ContextResponse:
        """Ask shared context and wait for its answer."""
        ...

    def holds(self, attempt_id: str, holding: Holding) -> None:
        """Tell this holding when its claim is lost."""
        ...


class _Done:
    """Awaiting it does nothing, and so does not awaiting it: a plain function cannot await."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class _TaskLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return f"[{kwargs['extra']['attempt_id']}] {msg}", kwargs


class TaskContext:
    """One attempt, seen by its handler. Ask for it with a parameter annotated `TaskContext`, or by `current_task()`."""

    __slots__ = ("_assignment", "_calls", "_cancelled", "_event", "_expires", "_line")

    def __init__(self, assignment: Assignment, line: Line, received: float) -> None:
        """`received` is the monotonic time at which the assignment came."""
        self._assignment = assignment
        self._line = line
        self._expires = received
        self._calls = 0
        self._cancelled = False
        self._event: threading.Event | None = None
        if assignment.HasField("remaining_timeout"):
            left = assignment.remaining_timeout
            self._expires = received + left.seconds + left.nanos / 1e9

    @property
    def attempt_id(self) -> str:
        """Identifies this try."""
        return self._assignment.attempt_id

    @property
    def number(self) -> int:
        """Number of the attempt, counted from 1."""
        return self._assignment.number

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of the task; hand it to whatever takes effect."""
        return self._assignment.idempotency_key

    @property
    def run_id(self) -> str:
        """The run the task belongs to."""
        return self._assignment.attempt_id.partition("/")[0]

    @property
    def capability(self) -> str:
        """Name and version, such as text.summarize@1."""
        return f"{self._assignment.capability}@{self._assignment.version}"

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self._assignment.namespace

    @property
    def principal(self) -> str:
        """SPIFFE id on whose behalf the run works."""
        return self._assignment.principal

    @property
    def delegation(self) -> tuple[str, ...]:
        """Attempts, outermost first, that called for this one."""
        return tuple(self._assignment.delegation)

    @property
    def traceparent(self) -> str:
        """W3C traceparent of this attempt; pass it on in calls to other services."""
        return self._assignment.traceparent

    @property
    def input(self) -> Payload:
        """The input as it came, with media type and labels."""
        return self._assignment.input

    @property
    def deadline(self) -> datetime | None:
        """When the attempt will be cancelled, aware; None when it has no timeout."""
        left = self.remaining()
        return None if left is None else datetime.now(UTC) + left

    def remaining(self) -> timedelta | None:
        """Time left, never negative; None when the attempt has no timeout."""
        if not self._assignment.HasField("remaining_timeout"):
            return None
        return timedelta(seconds=max(0.0, self._expires - monotonic()))

    @property
    def cancelled(self) -> threading.Event:
        """Set when the attempt is to stop. An async handler is cancelled besides; a plain function looks here."""
        event = self._event
        if event is None:
            event = self._event = threading.Event()
            if self._cancelled:  # after publishing the event: `cancel` sets the mark first, so one of the two sets it
                event.set()
        return event

    def raise_if_cancelled(self) -> None:
        """Raises `TaskCancelled` once the attempt is to stop; for plain functions that work in steps."""
        if self._cancelled:
            raise TaskCancelled("the attempt was cancelled")

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds the ids of this attempt. It adds no payload; neither should its user."""
        ids = {"run_id": self.run_id, "attempt_id": self.attempt_id, "capability": self.capability}
        return _TaskLog(_log, ids)

    def progress(self, fraction: float = 0.0, message: str = "") -> _Done:
        """Say how far the attempt is: `fraction` 0 to 1 (0 when unknown) and a text of at most 1,024 characters.

        Works with and without `await`, never waits, and only the newest of several is sent.
        """
        self._line.progress(self.attempt_id, min(max(fraction, 0.0), 1.0), message[:1024])
        return _Done()

    def emit(self, value: Any) -> _Done:
        """Show a piece of the output before the output: text, as a language model makes it, or any JSON value.

        Whoever watches the run, or has called this attempt, sees pieces within moments and under the rules of the
        output: where policy refuses or redacts that, its pieces are withheld. A `Payload` carries labels of its own.
        Works with and without `await` and never waits: what finds no room on its way is left out. What the handler
        returns is the output; pieces are kept nowhere. Raises `InvalidOutput` for what cannot travel, or a JSON value
        of more than 16 KiB.
        """
        self._line.emit(self.attempt_id, pieces_of(value))
        return _Done()

    @property
    def context(self) -> SharedContext:
        """What the team shares: entries and claims, with the rights of this task. For async handlers."""
        from ._shared import SharedContext  # for those who use it

        return SharedContext(self._assignment, self._line)

    async def call(
        self,
        capability: str,
        input: Any = None,
        *,
        returns: Any = Any,
        call_id: str | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109  part of the request; the record keeps it
        on_partial: OnPartial | None = None,
    ) -> Any:
        """Ask for another capability, such as "text.summarize@1", on behalf of this attempt, and return its output.

        The output is plain JSON, or what `returns` describes. When the handler runs again, the call with the same
        `call_id` and input is answered from the record and not made again, unless it failed; without one, calls are
        numbered in their order, so make them in the same order each time. `on_partial` is shown the pieces that the
        called agent emits, as far as they come; what it raises ends the call. For async handlers. Raises `CallFailed`;
        `InvalidOutput` when the input cannot travel or the answer does not fit `returns`; `ValueError` for a `call_id`
        of more than 64 characters.
        """
        if call_id is not None and len(call_id) > _CALL_ID:
            raise ValueError(f"call_id has {len(call_id)} characters; use at most {_CALL_ID}")
        self._calls += 1
        request = CallRequest(
            call_id=call_id or str(self._calls),
            attempt_id=self.attempt_id,
            attempt_token=self._assignment.attempt_token,
            capability=capability,
        )
        try:
            if isinstance(input, Payload):
                request.input.CopyFrom(sendable(input))
            else:
                request.input.inline = _json.dumps(input)
        except (ValueError, TypeError) as error:
            raise InvalidOutput(f"the input of the call to {capability} cannot travel: {error}") from error
        if (size := len(request.input.inline)) > (limit := self._line.inline_limit):
            raise InvalidOutput(
                f"the input of the call to {capability} has {size} bytes, larger than {limit} bytes; send less, or "
                "upload it with Client.upload_payload and send the antiphon.Payload that it answers"
            )
        if timeout is not None:
            request.timeout.FromTimedelta(timeout)
        response = await self._line.call(request, on_partial)
        if response.HasField("failure"):
            raise CallFailed(capability, response.failure)
        if returns is Payload:
            return response.output
        try:
            return codec(returns).decode(value_of(response.output))
        except ValueError as error:
            raise InvalidOutput(f"the answer of {capability} does not fit: {error}") from error

    @property
    def is_cancelled(self) -> bool:
        """Whether the attempt is to stop; cheaper than `cancelled`."""
        return self._cancelled

    def cancel(self) -> None:
        """For the worker: mark the attempt as to be stopped."""
        self._cancelled = True
        if self._event is not None:
            self._event.set()


def pieces_of(value: Any) -> list[PartialOutput]:
    """What a handler emits, in pieces that may travel; offsets are not set. Raises `InvalidOutput`."""
    labels: list[Label] = []
    if isinstance(value, Payload):
        labels = [*value.labels, *(label for part in value.field_labels for label in part.labels)]
        if (size := PartialOutput(labels=labels).ByteSize()) > _PIECE_LABELS:
            raise InvalidOutput(f"what is emitted has {size} bytes of labels, larger than {_PIECE_LABELS} bytes")
        try:
            value = value.inline.decode() if value.media_type.startswith("text/") else value_of(value)
        except ValueError as error:
            raise InvalidOutput(f"what is emitted cannot travel: {error}") from error
    if isinstance(value, str):
        texts = [value[start : start + TEXT_LENGTH] for start in range(0, len(value), TEXT_LENGTH)]
        try:
            return [PartialOutput(text=text, labels=labels) for text in texts]
        except ValueError as error:  # half a surrogate pair is no text
            raise InvalidOutput(f"what is emitted cannot travel: {error}") from error
    try:
        json = _json.dumps(value)
    except (ValueError, TypeError) as error:
        raise InvalidOutput(f"what is emitted cannot travel: {error}") from error
    if len(json) > JSON_BYTES:
        raise InvalidOutput(f"what is emitted has {len(json)} bytes as JSON; at most {JSON_BYTES} travel, or any text")
    return [PartialOutput(json=json, labels=labels)]


def sendable(payload: Payload) -> Payload:
    """The payload itself. Raises `ValueError` for one with more beside its content than travels: from 4 MiB on it would
    break the stream that others share."""
    if (size := payload.ByteSize() - len(payload.inline)) > EXTRAS:
        raise ValueError(f"the value has {size} bytes of labels and other texts, larger than {EXTRAS} bytes")
    return payload


def value_of(payload: Payload) -> Any:
    """The JSON value a payload holds; absent content is null. Raises `ValueError` for other media and references."""
    if payload.HasField("blob"):
        raise ValueError(
            f"the value is kept by reference ({payload.blob.size} bytes); take it as antiphon.Payload and fetch it "
            "with Client.download_payload"
        )
    if payload.media_type and payload.media_type.partition(";")[0].strip() != "application/json":
        raise ValueError(f"the value is {payload.media_type}, not JSON; take it as antiphon.Payload")
    return _json.loads(payload.inline) if payload.HasField("inline") else None
