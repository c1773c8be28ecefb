"""A sidecar double: serves AgentService on a Unix socket over real gRPC, and lets a test play the sidecar by hand.

Each stream an agent opens becomes a `Line`: what the agent says is gathered there, what the test wants said is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from antiphon.options.v1 import options_pb2
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import agent_service_pb2_grpc as service
from antiphon.v1 import error_pb2
from antiphon.v1.payload_pb2 import Payload
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

WAIT = 20.0


class Line:
    """One stream, from the sidecar's side."""

    def __init__(self, hello: pb.AgentHello) -> None:
        self.hello = hello
        self.progress: list[pb.ProgressUpdate] = []
        self.batches: list[int] = []
        self.drained = asyncio.Event()
        self.closed = asyncio.Event()
        self._down: asyncio.Queue[pb.WorkResponse | None] = asyncio.Queue()
        self._results: dict[str, list[pb.Result]] = {}
        self._calls: list[pb.CallRequest] = []
        self._changed = asyncio.Condition()

    def send(self, response: pb.WorkResponse) -> None:
        self._down.put_nowait(response)

    def end(self) -> None:
        """End the stream without an error."""
        self._down.put_nowait(None)

    def assign(self, *assignments: pb.Assignment) -> None:
        self.send(pb.WorkResponse(assignments=assignments))

    def cancel(self, attempt_id: str, reason: str = "cancelled") -> None:
        self.send(pb.WorkResponse(cancels=[pb.AttemptCancel(attempt_id=attempt_id, reason=reason)]))

    async def result(self, attempt_id: str) -> pb.Result:
        """The outcome of an attempt; there must be one only."""
        await self._until(lambda: attempt_id in self._results)
        (result,) = self._results[attempt_id]
        return result

    async def results(self, count: int) -> list[pb.Result]:
        """All outcomes once there are that many."""
        await self._until(lambda: sum(map(len, self._results.values())) >= count)
        return [result for results in self._results.values() for result in results]

    async def call(self) -> pb.CallRequest:
        """The next call of the agent."""
        await self._until(lambda: bool(self._calls))
        return self._calls.pop(0)

    async def told(self, attempt_id: str) -> pb.ProgressUpdate:
        """The last progress of an attempt, once there is one."""
        await self._until(lambda: any(one.attempt_id == attempt_id for one in self.progress))
        return [one for one in self.progress if one.attempt_id == attempt_id][-1]

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT), self._changed:
            await self._changed.wait_for(condition)

    async def _hear(self, request: pb.WorkRequest) -> None:
        async with self._changed:
            for result in request.results:
                self._results.setdefault(result.attempt_id, []).append(result)
            if request.results:
                self.batches.append(len(request.results))
            self.progress.extend(request.progress)
            self._calls.extend(request.calls)
            if request.drain:
                self.drained.set()
            self._changed.notify_all()


class AgentSocket(service.AgentServiceServicer):
    """The service; `line()` waits for the next stream."""

    def __init__(self, path: Path, inline_limit: int = 65536) -> None:
        self.path = path
        self.refusal: error_pb2.ErrorReason.ValueType | None = None
        self._inline_limit = inline_limit
        self._lines: asyncio.Queue[Line] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        service.add_AgentServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()

    async def stop(self) -> None:
        """As when the sidecar is killed: every stream breaks."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def line(self) -> Line:
        async with asyncio.timeout(WAIT):
            return await self._lines.get()

    async def Work(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.WorkResponse]:
        first = await anext(request_iterator)
        if self.refusal is not None:
            await refuse(context, self.refusal)
        line = Line(first.hello)
        welcome = pb.AgentWelcome(
            agent=first.hello.description.name, namespace="team-a", inline_limit=self._inline_limit
        )
        yield pb.WorkResponse(welcome=welcome)
        reader = asyncio.create_task(self._read(request_iterator, line))
        self._lines.put_nowait(line)
        try:
            while (response := await line._down.get()) is not None:
                yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            line.closed.set()

    @staticmethod
    async def _read(requests: AsyncIterator[pb.WorkRequest], line: Line) -> None:
        async for request in requests:
            await line._hear(request)
        line.end()


@asynccontextmanager
async def agent_socket(path: Path, **settings: Any) -> AsyncIterator[AgentSocket]:
    """A running double; its socket is at `path`."""
    sidecar = AgentSocket(path, **settings)
    await sidecar.start()
    try:
        yield sidecar
    finally:
        await sidecar.stop()


def assignment(attempt_id: str, capability: str, value: Any = None, *, seconds: float | None = None) -> pb.Assignment:
    """An assignment of `capability` (name@version) with JSON input."""
    name, _, version = capability.partition("@")
    made = pb.Assignment(
        attempt_id=attempt_id,
        attempt_token=b"token of " + attempt_id.encode(),
        idempotency_key=attempt_id.rpartition("/")[0],
        capability=name,
        version=version,
        namespace="team-a",
        principal="spiffe://mesh.test/ns/team-a/client/alice",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        input=Payload(inline=json.dumps(value).encode()),
        number=int(attempt_id.rpartition("/")[2]),
    )
    if seconds is not None:
        made.remaining_timeout.CopyFrom(Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)))
    return made


def output(result: pb.Result) -> Any:
    """The JSON output of a result; a failure is an assertion error."""
    assert not result.HasField("failure"), result.failure
    return json.loads(result.output.inline)


def status_of(
    reason: error_pb2.ErrorReason.ValueType,
    *,
    retry: float | None = None,
    violations: dict[str, str] | None = None,
    **metadata: str,
) -> status_pb2.Status:
    """The status a server of ours answers for a reason, built from the registry."""
    name = error_pb2.ErrorReason.Name(reason)
    spec = error_pb2.ErrorReason.DESCRIPTOR.values_by_name[name].GetOptions().Extensions[options_pb2.error]
    values = {key: metadata.get(key, f"some {key}") for key in spec.metadata}
    details: list[Any] = [
        error_details_pb2.ErrorInfo(reason=name.removeprefix("ERROR_REASON_"), domain="antiphon.v1", metadata=values)
    ]
    if violations:
        fields = [error_details_pb2.BadRequest.FieldViolation(field=k, description=v) for k, v in violations.items()]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if retry is not None:
        delay = Duration(seconds=int(retry), nanos=int(retry % 1 * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for one, detail in zip(packed, details, strict=True):
        one.Pack(detail)
    return status_pb2.Status(code=spec.code, message=spec.message.format(**values), details=packed)


async def refuse(context: Any, reason: error_pb2.ErrorReason.ValueType, **settings: Any) -> None:
    """End a call with the status of a reason."""
    status = status_of(reason, **settings)
    code = next(one for one in grpc.StatusCode if one.value[0] == status.code)
    await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))
