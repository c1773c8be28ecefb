"""Existing processes as agents: a real HTTP server and real programs, neither of which knows of Antiphon."""

from __future__ import annotations

import asyncio
import json
import select
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from antiphon.v1 import agent_service_pb2, failure_pb2
from antiphon_certs import Grants
from antiphon_sidecar import adapters
from antiphon_sidecar.adapters.base import AdapterAgent, ExecutionFailed
from antiphon_sidecar.adapters.http import HttpAdapter, _Exchange
from antiphon_sidecar.attempts import End
from antiphon_sidecar.config import AgentConfig, CapabilityConfig, HttpCall
from antiphon_sidecar.node import Node

from tests.integration.sidecar_process import WAIT, eventually


class Service(BaseHTTPRequestHandler):
    """Answers by path; keeps connections."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, dict[str, str], bytes]]
    connections: set[Any]
    release: threading.Event
    broken: threading.Event

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).connections.add(self.client_address)
        type(self).seen.append(
            (self.command, self.path, {key.lower(): text for key, text in self.headers.items()}, body)
        )
        status, answer = 200, json.dumps({"result": [{"summary": "short"}], "echo": self.path}).encode()
        if self.path.startswith("/status/"):
            status = int(self.path.rsplit("/", 1)[1])
        elif self.path == "/nothing":
            status, answer = 204, b""
        elif self.path == "/garbage":
            answer = b'{"result": NaN}'
        elif self.path == "/large":
            answer = json.dumps("x" * 5_000).encode()
        elif self.path == "/slow":
            type(self).release.wait(WAIT)
            if not self.connection.recv(1):
                type(self).broken.set()
                self.close_connection = True
                return
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer) + (self.path == "/short")))
        self.end_headers()
        self.wfile.write(answer)
        if self.path in ("/close", "/short"):
            self.close_connection = True  # without having said so

    do_GET = do_POST

    def log_message(self, format: str, *arguments: Any) -> None:
        return


@pytest.fixture
def service() -> Iterator[tuple[str, type[Service]]]:
    handler: Any = type("Service", (Service,), {
        "seen": [], "connections": set(), "release": threading.Event(), "broken": threading.Event()
    })  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    handler.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def assignment(value: Any, attempt_id: str = "a") -> agent_service_pb2.Assignment:
    made = agent_service_pb2.Assignment(
        attempt_id=attempt_id, idempotency_key="key", capability="text.do", version="1", traceparent="00-aa-bb-01"
    )
    made.input.inline = json.dumps(value).encode()
    return made


async def http(call: HttpCall, value: Any) -> Any:
    capability = CapabilityConfig("text.do", "1", http=call)
    adapter = adapters.make(AgentConfig("gateway", adapter="http", capabilities=(capability,)))
    try:
        return json.loads(await adapter.execute(capability, assignment(value)))
    finally:
        await adapter.close()


async def test_a_service_gets_the_template_filled_and_the_named_part_comes_back(service: Any) -> None:
    url, handler = service
    call = HttpCall(
        f"{url}/items/${{input.id}}?q=${{input.id}}",
        headers={"Authorization": "Bearer key"},
        body='{"text": ${input.text}, "n": ${input.list.1}}',
        output="/result/0/summary",
    )
    assert await http(call, {"id": "a b/c", "text": 'quote " and \n', "list": [1, {"x": None}]}) == "short"
    method, path, headers, body = handler.seen[0]
    assert (method, path) == ("POST", "/items/a%20b%2Fc?q=a%20b%2Fc")
    assert json.loads(body) == {"text": 'quote " and \n', "n": {"x": None}}
    assert headers["authorization"] == "Bearer key" and headers["idempotency-key"] == "key"
    assert headers["traceparent"] == "00-aa-bb-01" and headers["x-antiphon-attempt"] == "a"


async def test_without_templates_the_whole_input_goes_and_the_whole_answer_comes(service: Any) -> None:
    url, handler = service
    assert (await http(HttpCall(f"{url}/whole"), {"a": 1}))["echo"] == "/whole"
    assert json.loads(handler.seen[0][3]) == {"a": 1}
    await http(HttpCall(f"{url}/whole", method="GET"), {"a": 1})
    assert handler.seen[1][0] == "GET" and handler.seen[1][3] == b""


async def test_an_answer_of_nothing_is_null(service: Any) -> None:
    assert await http(HttpCall(service[0] + "/nothing"), {"a": 1}) is None
    assert await execute(program("import sys; sys.stdin.read()"), 1) == [None]


@pytest.mark.parametrize(
    ("path", "options", "kind"),
    [
        ("/nothing", {"output": "/result"}, "INVALID_OUTPUT"),
        ("/status/503", {}, "TRANSIENT"),
        ("/status/429", {}, "TRANSIENT"),
        ("/status/404", {}, "PERMANENT"),
        ("/status/302", {}, "PERMANENT"),
        ("/status/422", {"errors": {"422": "INVALID_INPUT", "4xx": "BUDGET"}}, "INVALID_INPUT"),
        ("/status/400", {"errors": {"422": "INVALID_INPUT", "4xx": "BUDGET"}}, "BUDGET"),
        ("/garbage", {}, "INVALID_OUTPUT"),
        ("/large", {"max_response": 1_000}, "INVALID_OUTPUT"),
        ("/short", {}, "TRANSIENT"),
        ("/", {"output": "/result/7"}, "INVALID_OUTPUT"),
        ("/", {"body": "${input.missing}"}, "INVALID_INPUT"),
        ("/slow", {"read_timeout": timedelta(milliseconds=50)}, "TIMEOUT"),
    ],
)
async def test_what_goes_wrong_is_a_failure_of_the_right_kind(
    service: Any, path: str, options: dict[str, Any], kind: str
) -> None:
    with pytest.raises(ExecutionFailed) as caught:
        await http(HttpCall(service[0] + path, **options), {"a": 1})
    assert failure_pb2.FailureKind.Name(caught.value.failure.kind) == f"FAILURE_KIND_{kind}"


async def test_nobody_listening_is_transient() -> None:
    with pytest.raises(ExecutionFailed) as caught:
        await http(HttpCall("http://127.0.0.1:9/"), None)
    assert caught.value.failure.kind == failure_pb2.FAILURE_KIND_TRANSIENT and caught.value.failure.retryable


async def test_a_service_that_drops_the_connection_was_reached() -> None:
    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(drop, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ExecutionFailed, match="broke the connection"):
            await http(HttpCall(f"http://127.0.0.1:{port}/", method="GET"), None)


async def test_a_part_that_cannot_stand_in_a_url_is_named() -> None:
    with pytest.raises(ExecutionFailed, match=r"\$\{input\.a\.b\} in the URL must be a text or a number"):
        await http(HttpCall("http://127.0.0.1:9/${input.a.b}"), {"a": {"b": []}})


async def test_connections_are_kept_and_one_that_was_closed_is_noticed(service: Any) -> None:
    url, handler = service
    capability = CapabilityConfig("text.do", "1", http=HttpCall(f"{url}/${{input}}"))
    adapter = adapters.make(AgentConfig("gateway", adapter="http", capabilities=(capability,)))
    for path in ("a", "b", "close", "c"):
        await adapter.execute(capability, assignment(path))
        if path == "close":
            (idle,) = adapter._idle.values()  # type: ignore[attr-defined]
            readable = partial(select.select, [idle[0].sock], [], [], WAIT)
            assert (await asyncio.to_thread(readable))[0]  # the end of the connection has arrived
    assert len(handler.connections) == 2
    await adapter.close()


async def test_a_cancel_that_comes_too_late_leaves_the_kept_connection_alone(service: Any) -> None:
    url, handler = service
    call = HttpCall(f"{url}/")
    capability = CapabilityConfig("text.do", "1", http=call)
    adapter = HttpAdapter(AgentConfig("gateway", adapter="http", capabilities=(capability,)))
    exchange = _Exchange(adapter, call, urlsplit(call.url), {}, b"1")
    await asyncio.to_thread(exchange.run)
    exchange.abort()
    await adapter.execute(capability, assignment(1))
    assert len(handler.connections) == 1
    await adapter.close()


async def test_a_failure_of_the_adapter_itself_shows_no_secret() -> None:
    capability = CapabilityConfig("text.do", "1", http=HttpCall("http://127.0.0.1:9/"))
    config = AgentConfig("gateway", adapter="http", capabilities=(capability,))
    node = Node("team-a", Grants(("gateway",), ("text.*",)))

    class Broken(HttpAdapter):
        async def execute(self, capability: Any, assignment: Any) -> bytes:
            "key\u2026".encode("latin-1")
            return b""

    agent = AdapterAgent(node, config, Broken(config))
    link = node.inflight.attach(lambda: None)
    node.inflight.welcomed(link, {})
    node.inflight.claim(link, [(0, 1)])
    running = asyncio.create_task(agent.run())
    await eventually(lambda: "gateway" in link.grants and link.grants["gateway"].slots)
    node.inflight.offer(link, "gateway", "a", 0, 1, assignment(1), b"t", 10, None, node.now())
    await eventually(lambda: link.reports)
    assert link.reports[0].result.failure.message == "the adapter failed: UnicodeEncodeError"
    running.cancel()
    await asyncio.wait([running])


async def test_a_cancelled_attempt_breaks_its_connection(service: Any) -> None:
    url, handler = service
    capability = CapabilityConfig("text.do", "1", http=HttpCall(f"{url}/slow"))
    adapter = adapters.make(AgentConfig("gateway", adapter="http", capabilities=(capability,)))
    task = asyncio.create_task(adapter.execute(capability, assignment(None)))
    await eventually(lambda: handler.seen)
    task.cancel()
    await asyncio.wait([task])
    handler.release.set()
    assert await asyncio.to_thread(handler.broken.wait, WAIT)
    await adapter.close()


ECHO = """
import json, os, sys
print(json.dumps([json.loads(sys.stdin.readline()), os.environ["ANTIPHON_IDEMPOTENCY_KEY"]]))
"""
LINES = """
import json, os, sys, time
for line in sys.stdin:
    value = json.loads(line)
    if value == "die":
        sys.exit(7)
    if value == "hang":
        time.sleep(60)
    special = {"large": "x" * 9000, "bad": "oops"}
    print(special[value] if value in ("large", "bad") else json.dumps([value, os.getpid()]), flush=True)
"""


def program(code: str, **options: Any) -> AgentConfig:
    return AgentConfig("tool", (sys.executable, "-c", code), adapter="exec", max_output=4_096, **options)


async def execute(config: AgentConfig, *values: Any) -> list[Any]:
    """Outputs, or names of failure kinds."""
    adapter, outputs = adapters.make(config), []
    capability = CapabilityConfig("text.do", "1")
    for value in values:
        try:
            outputs.append(json.loads(await adapter.execute(capability, assignment(value))))
        except ExecutionFailed as error:
            outputs.append(failure_pb2.FailureKind.Name(error.failure.kind).removeprefix("FAILURE_KIND_"))
    await adapter.close()
    return outputs


async def test_a_program_gets_a_line_and_its_output_is_the_answer() -> None:
    assert await execute(program(ECHO), {"a": "b\nc"}) == [[{"a": "b\nc"}, "key"]]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import sys; print('boom', file=sys.stderr); sys.exit(3)", "TRANSIENT"),
        ("import os; os.kill(os.getpid(), 9)", "LOST"),
        ("print('not json')", "INVALID_OUTPUT"),
        ("print('\"' + 'x' * 5000 + '\"')", "INVALID_OUTPUT"),
    ],
)
async def test_a_program_that_fails_is_a_failure_of_the_right_kind(code: str, kind: str) -> None:
    assert await execute(program(code), 1) == [kind]


async def test_by_default_a_program_is_stopped_when_it_has_said_more_than_a_mebibyte() -> None:
    config = AgentConfig("tool", (sys.executable, "-c", "print('1' * 1_100_000)"), adapter="exec")
    with pytest.raises(ExecutionFailed, match="answered more than 1048576 bytes"):
        await adapters.make(config).execute(CapabilityConfig("text.do", "1"), assignment(1))


async def test_the_end_of_stderr_is_the_cause() -> None:
    config = program("import sys; print('boom', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ExecutionFailed, match="exited with 3") as caught:
        await adapters.make(config).execute(CapabilityConfig("text.do", "1"), assignment(1))
    assert caught.value.failure.cause == "boom\n"


async def test_a_program_that_is_not_there_is_transient() -> None:
    config = AgentConfig("tool", ("/no/such/program",), adapter="exec")
    assert await execute(config, 1) == ["TRANSIENT"]


async def test_a_pool_keeps_its_process_and_replaces_one_that_dies_or_breaks_the_bounds() -> None:
    outputs = await execute(program(LINES, mode="pool"), 1, 2, "bad", 3, "die", 4, "large", 5)
    first, second, bad, third, died, fourth, large, fifth = outputs
    assert first[1] == second[1]
    assert bad == "INVALID_OUTPUT" and third[1] != first[1]
    assert died == "LOST" and fourth[1] != third[1]
    assert large == "INVALID_OUTPUT" and fifth[1] != fourth[1]


STRAY = """
import json, sys
{before}
for line in sys.stdin:
    print(json.dumps([json.loads(line)]{options}){more}, flush=True)
"""


@pytest.mark.parametrize(
    ("stray", "outputs"),
    [
        ({"before": "print('model loaded')"}, ["INVALID_OUTPUT"] * 3),
        ({"options": ", indent=1"}, ["INVALID_OUTPUT"] * 3),
        ({"more": r" + '\n1'"}, [["a"], ["b"], ["c"]]),
        ({"more": ", end='\\n '"}, [["a"], ["b"], ["c"]]),
    ],
)
async def test_no_attempt_gets_what_a_pooled_program_printed_for_another(stray: dict[str, str], outputs: Any) -> None:
    code = STRAY.format(**({"before": "", "options": "", "more": ""} | stray))
    assert await execute(program(code, mode="pool"), "a", "b", "c") == outputs


async def test_what_a_pooled_program_has_left_behind_ends_with_it() -> None:
    code = (
        "import subprocess; line = input();"
        "print(subprocess.Popen(['sleep', '60'], stdin=subprocess.DEVNULL).pid, flush=True)"
    )
    adapter, pids = adapters.make(program(code, mode="pool")), []
    for number in range(2):
        pids.append(int(await adapter.execute(CapabilityConfig("text.do", "1"), assignment(number))))
        (idle,) = adapter._idle  # type: ignore[attr-defined]
        await eventually(lambda idle=idle: idle.returncode is not None)
    await eventually(lambda: has_ended(pids[0]))
    await adapter.close()
    await eventually(lambda: has_ended(pids[1]))


async def test_an_answer_does_not_wait_for_what_its_program_has_left_behind() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    async with asyncio.timeout(WAIT):
        (pid,) = await execute(program(code), None)
    await eventually(lambda: has_ended(pid))


@pytest.mark.parametrize("mode", ["pool", "per_call"])
async def test_a_cancelled_attempt_kills_its_process_group(tmp_path: Path, mode: str) -> None:
    marker = tmp_path / "pid"
    code = (
        "import os, subprocess, sys, time; line = sys.stdin.readline();"
        f"child = subprocess.Popen(['sleep', '60']); open({str(marker)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    adapter = adapters.make(program(code, mode=mode))
    task = asyncio.create_task(adapter.execute(CapabilityConfig("text.do", "1"), assignment(1)))
    await eventually(lambda: marker.exists() and marker.read_text())
    task.cancel()
    await asyncio.wait([task])
    await eventually(lambda: has_ended(int(marker.read_text())))
    await adapter.close()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for somebody to ask how it ended."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


async def test_the_runner_answers_every_attempt_once_and_no_more_than_concurrency_at_a_time() -> None:
    capability = CapabilityConfig("text.do", "1", timeout=timedelta(seconds=5))
    config = program(LINES, mode="pool", pool_size=2, concurrency=2, prefetch=8, capabilities=(capability,))
    node = Node("team-a", Grants(("tool",), ("text.*",)))
    agent = AdapterAgent(node, config, adapters.make(config))
    changed = asyncio.Event()
    link = node.inflight.attach(changed.set)
    node.inflight.welcomed(link, {})
    node.inflight.claim(link, [(0, 1)])
    running = asyncio.create_task(agent.run())
    async with asyncio.timeout(WAIT):
        while link.grants.get("tool") is None or link.grants["tool"].slots != 10:
            changed.clear()
            await changed.wait()
        for number, value in enumerate([1, "die", 2, "hang", 3, "bad"]):
            offered = assignment(value, str(number))
            node.inflight.offer(link, "tool", str(number), 0, 1, offered, b"t", 10, None, node.now())
        wrong = assignment(1, "wrong")
        wrong.capability = "text.other"
        node.inflight.offer(link, "tool", "wrong", 0, 1, wrong, b"t", 10, None, node.now())
        while len(link.reports) < 7:
            assert len(agent.seat.running) <= 2
            changed.clear()
            await changed.wait()
    ends = {attempt.attempt_id: attempt for attempt in link.reports}
    assert len(ends) == 7 and all(attempt.end is End.RESULT for attempt in ends.values())
    kinds = {key: failure_pb2.FailureKind.Name(attempt.result.failure.kind) for key, attempt in ends.items()
             if attempt.result.HasField("failure")}  # fmt: skip
    assert kinds == {
        "1": "FAILURE_KIND_LOST", "3": "FAILURE_KIND_TIMEOUT", "5": "FAILURE_KIND_INVALID_OUTPUT",
        "wrong": "FAILURE_KIND_PERMANENT",
    }  # fmt: skip
    node.inflight.offer(link, "tool", "cancelled", 0, 1, assignment("hang", "cancelled"), b"t", 10, None, node.now())
    await eventually(lambda: "cancelled" in agent.seat.running)
    async with asyncio.timeout(WAIT):
        node.inflight.cancel("cancelled", "run cancelled", node.now())
        while link.reports[-1].attempt_id != "cancelled":
            changed.clear()
            await changed.wait()
    assert link.reports[-1].result.failure.kind == failure_pb2.FAILURE_KIND_CANCELLED
    running.cancel()
    await asyncio.wait([running])
    assert not agent.seat.present
