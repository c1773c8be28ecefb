"""The first hour of a user, with nothing but the command: authority, orchestrator, tokens, an agent, a graph, a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Mesh, Process

AGENT = """
from dataclasses import dataclass
from antiphon import Agent

agent = Agent("greeter")

@dataclass
class Person:
    name: str

@agent.capability("text.greet@1")
async def greet(person: Person) -> str:
    return f"Hello, {person.name}!"

agent.run()
"""

GRAPH = """
name: welcome
version: "1"
input_schema: {type: object, required: [people]}
tasks:
  - id: greet
    capability: text.greet@1
    for_each: input.people
    input: {name: "${item}"}
output: "${tasks.greet.output}"
"""


class User:
    """Somebody at a keyboard with a home of their own."""

    def __init__(self, home: Path) -> None:
        self.environment = {"ANTIPHON_HOME": str(home), "GRPC_VERBOSITY": "NONE", "COLUMNS": "200"}

    def types(self, *words: str, code: int = 0) -> str:
        """What the command prints, once it has ended with `code`."""
        done = subprocess.run(
            [sys.executable, "-m", "antiphon.command", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **self.environment},
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    mesh = Mesh()
    try:
        yield mesh
    finally:
        mesh.show()
        mesh.close()


def test_from_an_empty_folder_to_an_explained_run(mesh: Mesh) -> None:
    folder = mesh.folder
    user = User(folder / "home")
    ca = folder / "own-ca"
    user.types("certs", "init", "--dir", str(ca), "--trust-domain", "journey.test")

    orchestrator = mesh.orchestrator
    orchestrator.authority = ca
    orchestrator.start()
    at = ("--authority", str(ca), "--address", orchestrator.address)
    token = user.types("certs", "token", "--kind", "client", "--name", "me", *at).strip()
    user.types("certs", "join", token)
    assert "not accepted" in user.types("certs", "join", token, code=1)

    script = folder / "greeter.py"
    script.write_text(AGENT)
    granted = ("--agent", "greeter", "--capability", "text.*")
    token = user.types("certs", "token", "--kind", "sidecar", "--name", "beside", *granted, *at).strip()
    sidecar = Process("sidecar", folder)
    sidecar.spawn(
        [sys.executable, "-m", "antiphon.command", "sidecar", "run", "--", sys.executable, str(script)],
        {**user.environment, "ANTIPHON_TOKEN": token, "XDG_RUNTIME_DIR": str(folder)},
    )
    try:
        graph = folder / "welcome.yaml"
        graph.write_text(GRAPH)
        user.types("graph", "validate", str(graph))
        user.types("graph", "register", str(graph))
        people = json.dumps({"people": ["Ada", "Grace"]})
        run = json.loads(user.types("run", "submit", "welcome", "--input", people, "--wait", "--json"))
        run_id = run.get("run_id") or run["run"]["run_id"]
        said = user.types("run", "submit", "welcome", "--input", people, "--wait")
        assert "Hello, Ada!" in said and "Hello, Grace!" in said
        assert run_id in user.types("run", "list")
        assert "SUCCEEDED" in user.types("run", "get", run_id, "--json")
        assert "greeter" in user.types("agent", "list")
        explained = user.types("run", "explain", run_id, "greet[1]")
        assert "greeter" in explained and "dev.flow" in explained

        broken = folder / "broken.yaml"
        broken.write_text(GRAPH.replace("item", "itme").replace("input.people", "input.people +"))
        said = user.types("graph", "validate", str(broken), code=1)
        assert "broken.yaml" in said and said.count("for_each") >= 1
        assert "no run" in user.types("run", "get", "r0000nothing", code=1)
        assert sidecar.term() == 0
        assert orchestrator.term() == 0
    finally:
        sidecar.close()
