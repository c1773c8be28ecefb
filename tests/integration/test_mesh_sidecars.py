"""Life beside agents: drains, restarts, existing programs and services as agents, certificates that are renewed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from antiphon import Client, Graph, Retry, output_of
from antiphon.v1 import failure_pb2, run_pb2
from antiphon_certs import CertificateFiles, Kind

from tests.harness import Mesh, eventually, journal_of

pytest_plugins = ("tests.harness.fixtures",)

ONCE = [Retry(["TRANSIENT", "LOST", "TIMEOUT"], max_attempts=1)]


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


def seen(mesh: Mesh, run: run_pb2.Run) -> list[str]:
    return [entry.event for entry in journal_of(mesh.journal) if entry.attempt_id.startswith(run.run_id)]


async def test_sigterm_drains_what_is_at_work_gives_back_the_rest_and_exits_0(client: Client, mesh: Mesh) -> None:
    leaving = mesh.sidecar("leaving", version="5", concurrency=1, prefetch=4)
    await mesh.attached(client, "leaving")
    gate = mesh.path("gate")
    held = await client.submit(one_task("work.hold@5", str(gate)))
    await eventually(lambda: seen(mesh, held) == ["begun"])
    waiting = [await client.submit(one_task("work.echo@5", n)) for n in range(3)]
    leaving.send(signal.SIGTERM)
    await eventually(lambda: '"draining"' in leaving.said())
    gate.touch()
    assert leaving.end() == 0
    assert output_of(await client.wait(held.run_id)) == {"t": "released"}
    assert leaving.agent_pids() == []
    leaving.start()
    for number, run in enumerate(waiting):
        assert output_of(await client.wait(run.run_id)) == {"t": number}
        assert seen(mesh, run) == ["begun", "done"]


async def test_an_agent_that_exits_is_started_again(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("mortal", version="5")
    await mesh.attached(client, "mortal")
    pids: set[int] = set()
    for _ in range(3):
        run = await client.submit(one_task("work.who@5"), wait=True)
        pids.add(output_of(run)["t"]["pid"])
        sidecar.kill_agent()
    assert len(pids) == 3
    await eventually(lambda: sidecar.said().count('"agent ended"') == 3)


async def test_nothing_of_an_agent_outlives_its_sidecar(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("orphan", version="5")
    await mesh.attached(client, "orphan")
    pid = output_of(await client.submit(one_task("work.who@5"), wait=True))["t"]["pid"]
    sidecar.kill9()
    await eventually(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_sidecar_that_dies_loses_its_attempts_and_they_are_tried_again(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("fragile", version="5")
    await mesh.attached(client, "fragile")
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@5", str(gate), retry=[Retry(["LOST"], max_attempts=2)]))
    await eventually(lambda: seen(mesh, run) == ["begun"])
    sidecar.restart()
    gate.touch()
    assert output_of(await client.wait(run.run_id)) == {"t": "released"}
    first, second = [one async for one in client.list_attempts(run.run_id, "t")]
    assert first.state == run_pb2.ATTEMPT_STATE_LOST and second.state == run_pb2.ATTEMPT_STATE_SUCCEEDED


class Service(BaseHTTPRequestHandler):
    """An existing service that knows nothing of us."""

    protocol_version = "HTTP/1.1"
    calls: list[tuple[str, dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        type(self).calls.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status = int(self.path.rpartition("/")[2]) if self.path.startswith("/status/") else 200
        answer = b"<html>" if self.path == "/garbage" else json.dumps({"data": {"echo": json.loads(body)}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@contextmanager
def service() -> Iterator[tuple[str, type[Service]]]:
    handler = type("Handler", (Service,), {"calls": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler
        finally:
            server.shutdown()


HTTP = """
[[agent]]
name = "summarizer"
adapter = "http"
concurrency = 4
[[agent.capability]]
name = "text.echo"
url = "{url}/echo"
body = '{{"text": ${{input.text}}, "n": ${{input.n}}}}'
output = "/data/echo"
headers = {{ X-Api-Key = "k" }}
input_schema = '{{"type": "object", "required": ["text"]}}'
[[agent.capability]]
name = "text.status"
url = "{url}/status/${{input}}"
errors = {{ 402 = "BUDGET", 403 = "POLICY" }}
[[agent.capability]]
name = "text.away"
url = "http://127.0.0.1:1/"
[[agent.capability]]
name = "text.garbage"
url = "{url}/garbage"
"""


async def test_an_http_service_is_an_agent_without_knowing_it(client: Client, mesh: Mesh) -> None:
    with service() as (url, handler):
        mesh.sidecar("summarizer", config=HTTP.format(url=url))
        await mesh.attached(client, "summarizer")
        run = await client.submit(one_task("text.echo@1", {"text": "hällo", "n": 5}), wait=True)
        assert output_of(run) == {"t": {"text": "hällo", "n": 5}}
        path, headers, body = handler.calls[0]
        assert path == "/echo" and json.loads(body) == {"text": "hällo", "n": 5}
        assert headers["x-api-key"] == "k"
        assert headers["idempotency-key"] == f"{run.run_id}/t/0"
        assert headers["traceparent"].split("-")[1] == run.traceparent.split("-")[1]
        for status, kind in {
            400: failure_pb2.FAILURE_KIND_PERMANENT,
            402: failure_pb2.FAILURE_KIND_BUDGET,
            403: failure_pb2.FAILURE_KIND_POLICY,
            429: failure_pb2.FAILURE_KIND_TRANSIENT,
            500: failure_pb2.FAILURE_KIND_TRANSIENT,
            503: failure_pb2.FAILURE_KIND_TRANSIENT,
        }.items():
            run = await client.submit(one_task("text.status@1", status, retry=ONCE), wait=True)
            assert run.failure.kind == kind, (status, run.failure)
            assert str(status) in run.failure.message
        run = await client.submit(one_task("text.garbage@1", "x"), wait=True)
        assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT
        run = await client.submit(one_task("text.echo@1", {"n": 5}), wait=True)
        assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_INPUT
        run = await client.submit(one_task("text.away@1", "x", retry=ONCE), wait=True)
        assert run.failure.kind == failure_pb2.FAILURE_KIND_TRANSIENT


PROGRAM = """
import json, os, sys, time
value = json.load(sys.stdin)
if value == "fail":
    print("what went wrong", file=sys.stderr); sys.exit(3)
if value == "garbage":
    print("not json"); sys.exit(0)
if value == "sleep":
    time.sleep(60)
print(json.dumps({"value": value, "key": os.environ["ANTIPHON_IDEMPOTENCY_KEY"]}))
"""

POOL = """
import json, os, sys
for line in sys.stdin:
    value = json.loads(line)
    if value == "die":
        os._exit(1)
    print(json.dumps({"value": value, "pid": os.getpid()}), flush=True)
"""

EXEC = """
[[agent]]
name = "redactor"
adapter = "exec"
command = ["{python}", "{program}"]
[[agent.capability]]
name = "text.redact"
[[agent]]
name = "pooled"
adapter = "exec"
mode = "pool"
pool_size = 2
command = ["{python}", "{pool}"]
[[agent.capability]]
name = "text.pooled"
"""


async def test_a_program_is_an_agent_without_knowing_it(client: Client, mesh: Mesh) -> None:
    program, pool = mesh.path("program.py"), mesh.path("pool.py")
    program.write_text(PROGRAM)
    pool.write_text(POOL)
    config = EXEC.format(python=sys.executable, program=program, pool=pool)
    mesh.sidecar("redactor", config=config, granted=("redactor", "pooled"))
    await mesh.attached(client, "redactor")
    await mesh.attached(client, "pooled")
    run = await client.submit(one_task("text.redact@1", {"a": 1}), wait=True)
    assert output_of(run) == {"t": {"value": {"a": 1}, "key": f"{run.run_id}/t/0"}}
    run = await client.submit(one_task("text.redact@1", "fail", retry=ONCE), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_TRANSIENT and "exited with 3" in run.failure.message
    assert "what went wrong" in (await client.get_task(run.run_id, "t")).failure.cause
    run = await client.submit(one_task("text.redact@1", "garbage", retry=ONCE), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT
    run = await client.submit(one_task("text.redact@1", "sleep", retry=ONCE, timeout=timedelta(seconds=0.3)), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_TIMEOUT
    runs = await asyncio.gather(*(client.submit(one_task("text.pooled@1", n), wait=True) for n in range(20)))
    assert [output_of(one)["t"]["value"] for one in runs] == list(range(20))
    assert len({output_of(one)["t"]["pid"] for one in runs}) <= 2
    run = await client.submit(one_task("text.pooled@1", "die", retry=ONCE), wait=True)
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert output_of(await client.submit(one_task("text.pooled@1", 7), wait=True))["t"]["value"] == 7


@pytest.mark.proves("certificate expiry and rotation")
async def test_a_certificate_is_renewed_under_load_and_no_work_is_lost(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("renewed", version="5", start=False)
    # Past half of its life: the sidecar renews at once, and the orchestrator grants an hour.
    pem = mesh.ca.issue(
        Kind.SIDECAR, sidecar.name, agents=("renewed",), capabilities=("*",), lifetime=timedelta(seconds=8)
    )
    mesh.ca.join_sidecar(sidecar.state, sidecar.name, mesh.orchestrator.address, pem)
    first = CertificateFiles(sidecar.state / "profiles" / "sidecar" / "credential").load()
    sidecar.start()
    await mesh.attached(client, "renewed")
    runs: list[run_pb2.Run] = []
    gate = mesh.path("gate")
    held = await client.submit(one_task("work.hold@5", str(gate)))
    files = CertificateFiles(sidecar.state / "profiles" / "sidecar" / "credential")

    async def renewed() -> bool:
        runs.append(await client.submit(one_task("work.echo@5", len(runs)), wait=True))
        return files.load().fingerprint != first.fingerprint and sidecar.said().count('"attached"') >= 2

    await eventually(renewed)
    assert files.load().not_after > datetime.now(UTC) + timedelta(minutes=50)
    assert files.load().grants == first.grants
    runs.append(await client.submit(one_task("work.echo@5", len(runs)), wait=True))
    assert [output_of(run)["t"] for run in runs] == list(range(len(runs)))
    gate.touch()
    assert output_of(await client.wait(held.run_id)) == {"t": "released"}
    assert (await client.get_task(held.run_id, "t")).attempt_count == 1


async def test_certificates_that_something_else_maintains_are_followed(client: Client, mesh: Mesh) -> None:
    folder = mesh.path("external")
    folder.mkdir()
    paths = [folder / name for name in ("key.pem", "cert.pem", "bundle.pem")]

    def write() -> None:
        pem = mesh.ca.issue(Kind.SIDECAR, "external", agents=("external",), capabilities=("*",))
        for path, data in zip(paths, pem, strict=True):
            path.write_bytes(data)

    write()
    config = (
        f'orchestrators = ["{mesh.orchestrator.address}"]\n[identity]\n'
        + "".join(f'{path.stem} = "{path}"\n' for path in paths)
        + f'[[agent]]\nname = "external"\ncommand = {json.dumps([sys.executable, "-m", "tests.harness.agent"])}\n'
    )
    sidecar = mesh.sidecar("external", config=config, version="5")
    await mesh.attached(client, "external")
    write()
    await eventually(lambda: sidecar.said().count('"attached"') == 2)
    assert output_of(await client.submit(one_task("work.echo@5", 1), wait=True)) == {"t": 1}
