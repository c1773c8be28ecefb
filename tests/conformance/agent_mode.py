"""Plays an agent case: the runner is the sidecar of one agent process."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from antiphon.conformance.v1 import case_pb2 as cases
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2, run_pb2
from antiphon.verify.ledger import with_unknown_fields
from antiphon.verify.line import Line, Socket
from antiphon.verify.process import Process
from google.protobuf import json_format

from tests.conformance.matching import mismatch

LIMIT = 20.0
"""Seconds that each wait may take."""
_ON_ITS_WAY = 5.0
"""Seconds that the last words of an agent that has ended may be on their way, on a machine that has much to do."""
_CONCURRENCY = 4


class Complaint(Exception):
    """What was expected and what was seen."""


class AgentPlay:
    """One case on one agent process."""

    def __init__(self, command: Sequence[str], case: cases.AgentCase, folder: str) -> None:
        self._case = case
        self._socket = Socket(f"{folder}/agent.sock", 65_536, self._heard, self._asked, self._reported, self._emitted)
        self._socket.namespace = "team-a"
        concurrency = str(case.concurrency or _CONCURRENCY)
        self._process = Process((*command, "agent", concurrency), self._socket.path)
        self._assigned: dict[str, pb.Assignment] = {}
        self._results: dict[str, list[pb.Result]] = {}
        self._awaited: Counter[str] = Counter()
        self._calls: list[pb.CallRequest] = []
        self._answerable: dict[str, pb.CallRequest] = {}
        self._progress: list[pb.ProgressUpdate] = []
        self._partials: list[pb.PartialUpdate] = []
        self._lines = 0
        self._first: pb.WorkRequest | None = None

    async def run(self) -> None:
        """Play it. Raises `Complaint`."""
        await self._socket.open()
        await self._process.start()
        try:
            await self._hello()
            for number, step in enumerate(self._case.steps, 1):
                try:
                    await self._step(step)
                except Complaint as complaint:
                    raise Complaint(f"step {number}, {step.WhichOneof('kind')}: {complaint}") from None
            for attempt_id in self._assigned:
                if (seen := len(self._results.get(attempt_id, ()))) != self._awaited[attempt_id]:
                    raise Complaint(f"{attempt_id} had {seen} outcomes, not {self._awaited[attempt_id]}")
            if strange := set(self._results) - set(self._assigned):
                raise Complaint(f"outcomes of attempts that were never assigned: {sorted(strange)}")
        finally:
            await self._process.stop()
            await self._socket.close()

    # What the agent says

    def _heard(self, line: Line, request: pb.WorkRequest) -> None:
        for result in request.results:
            self._results.setdefault(result.attempt_id, []).append(result)
        self._calls.extend(request.calls)
        self._progress.extend(request.progress)
        self._partials.extend(request.partials)

    def _asked(self, request: pb.CallRequest) -> pb.CallResponse | None:
        return None  # SDKs call on the stream

    def _reported(self, request: pb.ReportProgressRequest) -> bool:
        self._progress.append(request.update)
        return True

    def _emitted(self, request: pb.ReportPartialRequest) -> bool:
        self._partials.append(request.update)
        return True

    # Steps

    async def _step(self, step: cases.AgentStep) -> None:
        match step.WhichOneof("kind"):
            case "assign":
                self._assign(step.assign)
            case "cancel":
                cancel = pb.AttemptCancel(attempt_id=step.cancel.attempt_id, reason=step.cancel.reason)
                self._line.send(pb.WorkResponse(cancels=[cancel]))
            case "answer_call":
                self._answer(step.answer_call)
            case "await_result":
                for attempt_id in _copies(step.await_result.attempt_id, step.await_result.copies):
                    await self._await_result(attempt_id, step.await_result)
            case "await_call":
                await self._await_call(step.await_call)
            case "await_progress":
                await self._await_progress(step.await_progress)
            case "await_partials":
                await self._await_partials(step.await_partials)
            case "send_partial":
                self._send_partial(step.send_partial)
            case "act":
                await self._act(step.act)
            case "await":
                await self._await(getattr(step, "await"))
            case "await_exit":
                await self._await_exit(step.await_exit)
            case "refuse_hello":
                self._socket.refusal = step.refuse_hello.reason
            case other:
                raise Complaint(f"the runner knows no step {other}")

    @property
    def _line(self) -> Line:
        return self._socket.lines[-1]

    async def _until(self, condition, what: str) -> None:
        waiting = asyncio.ensure_future(self._socket.until(condition, LIMIT))
        ended = asyncio.ensure_future(self._process.ended())
        await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await asyncio.wait((waiting,), timeout=_ON_ITS_WAY)
        # What held is not asked again: a stream that was open may be lost by now.
        held = waiting.result() if waiting.done() else condition()
        for one in (waiting, ended):
            one.cancel()
        await asyncio.gather(waiting, ended, return_exceptions=True)
        if not held:
            raise Complaint(f"{what} did not come within {LIMIT:g} s; {self._process.state()}")

    async def _hello(self) -> None:
        lines = self._socket.lines
        await self._until(lambda: len(lines) > self._lines and not lines[-1].closed, "a stream with hello")
        self._lines = len(lines)
        if self._first is None:
            self._first = self._line.first
            if self._line.hello.description.name != "conformance":
                raise Complaint(f"the agent is called {self._line.hello.description.name!r}")
        elif self._line.first != self._first:
            raise Complaint("the hello is not that of the first stream")

    def _assign(self, assign: cases.Assign) -> None:
        made = []
        for attempt_id in _copies(assign.attempt_id, assign.copies):
            assignment = self._assigned.setdefault(attempt_id, _assignment(assign, attempt_id))
            made.append(with_unknown_fields(assignment) if assign.unknown_fields else assignment)
        response = pb.WorkResponse(assignments=made)
        self._line.send(with_unknown_fields(response) if assign.unknown_fields else response)

    def _answer(self, answer: cases.AnswerCall) -> None:
        call = self._answerable.pop(answer.attempt_id, None)
        if call is None:
            raise Complaint(f"no call of {answer.attempt_id} was awaited")
        response = pb.CallResponse(call_id=call.call_id, attempt_id=call.attempt_id)
        if answer.HasField("failure"):
            response.failure.CopyFrom(answer.failure)
        else:
            response.output.inline = answer.output_json.encode()
        self._line.send(pb.WorkResponse(call_results=[response]))

    async def _await_result(self, attempt_id: str, expected: cases.AwaitResult) -> None:
        self._awaited[attempt_id] += 1
        number = self._awaited[attempt_id]
        await self._until(lambda: len(self._results.get(attempt_id, ())) >= number, f"an outcome of {attempt_id}")
        if complaint := _wrong_result(self._results[attempt_id][number - 1], expected):
            raise Complaint(f"{attempt_id}: {complaint}")

    async def _await_call(self, expected: cases.AwaitCall) -> None:
        def found() -> pb.CallRequest | None:
            return next((one for one in self._calls if one.attempt_id == expected.attempt_id), None)

        await self._until(lambda: found() is not None, f"a call of {expected.attempt_id}")
        call = found()
        assert call is not None
        self._calls.remove(call)
        self._answerable[call.attempt_id] = call
        if call.attempt_token != self._assigned[call.attempt_id].attempt_token:
            raise Complaint("the token of the call is not that of its assignment")
        if call.capability != expected.capability:
            raise Complaint(f"it called {call.capability}, not {expected.capability}")
        if not call.call_id or (expected.call_id and call.call_id != expected.call_id):
            raise Complaint(f"the id of the call is {call.call_id!r}, not {expected.call_id!r}")
        if complaint := mismatch(json.loads(expected.input_json or "null"), json.loads(call.input.inline or "null")):
            raise Complaint(f"the input of the call: {complaint}")

    async def _await_progress(self, expected: cases.AwaitProgress) -> None:
        wanted = (expected.attempt_id, expected.fraction, expected.message)

        def there() -> bool:
            seen = ((one.attempt_id, one.progress.fraction, one.progress.message) for one in self._progress)
            return wanted in seen

        await self._until(there, f"progress {wanted}")

    async def _await_partials(self, expected: cases.AwaitPartials) -> None:
        def made() -> list[run_pb2.PartialOutput]:
            return [one.partial for one in self._partials if one.attempt_id == expected.attempt_id]

        def there() -> bool:
            text = "".join(piece.text for piece in made())
            json_count = sum(piece.HasField("json") for piece in made())
            return len(text) >= len(expected.text) and json_count >= len(expected.json)

        await self._until(there, f"pieces of {expected.attempt_id}")
        if (text := "".join(piece.text for piece in made())) != expected.text:
            raise Complaint(f"the texts of its pieces are {text!r}, not {expected.text!r}")
        values = [piece.json for piece in made() if piece.HasField("json")]
        for value, wanted in zip(values, expected.json, strict=True):
            if complaint := mismatch(json.loads(wanted), json.loads(value)):
                raise Complaint(f"a piece that is JSON: {complaint}")
        offset = 0
        for piece in made():
            if piece.offset != offset:
                raise Complaint(f"a piece has the offset {piece.offset}, not {offset}")
            offset += len(piece.text.encode()) + len(piece.json)

    def _send_partial(self, send: cases.SendPartial) -> None:
        call = self._answerable.get(send.attempt_id)
        if call is None:
            raise Complaint(f"no call of {send.attempt_id} was awaited")
        partial = pb.CallPartial(call_id=call.call_id, attempt_id=call.attempt_id)
        partial.partial.text, partial.partial.attempt = send.text, 1
        self._line.send(pb.WorkResponse(call_partials=[partial]))

    async def _act(self, act: cases.Act.ValueType) -> None:
        match act:
            case cases.ACT_BREAK_STREAM:
                self._line.tear()
            case cases.ACT_END_STREAM:
                self._line.end()
            case cases.ACT_RESTART_SIDECAR:
                await self._socket.close()
                await self._socket.open()
            case cases.ACT_DRAIN:
                self._line.send(pb.WorkResponse(drain=True))
            case cases.ACT_TERMINATE:
                self._process.terminate()
            case _:
                raise Complaint(f"the runner knows no act {act}")

    async def _await(self, what: cases.Await.ValueType) -> None:
        match what:
            case cases.AWAIT_HELLO:
                await self._hello()
            case cases.AWAIT_DRAIN:
                await self._until(lambda: self._line.said_drain, "drain")
            case cases.AWAIT_CLOSE:
                await self._until(lambda: self._line.closed, "the end of the agent's side")
            case _:
                raise Complaint(f"the runner knows nothing to wait for of number {what}")

    async def _await_exit(self, expected: cases.AwaitExit) -> None:
        try:
            async with asyncio.timeout(LIMIT):
                code = await self._process.ended()
        except TimeoutError:
            raise Complaint(f"it has not ended within {LIMIT:g} s") from None
        if code != expected.code:
            raise Complaint(f"it ended with {code}, not {expected.code}; it wrote: {self._process.said()[-500:]}")
        if expected.stderr_part not in self._process.said():
            raise Complaint(f"it wrote {self._process.said()[-500:]!r}, without {expected.stderr_part!r}")


def _copies(attempt_id: str, copies: int) -> list[str]:
    if copies <= 1:
        return [attempt_id]
    run, task, _, number = attempt_id.split("/")
    return [f"{run}/{task}/{member}/{number}" for member in range(1, copies + 1)]


def _assignment(assign: cases.Assign, attempt_id: str) -> pb.Assignment:
    name, _, version = assign.capability.partition("@")
    key, _, number = attempt_id.rpartition("/")
    made = pb.Assignment(
        attempt_id=attempt_id,
        attempt_token=b"token of " + attempt_id.encode(),
        idempotency_key=key,
        capability=name,
        version=version,
        namespace="team-a",
        principal="spiffe://mesh.test/ns/team-a/client/alice",
        delegation=["run-0/outer/0/1"],
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        number=int(number),
    )
    if assign.HasField("script"):
        script = json_format.MessageToDict(assign.script, preserving_proto_field_name=True)
        made.input.inline = json.dumps(script).encode()
    elif assign.input_raw:
        made.input.inline, made.input.media_type = assign.input_raw, "application/octet-stream"
    elif assign.input_json:
        made.input.inline = assign.input_json.encode()
    if assign.HasField("remaining_timeout"):
        made.remaining_timeout.CopyFrom(assign.remaining_timeout)
    return made


def _wrong_result(result: pb.Result, expected: cases.AwaitResult) -> str:
    """What is wrong with an outcome; empty when nothing is."""
    failure = result.failure
    if not expected.failure_kind:
        if result.HasField("failure"):
            return f"it failed, {_kind(failure.kind)}: {failure.message}"
        if expected.output_raw:
            seen = (result.output.inline, result.output.media_type)
            return "" if seen == (expected.output_raw, "application/octet-stream") else f"its output is {seen}"
        if expected.subgraph_json or result.HasField("subgraph"):
            return _wrong_subgraph(result, expected.subgraph_json)
        return mismatch(json.loads(expected.output_json or "null"), json.loads(result.output.inline or b"null"))
    if not result.HasField("failure"):
        return f"it succeeded with {result.output.inline[:200]!r}"
    if failure.kind != expected.failure_kind:
        return f"the kind is {_kind(failure.kind)}, not {_kind(expected.failure_kind)} ({failure.message})"
    if expected.failure_code and failure.code != expected.failure_code:
        return f"the code is {failure.code!r}, not {expected.failure_code!r}"
    if expected.failure_field and failure.field != expected.failure_field:
        return f"the field is {failure.field!r}, not {expected.failure_field!r}"
    if expected.message_part not in failure.message:
        return f"the message is {failure.message!r}, without {expected.message_part!r}"
    if expected.HasField("retryable") and failure.retryable is not expected.retryable:
        return f"retryable is {failure.retryable}"
    return ""


def _wrong_subgraph(result: pb.Result, wanted: str) -> str:
    given = result.subgraph
    if not result.HasField("subgraph") or not wanted:
        return f"it answered {result.WhichOneof('outcome')}, not a {'graph' if wanted else 'value'}"
    seen = {"graph": json_format.MessageToDict(given.graph, preserving_proto_field_name=True), "input": None}
    if given.HasField("input"):
        seen["input"] = json.loads(given.input.inline)
        if seen["input"] is None:
            return "its input is there, and null"
    return mismatch(json.loads(wanted), seen)


def _kind(number: failure_pb2.FailureKind.ValueType) -> str:
    return failure_pb2.FailureKind.Name(number).removeprefix("FAILURE_KIND_")


async def play(command: Sequence[str], case: cases.AgentCase) -> str:
    """Play a case; what is wrong, empty when nothing is."""
    with tempfile.TemporaryDirectory(prefix="antiphon-conformance-") as folder:
        try:
            await AgentPlay(command, case, str(Path(folder))).run()
        except Complaint as complaint:
            return str(complaint)
    return ""
