"""Plays a client case: the runner is an orchestrator that answers what the case says, over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from antiphon.conformance.v1 import case_pb2 as cases
from antiphon.conformance.v1 import executor_pb2
from antiphon.v1 import (
    audit_service_pb2,
    context_service_pb2,
    graph_service_pb2,
    identity_service_pb2,
    policy_service_pb2,
    registry_service_pb2,
    run_pb2,
    run_service_pb2,
)
from antiphon.verify.line import abort
from antiphon_certs import Authority, Credential, Identity, Kind, new_key_and_csr
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2

from tests.conformance.matching import mismatch

LIMIT = 30.0
"""Seconds that each answer of an executor may take."""
_TIMEOUT = 10  # seconds, of each unary call of a client
_DOMAIN = "mesh.test"
_SERVICES = (
    run_service_pb2,
    registry_service_pb2,
    context_service_pb2,
    graph_service_pb2,
    identity_service_pb2,
    policy_service_pb2,
    audit_service_pb2,
)
_METHODS: dict[str, MethodDescriptor] = {
    f"{service.full_name}/{method.name}": method
    for module in _SERVICES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Orchestrator(grpc.GenericRpcHandler):
    """Answers calls with the exchanges of one case; `complaints` is what was wrong with them."""

    def __init__(self, authority: Authority, exchanges: Sequence[cases.Exchange]) -> None:
        self.complaints: list[str] = []
        self.port = 0
        self._left: dict[str, deque[cases.Exchange]] = {}
        for exchange in exchanges:
            self._left.setdefault(f"antiphon.v1.{exchange.method}", deque()).append(exchange)
        self._before: dict[str, Any] = {}
        own = credential(authority, Identity(_DOMAIN, "system", Kind.ORCHESTRATOR, "one"))
        self._tls = grpc.ssl_server_credentials([(own.key_pem, own.chain_pem)], own.bundle_pem, True)
        self._server: grpc.aio.Server | None = None
        self._restarts: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Serve, on the same port as before."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", self._tls)
        await self._server.start()

    async def close(self) -> None:
        await asyncio.gather(*self._restarts)
        if self._server is not None:
            await self._server.stop(None)

    def unused(self) -> list[str]:
        """Exchanges that no call has taken."""
        return [f"{name}: {len(left)} exchanges were not used" for name, left in self._left.items() if left]

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = _METHODS.get(handler_call_details.method.removeprefix("/"))
        if method is None:
            return None
        parse = message_factory.GetMessageClass(method.input_type).FromString

        async def serve(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for message in self._serve(method, requests, context):
                yield message

        # As a stream both ways: that fits every kind of call.
        return grpc.stream_stream_rpc_method_handler(serve, parse, lambda message: message.SerializeToString())

    async def _serve(self, method: MethodDescriptor, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        name = f"{method.containing_service.full_name}/{method.name}"
        metadata = {key for key, _ in context.invocation_metadata()}
        if not method.client_streaming and not method.server_streaming and context.time_remaining() is None:
            self.complaints.append(f"{name} came without a deadline")
        if "traceparent" not in metadata:
            self.complaints.append(f"{name} came without a traceparent")
        left = self._left.get(name)
        if not left:
            self.complaints.append(f"{name} was called once more than expected")
            await abort(context, "ACCESS_DENIED")
        assert left is not None
        exchange = left.popleft()
        if method.client_streaming:
            said = iter(exchange.responses_json)
            async for request in requests:
                text = next(said, None)
                yield _submitted(request) if text is None else _spoken(text, method, request.submissions[0].request_id)
            return
        request = await anext(requests)
        self._check(name, request, exchange)
        for text in exchange.responses_json:
            yield _spoken(text, method, getattr(request, "request_id", ""))
        if exchange.HasField("refusal"):
            await abort(context, exchange.refusal.reason, dict(exchange.refusal.metadata), *_details(exchange.refusal))
        if exchange.broken:
            self._restarts.append(asyncio.create_task(self._restart()))
            await asyncio.Event().wait()

    def _check(self, name: str, request: Any, exchange: cases.Exchange) -> None:
        seen = json_format.MessageToDict(request, preserving_proto_field_name=True)
        if exchange.request_json and (complaint := mismatch(json.loads(exchange.request_json), seen)):
            self.complaints.append(f"the request of {name}: {complaint}")
        if exchange.repeated_request and self._before.get(name) != request:
            self.complaints.append(f"{name} was tried again with another request")
        self._before[name] = request

    async def _restart(self) -> None:
        assert self._server is not None
        await self._server.stop(None)
        await self.open()


def _details(refusal: cases.Refusal) -> list[Any]:
    details: list[Any] = []
    if refusal.violations:
        violation = error_details_pb2.BadRequest.FieldViolation
        fields = [violation(field=field, description=text) for field, text in sorted(refusal.violations.items())]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if refusal.HasField("retry_after"):
        details.append(error_details_pb2.RetryInfo(retry_delay=refusal.retry_after))
    return details


def _spoken(text: str, method: MethodDescriptor, request_id: str) -> Any:
    answer = message_factory.GetMessageClass(method.output_type)()
    return json_format.Parse(text.replace("$REQUEST_ID", request_id), answer)


def _submitted(request: run_service_pb2.SubmitRunsRequest) -> run_service_pb2.SubmitRunsResponse:
    response = run_service_pb2.SubmitRunsResponse()
    for one in request.submissions:
        run = run_pb2.Run(run_id=f"run-of-{one.request_id}", state=run_pb2.RUN_STATE_SUCCEEDED)
        run.output.inline = b'{"answer": 42}'
        response.results.add(request_id=one.request_id, run=run)
    return response


def credential(authority: Authority, identity: Identity) -> Credential:
    """A credential that is valid today."""
    key_pem, csr_pem = new_key_and_csr(identity)
    return Credential.from_pem(key_pem, authority.issue(csr_pem, identity), authority.bundle_pem)


class Conversation:
    """One executor in client mode, for any number of cases."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, authority: Authority) -> None:
        self._process = process
        self._folder = folder
        self._authority = authority
        self._count = 0
        client = credential(authority, Identity(_DOMAIN, "team-a", Kind.CLIENT, "alice"))
        for name, data in (("key", client.key_pem), ("cert", client.chain_pem), ("bundle", client.bundle_pem)):
            (folder / f"{name}.pem").write_bytes(data)

    async def play(self, case: cases.ClientCase) -> str:
        """Play a case; what is wrong, empty when nothing is."""
        orchestrator = Orchestrator(self._authority, case.exchanges)
        await orchestrator.open()
        try:
            for number, step in enumerate(case.steps, 1):
                if complaint := await self._step(step, orchestrator.port):
                    told = "; ".join(orchestrator.complaints)
                    return f"step {number}, {step.call.WhichOneof('kind')}: {complaint}{'; ' if told else ''}{told}"
        finally:
            await orchestrator.close()
        return "; ".join((*orchestrator.complaints, *orchestrator.unused()))

    async def _step(self, step: cases.ClientStep, port: int) -> str:
        self._count += 1
        request = executor_pb2.ExecutorRequest(id=self._count, call=step.call)
        settings = request.client
        settings.addresses.append(f"127.0.0.1:{port}")
        settings.certificate_file = str(self._folder / "cert.pem")
        settings.key_file = str(self._folder / "key.pem")
        settings.bundle_file = str(self._folder / "bundle.pem")
        settings.timeout.seconds = _TIMEOUT
        response = await self._ask(request)
        outcome = response.WhichOneof("outcome")
        expected = step.WhichOneof("expected")
        assert expected is not None, "a case has one"
        if outcome is None or outcome == "broken" or f"{outcome}_json" != expected:
            return f"{outcome} instead of {expected.removesuffix('_json')}: {_said(response)}"
        seen = json_format.MessageToDict(getattr(response, outcome), preserving_proto_field_name=True)
        return mismatch(json.loads(getattr(step, expected)), seen)

    async def _ask(self, request: executor_pb2.ExecutorRequest) -> executor_pb2.ExecutorResponse:
        assert self._process.stdin is not None and self._process.stdout is not None
        text = json_format.MessageToJson(request, indent=None, preserving_proto_field_name=True)
        try:
            async with asyncio.timeout(LIMIT):
                self._process.stdin.write(text.encode() + b"\n")
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
            response = json_format.Parse(line, executor_pb2.ExecutorResponse())
        except (TimeoutError, OSError, json_format.ParseError) as error:
            broken = f"the executor gave no answer: {type(error).__name__} {error}; {self._process.returncode=}"
            return executor_pb2.ExecutorResponse(id=request.id, broken=broken)
        if response.id != request.id:
            response.broken = f"the answer has id {response.id}, not {request.id}"
        return response


def _said(response: executor_pb2.ExecutorResponse) -> str:
    return json_format.MessageToJson(response, indent=None, preserving_proto_field_name=True)[:500]


@asynccontextmanager
async def conversation(command: Sequence[str]) -> AsyncIterator[Conversation]:
    """An executor that runs in client mode; its standard error is ours."""
    with tempfile.TemporaryDirectory(prefix="antiphon-conformance-") as folder:
        authority = Authority.init(Path(folder) / "ca", _DOMAIN)
        process = await asyncio.create_subprocess_exec(
            *command, "client", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=4 << 20
        )
        try:
            yield Conversation(process, Path(folder), authority)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(LIMIT):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
