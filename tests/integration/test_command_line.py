"""The first hour of a user, with the real command and real processes: authority, certificates, a new agent, a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
LIMIT = 90.0


class Home:
    """A user's folder, and the processes started from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.noted = ""
        """What the last command said on stderr."""
        self.processes: list[subprocess.Popen[bytes]] = []
        bin_folder = str(Path(sys.executable).parent)
        self.environ = {**os.environ, "ANTIPHON_HOME": str(folder / "home")}
        self.environ["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        self.environ.pop("ANTIPHON_PROFILE", None)

    def run(self, *words: str, code: int = 0, cwd: str = ".", **environ: str) -> str:
        """What a command prints on stdout; its exit code must be `code`, and it must not show a traceback."""
        done = subprocess.run(
            [ANTIPHON, *words],
            cwd=self.folder / cwd,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        self.noted = done.stderr
        return done.stdout.strip()

    def start(self, *words: str, cwd: str = ".", **environ: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{words[0]}.log").open("wb")
        process = subprocess.Popen(
            [ANTIPHON, *words], cwd=self.folder / cwd, env={**self.environ, **environ}, stdout=log, stderr=log
        )
        log.close()
        self.processes.append(process)
        return process

    def wait_for(self, state: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + LIMIT
        while not state():
            logs = "\n".join(path.read_text() for path in self.folder.glob("*.log"))
            assert all(process.poll() is None for process in self.processes), f"a process ended:\n{logs}"
            assert time.monotonic() < end, f"still waiting for {what}:\n{logs}"
            time.sleep(0.05)  # another process has no event we could await


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    for process in reversed(made.processes):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(home: Home) -> None:
    """An authority, an orchestrator on ports of the system's choice, and profiles of an operator and a client."""
    home.run("certs", "init", "--dir", "ca", "--trust-domain", "mesh.test")
    endpoints = home.folder / "data/endpoints.json"
    settings = ("--authority", "ca", "--data", "data", "--policy-profile", "dev")
    home.start("orchestrator", "serve", *settings, "--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0")
    home.wait_for(endpoints.exists, "the orchestrator")
    address = json.loads(endpoints.read_text())["address"]
    token = home.run(
        *("certs", "token", "--kind", "operator", "--name", "ada", "--authority", "ca", "--address", address)
    )
    home.run("certs", "join", token, "--profile", "operator")
    token = home.run("certs", "token", "--kind", "client", "--name", "ada", "--profile", "operator")
    home.run("certs", "join", "-", code=2)  # nothing on stdin
    home.run("certs", "join", token)
    home.run("certs", "join", token, code=1)  # it works once


def test_a_new_agent_handles_a_run_from_the_command_line(home: Home) -> None:
    serve(home)
    home.run("new", "agent", "hello")
    token = home.run(
        *("certs", "token", "--kind", "sidecar", "--name", "edge", "--agent", "hello", "--capability", "hello.*"),
        *("--profile", "operator"),
    )
    home.start("sidecar", "run", "--config", "sidecar.toml", "--state", "state", cwd="hello", ANTIPHON_TOKEN=token)
    home.wait_for(lambda: bool(json.loads(home.run("agent", "list", "--json"))["agents"]), "the agent")

    home.run("graph", "register", "hello/graph.yaml")
    answer = home.run("run", "submit", "greet", "--input", '{"name": "Ada"}', "--wait")
    assert json.loads(answer) == {"greet": {"text": "Hello, Ada!"}}

    failed = json.loads(home.run("run", "submit", "greet", "--input", "{}", "--wait", "--json", code=1))
    assert failed["state"] == "RUN_STATE_FAILED"

    (succeeded,) = json.loads(home.run("run", "list", "--state", "succeeded", "--json"))["runs"]
    said = failed["failure"]["message"][:20].upper()
    found = json.loads(home.run("run", "list", "--failure", said, "--json"))["runs"]
    assert [one["run_id"] for one in found] == [failed["run_id"]]
    assert json.loads(home.run("run", "list", "--since", "1h", "--until", "30m", "--json")) == {"runs": []}
    run_id = succeeded["run_id"]
    assert "greet  hello.greet@1  SUCCEEDED" in home.run("run", "get", run_id)
    assert json.loads(home.run("run", "output", run_id)) == {"greet": {"text": "Hello, Ada!"}}
    assert json.loads(home.run("run", "output", run_id, "greet")) == {"text": "Hello, Ada!"}
    assert home.run("run", "output", failed["run_id"], code=1) == ""
    assert "#1  SUCCEEDED  on hello" in home.run("run", "explain", run_id, "greet")
    lines = [json.loads(line) for line in home.run("run", "watch", run_id, "--json").splitlines()]
    numbers = [line["event"]["event_seq"] for line in lines[:-1]]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert lines[-1]["run"]["state"] == "RUN_STATE_SUCCEEDED"
    home.run("run", "submit", "greet", "--input", "{}", "--wait", code=1)
    why = re.search(r"See why: antiphon (run explain \S+ greet)\n", home.noted)
    assert why is not None and "greet  FAILED" in home.run(*why[1].split())
    token = home.run("certs", "token", "--kind", "client", "--name", "bea", "--profile", "operator")
    home.run("certs", "join", token, "--profile", "bea")
    hers = home.run("run", "submit", "greet", "--input", "{}", "--profile", "bea")
    assert home.noted.endswith(f"Follow it with: antiphon run watch {hers} --profile bea\n")

    assert "hello.greet@1" in home.run("agent", "show", "hello")
    assert home.run("agent", "drain", "hello", "--profile", "operator") == "hello  DRAINING"
    home.run("agent", "drain", "hello", code=1)  # a client may not


def test_runs_that_wait_are_listed_with_what_they_wait_for(home: Home) -> None:
    serve(home)
    (home.folder / "waits.yaml").write_text("name: waits\ntasks:\n  - {id: a, wait: {signal: go}}\n")
    asks = "{id: a, capability: nobody.has@1, schedule_timeout: 10ms, on_failure: escalate}"
    (home.folder / "asks.yaml").write_text(f"name: asks\ntasks:\n  - {asks}\n")
    waiting = home.run("run", "submit", "waits.yaml")
    asking = home.run("run", "submit", "asks.yaml")

    def listed(*words: str) -> list[str]:
        return [run["run_id"] for run in json.loads(home.run("run", "list", *words, "--json"))["runs"]]

    home.wait_for(lambda: listed("--waiting-for", "person") == [asking], "the escalation")
    assert listed("--waiting-for", "signal") == [waiting]
    assert listed("--waiting") == listed() == [asking, waiting]
    shown = home.run("run", "list", "--waiting", COLUMNS="160")
    assert "RUNNING, signal go " in shown and "RUNNING, 1 for a person " in shown
    home.run("run", "signal", waiting, "go")
    assert listed("--waiting-for", "signal") == []
    assert listed("--waiting", "--waiting-for", "signal") == [asking]


def test_a_certificate_is_renewed_on_demand_with_a_new_key(home: Home) -> None:
    serve(home)
    before = json.loads(home.run("certs", "show", "--json"))
    renewed = json.loads(home.run("certs", "renew", "--json"))
    assert renewed["fingerprint"] != before["fingerprint"]
    assert renewed["identity"] == before["identity"] == "spiffe://mesh.test/ns/default/client/ada"
    home.run("run", "list")


def test_what_is_kept_is_private_to_its_user(home: Home) -> None:
    serve(home)
    for folder in (home.folder / "home", home.folder / "data", home.folder / "ca"):
        kept = [folder, *folder.rglob("*")]
        assert [path for path in kept if path.stat().st_mode & 0o077] == []


def test_the_same_request_id_is_the_same_run(home: Home) -> None:
    serve(home)
    home.run("new", "agent", "hello")
    submit = ("run", "submit", "hello/graph.yaml", "--request-id", "r1", "--input")
    run_id = home.run(*submit, '{"name": "Ada"}')
    assert home.run(*submit, '{"name": "Ada"}') == run_id
    home.run(*submit, '{"name": "Bob"}', code=1)
    assert "CANCELLED" in home.run("run", "cancel", run_id, "--reason", "enough")
