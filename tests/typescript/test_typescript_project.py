"""What a user begins with: the programs of the SDK's README, and a project that `antiphon new agent` writes."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from antiphon_certs import Authority, Profile

from tests.fakes.agent_socket import WAIT, agent_socket, assignment, output
from tests.fakes.orchestrator import DOMAIN, credential, orchestrator

pytest_plugins = ("tests.harness.typescript",)

ROOT = Path(__file__).parents[2]
AGENT, CLIENT = re.findall(r"```ts\n(.*?)```", (ROOT / "sdk/typescript/README.md").read_text(), re.DOTALL)
REVIEWER, STEERING = re.findall(r"```ts\n(.*?)```", (ROOT / "docs/typescript.md").read_text(), re.DOTALL)[:2]
ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def compiled(sdk: Path, folder: Path, text: str) -> Path:
    """A program of the README as JavaScript, in a folder that has the SDK; it must be right in strict mode."""
    scope = folder / "node_modules/@antiphon"
    scope.mkdir(parents=True)
    (scope / "sdk").symlink_to(sdk)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "program.ts").write_text(text)
    options = ["--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck"]
    options += ["--typeRoots", str(sdk / "node_modules/@types")]
    run(folder, str(sdk / "node_modules/.bin/tsc"), *options, "program.ts")
    return folder / "program.js"


async def start(script: Path, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "node", str(script), env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )


async def test_the_agent_of_the_readme_works(typescript: Path, tmp_path: Path) -> None:
    script, path = compiled(typescript, tmp_path / "project", AGENT), tmp_path / "a.sock"
    async with agent_socket(path) as sidecar:
        process = await start(script, ANTIPHON_SOCKET=str(path))
        line = await sidecar.line()
        line.assign(
            assignment("r/a/0/1", "text.greet@1", {"name": "Ada", "title": "Countess"}),
            assignment("r/b/0/1", "text.greet@1", {"name": "Godot"}),
        )
        assert output(await line.result("r/a/0/1")) == "Hello Countess Ada"
        assert (await line.result("r/b/0/1")).failure.code == "waiting"
        process.terminate()
        await line.drained.wait()
        line.end()
        async with asyncio.timeout(WAIT):
            await process.communicate()
        assert process.returncode == 0


async def test_the_client_of_the_readme_works(typescript: Path, tmp_path: Path) -> None:
    script = compiled(typescript, tmp_path / "project", CLIENT)
    authority = Authority.init(tmp_path / "ca", DOMAIN)
    async with orchestrator(authority) as double:
        profile = Profile(tmp_path / "profiles/default", (double.address,), ("127.0.0.1:1",), DOMAIN, "team-a")
        made = credential(authority)
        profile.credential.store(made.key_pem, made.chain_pem, made.bundle_pem)
        profile.save()
        process = await start(script, ANTIPHON_HOME=str(tmp_path), ANTIPHON_PROFILE="default")
        async with asyncio.timeout(WAIT):
            printed, _ = await process.communicate()
        assert (process.returncode, printed) == (0, b"{ answer: 42 }\n")
        (request,) = double.submissions
        assert request.inline.output == '"${tasks.greet.output}"' and request.input.inline == b'{"name":"Ada"}'


def test_the_agent_of_the_page_calls_and_shares_and_passes_verify(typescript: Path, tmp_path: Path) -> None:
    script = compiled(typescript, tmp_path / "project", REVIEWER)
    run(tmp_path, ANTIPHON, "verify", "--answer", "text.count=3", "--", "node", str(script))


def test_the_client_of_the_page_is_right_in_strict_mode(typescript: Path, tmp_path: Path) -> None:
    compiled(typescript, tmp_path / "project", STEERING)


def test_a_new_project_installs_builds_and_is_proven_at_once(typescript: Path, tmp_path: Path) -> None:
    run(tmp_path, ANTIPHON, "new", "agent", "greeter", "--lang", "typescript")
    project = tmp_path / "greeter"
    run(project, "npm", "install", "--no-audit", "--no-fund")
    assert "pass 1" in run(project, "npm", "test")
    assert "passed; seed" in run(project, ANTIPHON, "verify", "--", "node", "dist/main.js").splitlines()[-1]


def test_an_agent_that_is_not_set_up_says_so_and_exits_2(typescript: Path, tmp_path: Path) -> None:
    script = compiled(typescript, tmp_path / "project", AGENT)
    environment = {name: value for name, value in os.environ.items() if name != "ANTIPHON_SOCKET"}
    done = subprocess.run(["node", str(script)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("greeter: ANTIPHON_SOCKET is not set; start the agent through its sidecar")
