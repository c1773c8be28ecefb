"""One agent process and the sidecar it works for, as cases use them.

Cases share a stage while all goes well; after a failure the next case begins with a new process, so that one fault does
not colour the others. Every wait has a limit, and what did not come in time is said with what did.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2, registry_pb2
from antiphon.v1.payload_pb2 import Payload

from .answers import answer_of_context
from .ledger import Attempt, Ledger
from .line import Line, Socket
from .process import Process

INLINE_LIMIT = 65_536
TIMEOUT = 60.0
"""Seconds that an attempt is given, where the case is not about time."""
_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Wrong(Exception):
    """The agent does not keep the contract: what was expected, what was seen, and where the contract says so."""

    def __init__(self, expected: str, seen: str, contract: str) -> None:
        super().__init__(f"expected {expected}; {seen}")
        self.expected, self.seen, self.contract = expected, seen, contract


class Unplayable(Exception):
    """The case cannot be played; nothing is known about the agent."""


class Stage:
    """`command` starts the agent; `patience` seconds is the limit of each wait, `boot` that of its first hello.

    `answers` are JSON texts by capability name, for calls that the agent makes.
    """

    def __init__(
        self, command: Sequence[str], *, patience: float, boot: float, answers: Mapping[str, str] | None = None
    ) -> None:
        self.command = tuple(command)
        self.patience = patience
        self.case = ""
        """Name of the case that plays now."""
        self.ledger = Ledger(INLINE_LIMIT)
        self.hello: pb.WorkRequest | None = None
        """The agent's first message, once there was one."""
        self._boot = boot
        self._answers = dict(answers or {})
        self._folder = tempfile.TemporaryDirectory(prefix="antiphon-verify-")
        self._path = str(Path(self._folder.name) / "agent.sock")
        self._socket: Socket | None = None
        self._process: Process | None = None
        self._count = 0
        self._started = 0.0
        self.start_up = 0.0
        """Seconds from the start of the program to its first hello."""

    # Its parts

    @property
    def process(self) -> Process:
        """The program that runs."""
        assert self._process is not None, "start it first"
        return self._process

    @property
    def socket(self) -> Socket:
        """The socket that is served."""
        assert self._socket is not None, "start it first"
        return self._socket

    def state(self) -> str:
        """For complaints: the program, and what is wrong with its stream."""
        garbled = any(line.garbled for line in self.socket.lines)
        return f"{'it sent bytes that are no message; ' if garbled else ''}{self.process.state()}"

    def within(self, limit: float) -> str:
        """For complaints: how long was waited for what did not come in `limit` seconds, or before the program ended."""
        if self.process.code is None:
            return f"within {limit:g} s"
        return f"in the {time.monotonic() - self._started:.1f} s until the program ended"

    @property
    def description(self) -> registry_pb2.AgentDescription:
        """What the agent announced. Raises `Unplayable` when it has announced nothing."""
        if self.hello is None or not self.hello.hello.HasField("description"):
            raise Unplayable("the agent has not said hello")
        return self.hello.hello.description

    @property
    def credit(self) -> int:
        """Attempts it may be given at once."""
        return max(1, min(self.description.concurrency + self.description.prefetch, 64))

    async def line(self) -> Line:
        """The stream that is open; the program is started when there is none. Raises `Unplayable`."""
        if self._process is None:
            await self.start()
        line = await self.next_line(0, self._boot)
        if line is None:
            raise Unplayable(f"no stream with a hello {self.within(self._boot)}; {self.state()}")
        return line

    async def start(self, *, late: bool = False) -> None:
        """Serve a socket and start the program; with `late` the program alone. Raises `Unplayable`."""
        self._socket = Socket(self._path, INLINE_LIMIT, self._hear, self._call, self._progress, self._partial)
        if not late:
            await self._socket.open()
        self._process = Process(self.command, self._path)
        try:
            self._started = time.monotonic()
            await self._process.start()
        except OSError as error:
            raise Unplayable(f"{self.command[0]} cannot be started: {error.strerror}") from None

    async def next_line(self, after: int, limit: float | None = None) -> Line | None:
        """The newest stream, once there have been more than `after` and it is open; None when there is none in time or
        the program ends before."""
        lines = self.socket.lines

        def there() -> bool:
            return len(lines) > after and not lines[-1].closed

        if not await self._wait(there, limit or self.patience):
            return None
        if self.hello is None:
            self.hello = lines[-1].first
            self.start_up = time.monotonic() - self._started
        return lines[-1]

    async def stop(self) -> None:
        """No process, no socket; both begin anew with the next `line`."""
        if self._process is not None:
            await self._process.stop()
            self._process = None
        if self._socket is not None:
            await self._socket.close()
            self._socket = None

    async def close(self) -> None:
        """The end of the stage."""
        await self.stop()
        self._folder.cleanup()

    # Assignments

    def assignment(
        self,
        capability: str,
        data: bytes,
        *,
        seconds: float | None = TIMEOUT,
        attempt_id: str = "",
        number: int = 1,
        own_count: bool = False,
        media_type: str = "",
    ) -> pb.Assignment:
        """A new assignment of `capability` (name@version), noted as assigned. `data` is the input."""
        self._count += 1
        attempt_id = attempt_id or f"verify-{self.case}/task{self._count}/0/{number}"
        name, _, version = capability.partition("@")
        made = pb.Assignment(
            attempt_id=attempt_id,
            attempt_token=secrets.token_bytes(16),
            idempotency_key=attempt_id.rpartition("/")[0],
            capability=name,
            version=version,
            namespace=self.socket.namespace,
            principal="spiffe://verify.antiphon.internal/ns/verify/client/verifier",
            traceparent=_TRACE,
            input=Payload(inline=data, media_type=media_type),
            number=number,
        )
        if seconds is not None:
            made.remaining_timeout.CopyFrom(Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)))
        self.ledger.assigned(made, self.case, own_count=own_count)
        return made

    def attempt(self, assignment: pb.Assignment) -> Attempt:
        """What is known of an assignment."""
        return self.ledger.attempts[assignment.attempt_id]

    async def outcomes(self, assignments: Sequence[pb.Assignment], contract: str, *, also: float = 0.0) -> None:
        """Return when each has an outcome; `also` seconds of patience more. Raises `Wrong`."""
        attempts = [self.attempt(one) for one in assignments]
        limit = self.patience + also
        if not await self._wait(lambda: all(one.results for one in attempts), limit):
            left = [one for one in attempts if not one.results]
            raise Wrong(
                f"an outcome of each of {len(attempts)} attempts within {limit:g} s",
                f"{len(left)} had none, the first {left[0].assignment.attempt_id} of {left[0].capability}; "
                f"{self.state()}",
                contract,
            )

    async def play(self, line: Line, assignments: Sequence[pb.Assignment], contract: str) -> list[pb.Result]:
        """Assign, within the credit, and return the first outcome of each, in order. Raises `Wrong`."""
        for start in range(0, len(assignments), self.credit):
            batch = assignments[start : start + self.credit]
            line.send(pb.WorkResponse(assignments=batch))
            await self.outcomes(batch, contract)
        return [self.attempt(one).results[0] for one in assignments]

    async def until(self, condition: Callable[[], bool], expected: str, contract: str) -> None:
        """Return when the condition holds. Raises `Wrong` after the patience, or when the program ends before."""
        if not await self._wait(condition, self.patience):
            raise Wrong(f"{expected} within {self.patience:g} s", f"it did not come; {self.state()}", contract)

    async def _wait(self, condition: Callable[[], bool], limit: float) -> bool:
        """Whether the condition held within `limit` seconds; a program that has ended is not waited for."""
        waiting = asyncio.ensure_future(self.socket.until(condition, limit))
        ended = asyncio.ensure_future(self.process.ended())
        await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():  # what it said last may still be on its way through the socket
            await asyncio.wait((waiting,), timeout=1.0)
        # What held is not asked again: a stream that was open may be lost by now, and its end is not yet known.
        held = waiting.result() if waiting.done() else condition()
        for one in (waiting, ended):
            await _over(one)
        return held

    # What the agent says

    def _hear(self, line: Line, request: pb.WorkRequest) -> None:
        response = pb.WorkResponse()
        self.ledger.heard(request)
        for call in request.calls:
            known = self.ledger.vouched("a call", call.attempt_id, call.attempt_token)
            response.call_results.append(self._answer(call) if known else _refused(call))
        for ask in request.context_requests:
            if self.ledger.vouched("a request to shared context", ask.attempt_id, ask.attempt_token):
                response.context_responses.append(answer_of_context(ask))
        if response.ListFields():
            line.send(response)

    def _call(self, request: pb.CallRequest) -> pb.CallResponse | None:
        known = self.ledger.vouched("a unary call", request.attempt_id, request.attempt_token)
        return self._answer(request) if known else None

    def _progress(self, request: pb.ReportProgressRequest) -> bool:
        self.ledger.progress_fits(request.update)
        return bool(self.ledger.vouched("unary progress", request.update.attempt_id, request.attempt_token))

    def _partial(self, request: pb.ReportPartialRequest) -> bool:
        self.ledger.piece_fits(request.update)
        return bool(self.ledger.vouched("a unary piece", request.update.attempt_id, request.attempt_token))

    def _answer(self, call: pb.CallRequest) -> pb.CallResponse:
        response = pb.CallResponse(call_id=call.call_id, attempt_id=call.attempt_id)
        name = call.capability.partition("@")[0]
        if name in self._answers:
            response.output.inline = self._answers[name].encode()
        else:
            response.failure.kind = failure_pb2.FAILURE_KIND_NO_AGENT
            response.failure.message = f"nobody else is here; say what {name} answers: --answer {name}=JSON"
        return response


def _refused(call: pb.CallRequest) -> pb.CallResponse:
    """As a sidecar answers a call with a token that is not its attempt's: its handler waits."""
    response = pb.CallResponse(call_id=call.call_id, attempt_id=call.attempt_id)
    response.failure.kind = failure_pb2.FAILURE_KIND_PERMANENT
    response.failure.code, response.failure.message = "ATTEMPT_TOKEN_INVALID", "the token is not its own"
    return response


async def _over(one: Awaitable[object]) -> None:
    task = asyncio.ensure_future(one)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
