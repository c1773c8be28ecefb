"""The README's programs are run as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

from antiphon_certs import Authority, Profile

from tests.fakes.agent_socket import WAIT, agent_socket, assignment, output
from tests.fakes.orchestrator import DOMAIN, credential, orchestrator

README = Path(__file__).parents[2] / "sdk/python/README.md"
AGENT, CLIENT, SCRIPT = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


async def start(script: Path, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(script), env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )


async def test_the_agent_of_the_readme_works(tmp_path: Path) -> None:
    script, path = tmp_path / "greeter.py", tmp_path / "a.sock"
    script.write_text(AGENT)
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


async def test_the_client_of_the_readme_works(tmp_path: Path) -> None:
    request = await run(CLIENT, tmp_path)
    assert request.inline.output == '"${tasks.greet.output}"' and request.input.inline == b'{"name":"Ada"}'


async def test_the_script_of_the_readme_works(tmp_path: Path) -> None:
    request = await run(SCRIPT, tmp_path)
    assert request.registered.name == "welcome" and request.input.inline == b'{"name":"Ada"}'


async def run(program: str, tmp_path: Path) -> Any:
    """Run a client that prints what its run has answered; what it has submitted."""
    script = tmp_path / "client.py"
    script.write_text(program)
    authority = Authority.init(tmp_path / "ca", DOMAIN)
    async with orchestrator(authority) as double:
        profile = Profile(tmp_path / "profiles/default", (double.address,), ("127.0.0.1:1",), DOMAIN, "team-a")
        made = credential(authority)
        profile.credential.store(made.key_pem, made.chain_pem, made.bundle_pem)
        profile.save()
        process = await start(script, ANTIPHON_HOME=str(tmp_path), ANTIPHON_PROFILE="default")
        async with asyncio.timeout(WAIT):
            printed, _ = await process.communicate()
        assert (process.returncode, printed) == (0, b"{'answer': 42}\n")
        (request,) = double.submissions
        return request
