"""Faults of our servers, each a small change of one function, and the case that must notice it.

Imported by the tests, and by the server that is to have one (see sitecustomize.py), before anything else: so what a
fault needs of ours it takes from the module it is given, or imports when it strikes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RUNS, GRAPHS, AGENTS = "/antiphon.v1.RunService/", "/antiphon.v1.GraphService/", "/antiphon.v1.RegistryService/"
IDENTITY, PAYLOADS, SOCKET = (
    "/antiphon.v1.IdentityService/",
    "/antiphon.v1.PayloadService/",
    "/antiphon.v1.AgentService/",
)
ATTACH = "/antiphon.mesh.v1.MeshService/Attach"
API = "antiphon_orchestrator.api"


@dataclass(frozen=True)
class Fault:
    """`plant` changes the module once it is imported; the cases of `kind` at `path` must complain with `complaint`.

    The kind `log` is the search of the logs after the valid calls. `agents`: the fault is a sidecar's.
    """

    name: str
    module: str
    plant: Callable[[Any], None]
    path: str
    kind: str
    complaint: str
    agents: bool = False


FAULTS: list[Fault] = []


def fault(
    module: str, path: str, kind: str, complaint: str, *, agents: bool = False
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a fault; its name is that of the function."""

    def register(plant: Callable[[Any], None]) -> Callable[[Any], None]:
        FAULTS.append(Fault(plant.__name__, module, plant, path, kind, complaint, agents))
        return plant

    return register


# Rules


@fault(f"{API}.image", RUNS + "GetRun", "rule", "REQUEST_INVALID was expected")
def no_rule_is_enforced(image: Any) -> None:
    image.Image.check = lambda self, method, data: method.request_class.FromString(data)


@fault(f"{API}.rules", PAYLOADS + "UploadPayload", "rule", "REQUEST_INVALID was expected")
def every_message_of_a_stream_is_waved_through(rules: Any) -> None:
    rules.Shape.keeps = lambda self, message: True


@fault(f"{API}.image", RUNS + "GetRun", "rule", "REQUEST_INVALID was expected")
def one_rule_is_missing_in_the_servers_image(image: Any) -> None:
    load = image.Image.__init__
    image.Image.__init__ = lambda self, data: load(self, _without_a_rule(data, "GetRunRequest", "run_id"))


@fault(f"{API}.image", RUNS + "GetRun", "rule", "the violations name")
def violations_have_no_path(image: Any) -> None:
    named = image._violation
    image._violation = lambda found: named(found)._replace(field="")


@fault(f"{API}.image", RUNS + "GetTask", "rule", "the violations name")
def violations_name_the_outermost_field_only(image: Any) -> None:
    named = image._violation
    image._violation = lambda found: named(found)._replace(field=named(found).field.partition(".")[0])


@fault(f"{API}.image", RUNS + "GetRun", "rule", "an internal error is a bug")
def bad_input_is_an_internal_error(image: Any) -> None:
    def check(self: Any, method: Any, data: bytes) -> Any:
        message = method.request_class.FromString(data)
        if self._violations(message):
            raise ValueError("bad input")
        return message

    image.Image.check = check


# Who may call


@fault(f"{API}.checks", AGENTS + "DrainAgent", "access", "ACCESS_DENIED was expected")
def the_access_option_is_ignored(checks: Any) -> None:
    checks.Checks.access_allowed = lambda self, call: None


@fault(f"{API}.checks", RUNS + "GetRun", "access", "a valid request of operator was refused")
def somebody_who_may_call_is_refused(checks: Any) -> None:
    allowed = checks.Checks.access_allowed

    def access_allowed(self: Any, call: Any) -> None:
        if call.path.endswith("/GetRun") and call.peer.identity.kind.value == "operator":
            raise checks.ApiError(checks.ErrorReason.ERROR_REASON_ACCESS_DENIED, kind="operator", method=call.path)
        allowed(self, call)

    checks.Checks.access_allowed = access_allowed


@fault(f"{API}.checks", RUNS + "ListRuns", "valid", "policy lets nobody call it")
def policy_denies_everybody(checks: Any) -> None:
    denied = checks.ErrorReason.ERROR_REASON_POLICY_DENIED
    _strike(
        checks.Checks,
        "access_allowed",
        "/ListRuns",
        lambda: checks.ApiError(denied, action="read", decision_id="d", cause="no"),
    )


@fault(f"{API}.interceptor", SOCKET + "Call", "access", "METHOD_UNKNOWN was expected")
def methods_of_others_are_left_to_grpc(interceptor: Any) -> None:
    interceptor.Interceptor._unknown = lambda self, path: None
    interceptor.grpc = SimpleNamespace(
        **{**vars(interceptor.grpc), "stream_stream_rpc_method_handler": lambda guard, **options: guard}
    )


@fault(f"{API}.checks", RUNS + "GetRun", "certificate", "CERTIFICATE_EXPIRED was expected")
def an_expired_certificate_is_accepted(checks: Any) -> None:
    from datetime import UTC, datetime

    verified = checks.PeerVerifier.verify
    checks.PeerVerifier.verify = lambda self, certificate, now: verified(
        self, certificate, datetime(2000, 1, 1, tzinfo=UTC)
    )


@fault(f"{API}.interceptor", RUNS + "WatchRun", "certificate", "CERTIFICATE_EXPIRED was expected")
def streams_are_not_asked_for_their_certificate(interceptor: Any) -> None:
    run = interceptor.Checks.run

    def lax(self: Any, call: Any) -> None:
        if call.path.endswith("/WatchRun"):
            call.message = self._image.check(call.known, call.request)
            call.peer = self._verifier._parsed(call.certificate)
        else:
            run(self, call)

    interceptor.Checks.run = lax


@fault(f"{API}.certificate", RUNS + "GetRun", "certificate", "certificate (foreign): there was a connection")
def a_foreign_authority_is_trusted(certificate: Any) -> None:
    authority = Path(sys.argv[sys.argv.index("--authority") + 1])

    def configuration(credential: Any, client_certificates: bool) -> Any:
        both = credential.bundle_pem + (authority.parent / "foreign" / "bundle.pem").read_bytes()
        return certificate.grpc.ssl_server_certificate_configuration(
            [(credential.key_pem, credential.chain_pem)], both if client_certificates else None
        )

    certificate._configuration = configuration


@fault(f"{API}.checks", RUNS + "WatchRun", "certificate", "certificate (join listener): CERTIFICATE_REQUIRED was")
def the_join_listener_serves_everything(checks: Any) -> None:
    valid = checks.Checks.certificate_valid

    def certificate_valid(self: Any, call: Any) -> None:
        if self._listener != checks.options_pb2.LISTENER_JOIN:
            valid(self, call)

    checks.Checks.certificate_valid = certificate_valid


# Errors


@fault(f"{API}.registry_service", AGENTS + "GetAgent", "valid", "neither universal nor declared")
def a_reason_is_not_declared(service: Any) -> None:
    _raising(service.RegistryService, "GetAgent", lambda: _refusal(service, "RUN_NOT_FOUND", run_id="r"))


@fault(f"{API}.errors", RUNS + "GetRun", "rule", "the code is 9, declared is 3")
def a_code_is_wrong(errors: Any) -> None:
    from dataclasses import replace

    _after(errors.ApiError, lambda self: setattr(self, "spec", replace(self.spec, code=_code("FAILED_PRECONDITION"))))


@fault(f"{API}.errors", RUNS + "GetRun", "rule", "the metadata is []")
def metadata_is_missing(errors: Any) -> None:
    _after(errors.ApiError, lambda self: self.metadata.clear())


@fault(f"{API}.errors", RUNS + "GetRun", "rule", "the metadata is ['field', 'more']")
def metadata_says_more_than_is_declared(errors: Any) -> None:
    _after(errors.ApiError, lambda self: self.metadata.update(more="text"))


@fault(f"{API}.errors", RUNS + "SubmitRuns", "reused", "the metadata is []")
def an_item_of_a_stream_has_no_metadata(errors: Any) -> None:
    said = errors.ApiError.to_error

    def to_error(self: Any) -> Any:
        self.metadata.clear()
        return said(self)

    errors.ApiError.to_error = to_error


@fault(f"{API}.checks", RUNS + "ListRuns", "valid", "RetryInfo is missing")
def retry_info_is_missing(checks: Any) -> None:
    def refusal() -> Any:
        error = checks.ApiError(checks.ErrorReason.ERROR_REASON_RATE_LIMITED, limit="1")
        error.retry_after = None
        return error

    _strike(checks.Checks, "size_and_rate", "/ListRuns", refusal)


@fault(f"{API}.errors", RUNS + "GetRun", "rule", "RetryInfo is there")
def retry_info_is_sent_with_every_error(errors: Any) -> None:
    _after(errors.ApiError, lambda self: setattr(self, "retry_after", errors._RETRY_AFTER))


@fault(f"{API}.errors", RUNS + "GetRun", "rule", "the domain is elsewhere")
def the_domain_is_another(errors: Any) -> None:
    errors.DOMAIN = "elsewhere"


@fault(f"{API}.errors", RUNS + "GetRun", "rule", "exactly one known reason")
def a_status_has_two_reasons(errors: Any) -> None:
    said = errors.ApiError.to_status

    def to_status(self: Any) -> Any:
        status = said(self)
        status.details.add().CopyFrom(status.details[0])
        return status

    errors.ApiError.to_status = to_status


@fault(f"{API}.interceptor", RUNS + "GetRun", "rule", "REQUEST_INVALID was expected: code 3, []")
def a_status_has_no_details(interceptor: Any) -> None:
    async def refuse(self: Any, context: Any, call: Any, error: Any) -> None:
        await context.abort(error.spec.code, str(error))

    interceptor.Interceptor._refuse = refuse


# Deadlines and sizes


@fault(f"{API}.checks", RUNS + "GetRun", "deadline", "DEADLINE_REQUIRED was expected")
def a_missing_deadline_is_accepted(checks: Any) -> None:
    checks.Checks.deadline_present = lambda self, call: None


@fault(f"{API}.checks", RUNS + "GetRun", "size", "MESSAGE_TOO_LARGE was expected")
def a_large_message_is_accepted(checks: Any) -> None:
    checks.Checks.small_enough = lambda self, request: None


@fault(f"{API}.server", RUNS + "SubmitRuns", "size", "size (much): code 8 was expected")
def any_size_is_accepted(server: Any) -> None:
    told = server.ServerOptions.channel_options
    server.ServerOptions.channel_options = lambda self: [
        (key, -1 if key == "grpc.max_receive_message_length" else value) for key, value in told(self)
    ]
    checks = sys.modules[f"{API}.checks"].Checks  # type: ignore[attr-defined]
    checks.small_enough = lambda self, request: None


# Repetition


@fault("antiphon_orchestrator.runs.submit", RUNS + "SubmitRun", "repeated", "the same request had different answers")
def a_request_id_makes_a_run_each_time(submit: Any) -> None:
    import uuid

    prepare = submit.Submissions.prepare

    async def forgetful(self: Any, request: Any, *others: Any) -> Any:
        request.request_id = uuid.uuid4().hex
        return await prepare(self, request, *others)

    submit.Submissions.prepare = forgetful


@fault("antiphon_orchestrator.runs.submit", RUNS + "SubmitRun", "reused", "REQUEST_ID_REUSED was expected")
def a_request_id_takes_any_content(submit: Any) -> None:
    sha256 = submit.hashlib.sha256
    submit.hashlib = SimpleNamespace(sha256=lambda data: sha256(b""))


@fault(f"{API}.graph_service", GRAPHS + "RegisterGraph", "reused", "REQUEST_ID_REUSED was expected")
def a_request_id_is_not_remembered(service: Any) -> None:
    async def remember(self: Any, *others: Any) -> None:
        pass

    service.GraphService._remember = remember


@fault(f"{API}.registry_service", AGENTS + "ListAgents", "repeated", "the same request had different answers")
def a_read_changes_something(service: Any) -> None:
    read = service.RegistryService.ListAgents
    ghosts: list[str] = []

    async def list_agents(self: Any, request: Any, context: Any) -> Any:
        ghosts.append(f"ghost-{len(ghosts)}")
        response = await read(self, request, context)
        for name in ghosts:
            response.agents.add(name=name)
        return response

    service.RegistryService.ListAgents = list_agents


# What is newer than the server


@fault(f"{API}.image", GRAPHS + "ValidateGraph", "unknown", "a valid request of client was refused")
def an_unknown_field_breaks_the_call(image: Any) -> None:
    from google.protobuf.unknown_fields import UnknownFieldSet

    parse = image.Image.parse

    def strict(self: Any, method: Any, generated: Any, data: bytes) -> Any:
        message = parse(self, method, generated, data)
        if len(UnknownFieldSet(message)):
            raise image.undecodable()
        return message

    image.Image.parse = strict


@fault("antiphon_orchestrator.mesh.sessions", ATTACH, "unknown", "an internal error is a bug")
def an_unknown_enum_value_breaks_the_call(sessions: Any) -> None:
    from antiphon.v1 import capability_pb2

    open_ = sessions.Sessions.open

    async def strict(self: Any, announcer: Any, hello: Any) -> Any:
        for agent in hello.agents:
            for capability in agent.capabilities:
                capability_pb2.Effect.Name(capability.effect)
        return await open_(self, announcer, hello)

    sessions.Sessions.open = strict


# Logs


@fault(f"{API}.identity_service", IDENTITY + "Join", "log", "orchestrator logs")
def a_secret_is_logged(service: Any) -> None:
    _logging(service.IdentityService, "Join", lambda request: request.secret)


@fault("antiphon_orchestrator.runs.submit", RUNS + "SubmitRun", "log", "orchestrator logs")
def content_is_logged(submit: Any) -> None:
    _logging(submit.Submissions, "prepare", lambda request: request.input.inline)


@fault(f"{API}.image", PAYLOADS + "UploadPayload", "log", "orchestrator logs")
def a_message_of_a_stream_is_logged_in_hexadecimal(image: Any) -> None:
    from antiphon_orchestrator import telemetry

    parse = image.Image.parse

    def talkative(self: Any, method: Any, generated: Any, data: bytes) -> Any:
        telemetry.logger("fault").warning("parsed", cause=data.hex())
        return parse(self, method, generated, data)

    image.Image.parse = talkative


# The sidecar's sockets


@fault("antiphon_sidecar.checks", SOCKET + "ReportProgress", "rule", "REQUEST_INVALID was expected", agents=True)
def a_sidecar_enforces_no_rule_of_progress(checks: Any) -> None:
    checks.mistake_in_progress = lambda request: None


@fault("antiphon_sidecar.agents", SOCKET + "Call", "reused", "REQUEST_ID_REUSED was expected", agents=True)
def a_sidecar_hands_on_refused_calls_as_outcomes(agents: Any) -> None:
    agents.refusal_of_call = lambda request, response: None


@fault("antiphon_sidecar.agents", SOCKET + "ReportProgress", "log", "logs", agents=True)
def a_sidecar_logs_a_token(agents: Any) -> None:
    progress = agents.mistake_in_progress

    def talkative(request: Any) -> Any:
        agents.log.warning("progress", extra={"cause": repr(request.attempt_token)})
        return progress(request)

    agents.mistake_in_progress = talkative


# How faults are made


def _code(name: str) -> Any:
    import grpc

    return grpc.StatusCode[name]


def _refusal(module: Any, reason: str, **metadata: str) -> Any:
    return module.ApiError(module.ErrorReason.Value(f"ERROR_REASON_{reason}"), **metadata)


def _after(owner: Any, change: Callable[[Any], None]) -> None:
    """Change every object right after it was made."""
    make = owner.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        change(self)

    owner.__init__ = init


def _strike(owner: Any, name: str, ending: str, error: Callable[[], Exception]) -> None:
    """Make a check refuse the calls of one method."""
    check = getattr(owner, name)

    def refuse(self: Any, call: Any) -> None:
        if call.path.endswith(ending):
            raise error()
        check(self, call)

    setattr(owner, name, refuse)


def _raising(owner: Any, name: str, error: Callable[[], Exception]) -> None:
    async def handler(self: Any, request: Any, context: Any) -> None:
        raise error()

    setattr(owner, name, handler)


def _logging(owner: Any, name: str, what: Callable[[Any], Any]) -> None:
    """Make a handler log a part of each request."""
    handle = getattr(owner, name)

    async def talkative(self: Any, request: Any, *others: Any) -> Any:
        from antiphon_orchestrator import telemetry

        telemetry.logger("fault").warning("called", cause=what(request))
        return await handle(self, request, *others)

    setattr(owner, name, talkative)


def _without_a_rule(data: bytes, message: str, field: str) -> bytes:
    """The image with the options of one field taken away."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    image = FileDescriptorSet.FromString(data)
    for file in image.file:
        for declared in file.message_type:
            for one in declared.field:
                if (declared.name, one.name) == (message, field):
                    one.ClearField("options")
    return image.SerializeToString()
