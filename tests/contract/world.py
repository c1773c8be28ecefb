"""A real mesh in which cases are played: processes, certificates and facts.

Thin: what to call is in the cases, what is right in the judgement.

An orchestrator serves both TCP listeners; a sidecar serves the sockets of two agents that dial in. `holder` is played
here and keeps one attempt, so that there is one to report on and to call for; `player` is for cases that open its
stream, since a second stream replaces the first. A second sidecar brings an agent that answers.
"""

from __future__ import annotations

import base64
import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import grpc
from antiphon.v1 import (
    agent_service_pb2,
    graph_service_pb2,
    identity_service_pb2,
    payload_service_pb2,
    run_service_pb2,
)
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Credential, JoinToken, Kind, new_key_and_csr, prove

from tests.contract.cases import (
    EXPIRED,
    EXPIRING,
    FOREIGN,
    MESSAGE_LIMIT,
    NOBODY,
    Call,
    Case,
    Cases,
    Expected,
    sensitive_values,
)
from tests.contract.contract import Contract, Method
from tests.contract.facts import CAPABILITY, CONTENT, FACTS, GRAPH, TASK
from tests.contract.judging import Answer, alike, complaints, shows_a_difference
from tests.contract.values import Fact, Facts
from tests.harness import Ca, Mesh

LIMIT = 10.0
"""Seconds in which an answer comes that is expected to come."""

_PAUSE = 0.02
_QUIET = 0.3  # a stream that has said nothing for so long, and that need not say anything, counts as open
_MAY_SAY_NOTHING = frozenset({Expected.ACCEPTED, Expected.SERVED, Expected.TOLERATED, Expected.EQUAL})
_TRIES = 40  # of a call whose answer something else is changing
_SETTINGS = tuple(f"--{listener}-{key}" for listener in ("api", "join") for key in ("calls-per-second", "call-burst"))
_AGENTS = '[[agent]]\nname = "holder"\n\n[[agent]]\nname = "player"\n'
_SHORT = timedelta(seconds=4)  # time to make a connection on a machine that has much to do
_PATH = "/antiphon.v1."


class World:
    """Use it with `with`. Without `agents` there is the orchestrator alone, which starts sooner."""

    def __init__(self, *, agents: bool = True) -> None:
        self.contract = Contract()
        self._with_agents = agents
        limits = [word for setting in _SETTINGS for word in (setting, "100000")]
        self.mesh = Mesh(*limits, "--telemetry-log-level", "debug")
        self._foreign = Ca(self.mesh.folder / "foreign")
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._sensitive: set[bytes] = set()
        self._work: queue.SimpleQueue[agent_service_pb2.WorkRequest | None] = queue.SimpleQueue()
        self._sockets: dict[bool, str] = {}
        self.facts: dict[str, Facts] = {}
        self.cases = Cases(self.contract, {})

    def __enter__(self) -> Self:
        self.mesh.__enter__()
        try:
            self.facts = self._facts()
            self.cases = Cases(self.contract, self.facts)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self._work.put(None)
        for channel in self._channels.values():
            channel.close()
        self.mesh.show()
        self.mesh.close()

    def play(self, cases: Sequence[Case]) -> list[str]:
        """Make the calls of the cases of one kind; what is wrong with their answers."""
        wrong = []
        told = not cases or cases[0].expected is not Expected.DIFFERENT or _guarded(cases[0].method)
        for case in cases:
            answers = self._answers(case)
            told = told or shows_a_difference(self.contract, case, answers)
            wrong += [f"{case.kind} ({case.name}): {line}" for line in complaints(self.contract, case, answers)]
        return (
            wrong if told else [*wrong, f"{cases[0].kind}: no other content was good by itself, so nothing was tried"]
        )

    def _answers(self, case: Case) -> list[Answer]:
        answers = [self.answer(case.method, call, case.expected) for call in case.calls]
        if case.expected is Expected.EQUAL:
            # What is answered may be changing for reasons of its own, as a run goes on; it comes to rest.
            for _ in range(_TRIES):
                if len({alike(self.contract, case.method, answer) for answer in answers}) == 1:
                    break
                answers = [*answers[1:], self.answer(case.method, case.calls[-1], case.expected)]
        return answers

    def answer(self, method: Method, call: Call, expected: Expected) -> Answer:
        """Make one call."""
        self._note(method.request, call.data)
        channel = self._channel(call.identity, call.listener, stream=not method.unary)
        while call.identity == EXPIRING and datetime.now(UTC) <= self._expiry:
            time.sleep(_PAUSE)
        answer = _made(channel, method, call, patient=expected not in _MAY_SAY_NOTHING)
        for data in answer.responses:
            self._note(method.response, data)
        return answer

    def leaks(self) -> list[str]:
        """Sensitive values that were sent or answered so far and that a log of any process shows."""
        said = {process.name: process.said() for process in (self.mesh.orchestrator, *self.mesh.sidecars)}
        found = []
        for value in sorted(self._sensitive):
            forms = {value.hex(), base64.b64encode(value).decode(), repr(value)[2:-1]}
            with suppress(UnicodeDecodeError):
                forms.add(value.decode())
            forms |= {json.dumps(form)[1:-1] for form in forms}
            found += [
                f"{name} logs {value[:60]!r}" for name, text in said.items() if any(form in text for form in forms)
            ]
        return found

    def _note(self, descriptor: Any, data: bytes) -> None:
        if len(data) <= MESSAGE_LIMIT:
            # Of a long text the beginning is enough: a log would cut it, too.
            values = sensitive_values(self.contract, self.contract.message(descriptor, data))
            self._sensitive |= {value[:63] for value in values}

    # Connections

    def _channel(self, identity: str, listener: str, *, stream: bool = False) -> grpc.Channel:
        key = (identity, listener if listener != "agent_socket" else f"{listener} {stream}")
        if key not in self._channels:
            self._channels[key] = self._opened(identity, listener, stream)
        return self._channels[key]

    def _opened(self, identity: str, listener: str, stream: bool) -> grpc.Channel:
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.max_send_message_length", -1),
        ]
        if listener == "agent_socket":
            options.append(("grpc.default_authority", "localhost"))
            return grpc.insecure_channel(f"unix:{self._sockets[stream]}", options)
        options.append(("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME))
        bundle = self.mesh.ca.authority.bundle_pem
        if listener == "join" or identity == NOBODY:
            credentials = grpc.ssl_channel_credentials(bundle)
        else:
            key, chain, _ = self._certificate(identity)
            credentials = grpc.ssl_channel_credentials(bundle, key, chain)
        address = self.mesh.orchestrator.join_address if listener == "join" else self.mesh.orchestrator.address
        channel = grpc.secure_channel(address, credentials, options)
        if identity == EXPIRING:
            grpc.channel_ready_future(channel).result(LIMIT)
        return channel

    def _certificate(self, identity: str) -> tuple[bytes, bytes, bytes]:
        ca, now = self.mesh.ca, datetime.now(UTC)
        if identity == FOREIGN:
            return self._foreign.issue(Kind.CLIENT, "case")
        if identity == EXPIRED:
            return ca.issue(Kind.CLIENT, "case", lifetime=timedelta(minutes=1), now=now - timedelta(hours=1))
        if identity == EXPIRING:
            # Still good when its connection is made.
            self._expiry = now + _SHORT
            return ca.issue(Kind.CLIENT, "case", lifetime=_SHORT, now=now)
        return ca.issue(Kind(identity), f"case-{identity}", agents=("*",), capabilities=("*",))

    # Facts

    def _facts(self) -> dict[str, Facts]:
        client = self._channel("client", "mutual_tls")
        graph = graph_service_pb2.RegisterGraphRequest(request_id="facts")
        graph.graph.name, graph.graph.version = GRAPH, "1"
        graph.graph.tasks.add(id=TASK, capability=CAPABILITY, input='"fact"')
        _ask(client, "GraphService/RegisterGraph", graph, graph_service_pb2.RegisterGraphResponse)
        if self._with_agents:
            self._start_agents()
        submit = run_service_pb2.SubmitRunRequest(request_id="facts", wait=self._with_agents)
        submit.registered.name = GRAPH
        run = _ask(client, "RunService/SubmitRun", submit, run_service_pb2.SubmitRunResponse).run
        upload = payload_service_pb2.UploadPayloadRequest(chunk=CONTENT)
        client.stream_unary(_PATH + "PayloadService/UploadPayload")(iter([upload.SerializeToString()]), timeout=LIMIT)
        token = self._token()
        waiting = {"SignalRunRequest.run_id": self._waiting(client), "SignalRunRequest.signal": "go"}
        general: dict[str, Fact] = {
            **FACTS,
            **waiting,
            "run_id": run.run_id,
            "signing_request": token["signing_request"],
            **self._returning(str(token["signing_request"])),
        }
        attempt = self._attempt(client) if self._with_agents else {}
        return {"mutual_tls": general, "join": {**general, **token}, "agent_socket": {**general, **attempt}}

    def _waiting(self, client: grpc.Channel) -> str:
        """A run that takes signals as long as this world: nobody offers what its other task asks for."""
        submit = run_service_pb2.SubmitRunRequest(request_id="facts-waiting")
        submit.inline.name = "waiting"
        submit.inline.tasks.add(id="go").wait.signal = "go"
        submit.inline.tasks.add(id="t", capability="contract.nobody@1").schedule_timeout.seconds = 3600
        return _ask(client, "RunService/SubmitRun", submit, run_service_pb2.SubmitRunResponse).run.run_id

    def _token(self) -> dict[str, Fact]:
        operator = self._channel("operator", "mutual_tls")
        request = identity_service_pb2.CreateTokenRequest(kind="client", name="joining")
        answer = _ask(operator, "IdentityService/CreateToken", request, identity_service_pb2.CreateTokenResponse)
        token = JoinToken.parse(answer.token)
        signing_request = new_key_and_csr(token.identity)[1].decode()
        return {"token_id": token.token_id, "secret": token.secret.hex(), "signing_request": signing_request}

    def _returning(self, signing_request: str) -> dict[str, Fact]:
        """The certificate of a sidecar, and the proof that it has the key."""
        old = Credential.from_pem(*self.mesh.ca.issue(Kind.SIDECAR, "returning"))
        signature = prove(old, signing_request.encode())
        return {"RecoverRequest.chain": old.chain_pem.decode(), "RecoverRequest.signature": signature}

    def _start_agents(self) -> None:
        self.mesh.sidecar("worker")
        sidecar = self.mesh.sidecar("holder", granted=("holder", "player"), config=_AGENTS)
        self._sockets = {
            stream: str(sidecar.run_folder / f"{name}.sock") for stream, name in ((False, "holder"), (True, "player"))
        }
        for path in self._sockets.values():
            sidecar.wait_for_file(sidecar.run_folder / path)

    def _attempt(self, client: grpc.Channel) -> dict[str, Fact]:
        """An attempt that runs as long as this world: the agent that holds it never answers."""
        hello = agent_service_pb2.WorkRequest()
        hello.hello.protocol_version = 1
        hello.hello.description.concurrency = 1
        hello.hello.description.capabilities.add(name="contract.hold", version="1")
        self._work.put(hello)
        holder = self._channel(NOBODY, "agent_socket")
        work = holder.stream_stream(
            _PATH + "AgentService/Work",
            request_serializer=agent_service_pb2.WorkRequest.SerializeToString,
            response_deserializer=agent_service_pb2.WorkResponse.FromString,
        )
        self._held = answers = work(iter(self._work.get, None))  # kept: what is not referred to is cancelled
        late = threading.Timer(3 * LIMIT, answers.cancel)
        late.start()
        submit = run_service_pb2.SubmitRunRequest(request_id="facts-attempt")
        submit.inline.name = "holding"
        submit.inline.tasks.add(id="t", capability="contract.hold@1").timeout.seconds = 3600
        _ask(client, "RunService/SubmitRun", submit, run_service_pb2.SubmitRunResponse)
        for response in answers:
            for assignment in response.assignments:
                late.cancel()
                return {"attempt_id": assignment.attempt_id, "attempt_token": assignment.attempt_token}
        raise AssertionError("the stream of the agent ended before it got its attempt")


def _guarded(method: Method) -> bool:
    """Whether a request says what state it expects: then a good one cannot be made without knowing that."""
    return any(field.name.startswith("expected_") for field in method.request.fields)


def _ask(channel: grpc.Channel, method: str, request: Any, response: Any) -> Any:
    call = channel.unary_unary(_PATH + method)
    return response.FromString(call(request.SerializeToString(), timeout=LIMIT, wait_for_ready=True))


def _made(channel: grpc.Channel, method: Method, call: Call, *, patient: bool) -> Answer:
    """Make a call and read what comes: of a stream that only the server writes to, the first message is enough."""
    if method.unary:
        future = channel.unary_unary(method.path).future(call.data, timeout=call.timeout)
        try:
            return Answer(0, "", None, (future.result(LIMIT * 2),))
        except grpc.FutureTimeoutError:
            future.cancel()
            return Answer(-1, f"no answer within {LIMIT * 2:g} s", None, ())
        except grpc.RpcError as error:
            return _refused(error, ())
    requests: Iterator[bytes] | bytes = iter((call.data,)) if method.sends_stream else call.data
    if not method.answers_stream:
        try:
            return Answer(0, "", None, (channel.stream_unary(method.path)(requests, timeout=LIMIT),))
        except grpc.RpcError as error:
            return _refused(error, ())
    make = channel.stream_stream if method.sends_stream else channel.unary_stream
    stream = make(method.path)(requests, timeout=LIMIT if patient or method.sends_stream else _QUIET)
    responses: list[bytes] = []
    try:
        for response in stream:
            responses.append(response)
            if not method.sends_stream:
                break
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Answer(0, "still open", None, tuple(responses))
        return _refused(error, tuple(responses))
    finally:
        stream.cancel()
    return Answer(0, "", None, tuple(responses))


def _refused(error: Any, responses: Sequence[bytes]) -> Answer:
    trailers: Mapping[str, Any] = dict(error.trailing_metadata() or ())
    return Answer(
        error.code().value[0], error.details() or "", trailers.get("grpc-status-details-bin"), tuple(responses)
    )
