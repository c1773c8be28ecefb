"""What was assigned, what came of it, and what the agent did besides that no agent may do.

Pure. Findings are kept by the name of the case that judges them; a case that looks at outcomes of its own (a duplicate
offer, a new stream) says so, and its attempts are not judged twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.message import Message

from antiphon.partials import JSON_BYTES, MESSAGE_PIECES, TEXT_LENGTH
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2, payload_pb2

MOST_ITEMS = 256
_FAILURES = frozenset(
    (
        failure_pb2.FAILURE_KIND_TRANSIENT,
        failure_pb2.FAILURE_KIND_PERMANENT,
        failure_pb2.FAILURE_KIND_TIMEOUT,
        failure_pb2.FAILURE_KIND_CANCELLED,
        failure_pb2.FAILURE_KIND_INVALID_INPUT,
        failure_pb2.FAILURE_KIND_INVALID_OUTPUT,
        failure_pb2.FAILURE_KIND_BUDGET,
    )
)
"""The kinds that are an agent's to set; the others are the orchestrator's."""
_TEXTS = (("message", 4_096), ("cause", 16_384), ("code", 128), ("field", 1_024))
_MOST_FINDINGS = 100  # of one case: an agent that is wrong all the time must not fill the memory


@dataclass(slots=True)
class Attempt:
    """One attempt and its outcomes."""

    assignment: pb.Assignment
    case: str
    own_count: bool
    """The case counts the outcomes itself."""
    cancelled: bool = False
    """The agent was told to stop it, or its time may have run out."""
    results: list[pb.Result] = field(default_factory=list)

    @property
    def capability(self) -> str:
        """name@version."""
        return f"{self.assignment.capability}@{self.assignment.version}"


class Ledger:
    """All attempts of one verification. `inline_limit` is what agents are told, in bytes."""

    def __init__(self, inline_limit: int) -> None:
        self.inline_limit = inline_limit
        self.attempts: dict[str, Attempt] = {}
        self.findings: dict[str, list[str]] = {}

    def assigned(self, assignment: pb.Assignment, case: str, *, own_count: bool = False) -> Attempt:
        """An attempt exists from now on."""
        attempt = self.attempts[assignment.attempt_id] = Attempt(assignment, case, own_count)
        return attempt

    def heard(self, request: pb.WorkRequest) -> None:
        """Take in what the agent says after hello, besides calls and requests to shared context."""
        if request.HasField("hello"):
            self._find("outcomes", "hello came twice on one stream")
        for name in ("results", "progress", "calls", "context_requests", "partials"):
            if len(getattr(request, name)) > (MESSAGE_PIECES if name == "partials" else MOST_ITEMS):
                self._find("limits", f"{len(getattr(request, name))} {name} in one message")
        for said in request.partials:
            self._partial(said)
        for result in request.results:
            self._result(result)
        for update in request.progress:
            self._progress(update)

    def vouched(self, what: str, attempt_id: str, token: bytes) -> Attempt | None:
        """The attempt on whose behalf something is asked; None, and a finding, when that is not proven."""
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            self._find("attempt-token", f"{what} on behalf of {attempt_id[:80]!r}, which was never assigned")
        elif token != attempt.assignment.attempt_token:
            self._find("attempt-token", f"{what} of attempt {attempt_id} with a token that is not that attempt's")
            attempt = None
        elif attempt.results and not attempt.own_count:
            self._find("attempt-token", f"{what} of attempt {attempt_id} after its outcome")
        return attempt

    def _result(self, result: pb.Result) -> None:
        attempt = self.attempts.get(result.attempt_id)
        if attempt is None:
            self._find("outcomes", f"a result for {result.attempt_id[:80]!r}, which was never assigned")
            return
        attempt.results.append(result)
        if len(attempt.results) == 2 and not attempt.own_count:
            self._find("outcomes", f"a second outcome of attempt {result.attempt_id}")
        if result.WhichOneof("outcome") == "failure":
            self._failure(attempt, result.failure)
        else:
            self._payload(f"the output of attempt {result.attempt_id}", result.output)

    def _failure(self, attempt: Attempt, failure: failure_pb2.Failure) -> None:
        where = f"the failure of attempt {attempt.assignment.attempt_id} ({attempt.capability})"
        if failure.kind not in _FAILURES:
            self._find("failures", f"{where} has kind {_kind(failure.kind)}")
        elif failure.kind == failure_pb2.FAILURE_KIND_CANCELLED and not attempt.cancelled:
            self._find("failures", f"{where} has kind CANCELLED, and nobody cancelled it")
        if not failure.message:
            self._find("failures", f"{where} has no message")
        for name, most in _TEXTS:
            if len(getattr(failure, name)) > most:
                self._find("limits", f"{where} has a {name} of {len(getattr(failure, name))} characters")

    def _progress(self, update: pb.ProgressUpdate) -> None:
        attempt = self.attempts.get(update.attempt_id)
        if attempt is None or (attempt.results and not attempt.own_count):
            when = "after its outcome" if attempt else "which was never assigned"
            self._find("outcomes", f"progress of attempt {update.attempt_id[:80]!r}, {when}")
        self.progress_fits(update)

    def progress_fits(self, update: pb.ProgressUpdate) -> None:
        """Note progress that is outside the contract's limits."""
        if not 0.0 <= update.progress.fraction <= 1.0:
            self._find("limits", f"progress of {update.progress.fraction:g}, which is not 0 to 1")
        if len(update.progress.message) > 1_024:
            self._find("limits", f"a progress message of {len(update.progress.message)} characters")

    def _partial(self, update: pb.PartialUpdate) -> None:
        attempt = self.attempts.get(update.attempt_id)
        if attempt is None or (attempt.results and not attempt.own_count):
            when = "after its outcome" if attempt else "which was never assigned"
            self._find("outcomes", f"a piece of output of attempt {update.attempt_id[:80]!r}, {when}")
        self.piece_fits(update)

    def piece_fits(self, update: pb.PartialUpdate) -> None:
        """Note a piece of output that is outside the contract's limits."""
        piece = update.partial
        if len(piece.text) > TEXT_LENGTH:
            self._find("limits", f"a piece of output of {len(piece.text)} characters")
        if len(piece.json) > JSON_BYTES:
            self._find("limits", f"a piece of output of {len(piece.json)} bytes")

    def _payload(self, what: str, payload: payload_pb2.Payload) -> None:
        if len(payload.inline) > self.inline_limit:
            self._find("limits", f"{what} has {len(payload.inline)} bytes inline")
        if len(payload.media_type) > 128:
            self._find("limits", f"{what} has a media type of {len(payload.media_type)} characters")

    def _find(self, case: str, text: str) -> None:
        found = self.findings.setdefault(case, [])
        if len(found) < _MOST_FINDINGS:
            found.append(text)


def _kind(number: failure_pb2.FailureKind.ValueType) -> str:
    known = failure_pb2.FailureKind.values()
    return failure_pb2.FailureKind.Name(number).removeprefix("FAILURE_KIND_") if number in known else str(number)


def with_unknown_fields(message: Message) -> Message:
    """The message with two fields that no contract knows, a number and a text, as a newer version might send."""
    # 19,000 and up are never used by anyone; fields 18,998 and 18,999: varint 1, and the bytes "new".
    message.MergeFromString(b"\xb0\xa3\x09\x01" + b"\xba\xa3\x09\x03new")
    return message
