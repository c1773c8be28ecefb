"""The compose file as it stands: three orchestrators, etcd, PostgreSQL and an agent by their names, users and volumes.

The short form takes this checkout's environment for what the images install, and restarts one orchestrator; with
ANTIPHON_ROBUST=1 the images are built as the container file says, and all three are restarted, one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RequireTool
from tests.harness import eventually
from tests.harness.compose import Compose, Unavailable, place, require_spaces
from tests.harness.etcd_binary import EtcdMissing, binary
from tests.harness.images import Builder, Image
from tests.harness.linters import not_run

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ROBUST = os.environ.get("ANTIPHON_ROBUST") == "1"
PATIENCE = 300.0
TARGETS = ("orchestrator", "sidecar", "hello")
REPLICAS = ("orchestrator-1", "orchestrator-2", "orchestrator-3")
GRAPH = "/examples/hello_agent/graph.yaml"
TRAFFIC = """
import asyncio, json, pathlib, socket, ssl
from datetime import timedelta
from antiphon import Client, Graph, output_of, ref

def metrics(host):
    own = pathlib.Path("/var/lib/antiphon/profiles/default/credential/current")
    context = ssl.create_default_context(cafile=own / "bundle.pem")
    context.load_cert_chain(own / "cert.pem", own / "key.pem")
    with socket.create_connection((host, 9464), 60) as plain:
        with context.wrap_socket(plain, server_hostname="orchestrator.antiphon.internal") as secure:
            secure.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
            return secure.makefile().read()

async def main():
    graph = Graph("greeting", output=ref("tasks.greet.output"))
    graph.task("greet", "hello.greet@1", input=ref("input"))
    here = pathlib.Path("/traffic")
    wrong, count = [], 0
    async with Client.connect() as client:
        while not (here / "stop").exists():
            run = await client.submit(graph, {"name": str(count)}, wait=True, timeout=timedelta(minutes=5))
            said = output_of(run)
            if said != f"Hello, {count}!":
                wrong.append(said)
            count += 1
            (here / "new").write_text(json.dumps({"count": count, "wrong": wrong}))
            (here / "new").rename(here / "facts")
    (here / "metrics").write_text(metrics("orchestrator-2"))

asyncio.run(main())
"""
"""Calls without a pause, each a run that is waited for; the first error ends it."""


class Traffic:
    """A client, run in the place of the service `client`, with a folder between it and the test."""

    def __init__(self, compose: Compose) -> None:
        self._folder = compose.folder / "traffic"
        self._folder.mkdir()
        self._folder.chmod(0o777)
        (self._folder / "traffic.py").write_text(TRAFFIC)
        words = ("/opt/antiphon/bin/python", "/traffic/traffic.py")
        self._process = compose.start("client", *words, seeing={"/traffic": self._folder})

    def facts(self) -> dict[str, Any]:
        assert self._process.alive, f"a call failed\n{self._process.said()}"
        path = self._folder / "facts"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"count": 0, "wrong": []}
        return found

    async def goes_on(self) -> None:
        """Return once a few more calls have been answered."""
        seen = self.facts()["count"]
        await eventually(lambda: self.facts()["count"] > seen + 5, limit=PATIENCE)

    def end(self) -> dict[str, Any]:
        (self._folder / "stop").touch()
        assert self._process.end(PATIENCE) == 0, self._process.said()
        assert "\nantiphon_store_level 0.0\n" in (self._folder / "metrics").read_text()
        found: dict[str, Any] = json.loads((self._folder / "facts").read_text())
        return found


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    try:
        require_spaces()
    except Unavailable as cause:
        not_run(str(cause))
    folder = place("anti-images-")
    installed = None if ROBUST else Path(sys.prefix)
    builder = Builder(DEPLOY / "containers/Dockerfile", ROOT, folder, installed)
    yield {target: builder.build(target) for target in TARGETS}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def compose(images: dict[str, Image], require_tool: RequireTool) -> Iterator[Compose]:
    require_tool("initdb", package="postgresql")
    try:
        etcd = binary("current")
    except EtcdMissing as cause:
        not_run(str(cause))
    with Compose(DEPLOY / "compose/compose.yaml", images, etcd) as made:
        yield made
        made.show()


async def healthy(compose: Compose, *names: str) -> None:
    for name in names:
        await eventually(partial(compose.healthy, name), limit=PATIENCE)


async def answer(compose: Compose, *words: str) -> Any:
    """What the service `client` prints for a command, once it is answered at all: a busy machine may be too slow."""

    def ask() -> str:
        try:
            return compose.finish("client", *words)
        except AssertionError as error:
            print(error)
            return ""

    return json.loads(await eventually(ask, limit=PATIENCE))


async def test_what_the_compose_file_describes_works_and_a_restart_loses_no_call(compose: Compose) -> None:
    compose.finish("setup")
    for name in ("etcd", "postgres"):
        compose.start(name)
    await healthy(compose, "etcd", "postgres")
    for name in REPLICAS:
        compose.start(name)
    await healthy(compose, *REPLICAS)
    compose.finish("members")
    compose.start("hello-sidecar")
    compose.start("hello")
    await healthy(compose, "hello-sidecar")

    said = await answer(compose, "run", "submit", GRAPH, "--input", '{"name": "Ada"}', "--wait")
    assert said == {"greet": "Hello, Ada!"}
    status = await answer(compose, "cluster", "status", "--json")
    assert {replica["address"] for replica in status["replicas"]} == {f"{name}:7443" for name in REPLICAS}

    traffic = Traffic(compose)
    await traffic.goes_on()
    for name in REPLICAS if ROBUST else REPLICAS[:1]:
        assert compose.processes[name].term(PATIENCE) == 0
        await traffic.goes_on()
        compose.start(name)
        await healthy(compose, name)
        await traffic.goes_on()
    assert traffic.end()["wrong"] == []
