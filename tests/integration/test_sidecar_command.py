"""The sidecar's command line as a person meets it: exit codes, one clear line, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import error_pb2
from antiphon_certs import Authority, Grants, Identity, Kind, Profile, mint

from tests.fakes.mesh import FakeMesh, keep, now, serving
from tests.integration.sidecar_process import RAW_AGENT, WAIT, eventually, sidecar

GRANTS = Grants(("echo",), ("text.*",))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def orchestrator(authority: Authority) -> AsyncIterator[FakeMesh]:
    async with serving(authority) as fake:
        yield fake


async def command(folder: Path, *words: str, **environ: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `antiphon sidecar …`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "antiphon_sidecar", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "ANTIPHON_HOME": str(folder / "home"), **environ}, cwd=folder,
    )  # fmt: skip
    async with asyncio.timeout(WAIT):
        out, err = await process.communicate()
    assert b"Traceback" not in err
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def token(
    authority: Authority, orchestrator: FakeMesh | None, kind: Kind = Kind.SIDECAR, grants: Grants = GRANTS
) -> str:
    text, _ = mint(
        Identity(authority.trust_domain, "team-a", kind, "edge-1"),
        grants,
        timedelta(minutes=10),
        root_pem=authority.root_pem,
        addresses=[orchestrator.address if orchestrator else "127.0.0.1:9"],
        join_addresses=[orchestrator.join_address if orchestrator else "127.0.0.1:9"],
        now=now(),
    )
    return text


async def test_mistakes_in_the_configuration_exit_2_with_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "sidecar.toml").write_text('grace = "soon"\nunknown = 1\n')
    code, _, err = await command(tmp_path, "run", "--config", "sidecar.toml")
    assert code == 2
    assert "grace: 'soon' is not a time" in err and "unknown: unknown key" in err


async def test_an_agent_that_the_certificate_does_not_allow_exits_2_before_anything_is_dialled(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    code, _, err = await command(tmp_path, "run", "--state", "state", "--agent", "other", "--", "true")
    assert code == 2 and "agent other: the certificate allows echo" in err
    assert not orchestrator.attachments


@pytest.mark.parametrize("word", ["check", "run"])
async def test_programs_that_are_not_there_are_named_before_a_token_is_spent(
    word: str, orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    given = token(authority, orchestrator)
    code, _, err = await command(tmp_path, word, "--", "no-such-program", "x", ANTIPHON_TOKEN=given)
    assert code == 2 and "--: there is no program no-such-program to start; install it, or give its path" in err
    (tmp_path / "sidecar.toml").write_text(exec_agent().replace('"cat"', '"./absent"'))
    code, _, err = await command(tmp_path, word, "--config", "sidecar.toml", ANTIPHON_TOKEN=given)
    assert code == 2 and "agent echo: there is no program ./absent to start" in err
    assert not (tmp_path / "home").exists()


def exec_agent(*lines: str, name: str = "echo", before: str = "") -> str:
    head = [before, "[[agent]]", f'name = "{name}"', 'adapter = "exec"', 'command = ["cat"]', "[[agent.capability]]"]
    return "\n".join([*head, 'name = "text.echo"', *lines])


async def test_check_says_at_once_all_that_run_or_an_orchestrator_refuses(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    given = token(authority, orchestrator)
    group = '[socket]\ngroup = "no-such-group"'
    lines = ["""input_schema = '{"type": "objekt"}'""", """output_schema = '[1]'""", 'timeout = "soon"']
    text = exec_agent(*lines, name="other", before=group).replace('"cat"', '"./absent"')
    (tmp_path / "sidecar.toml").write_text(text)
    code, _, err = await command(tmp_path, "check", "--config", "sidecar.toml", ANTIPHON_TOKEN=given)
    assert code == 2
    assert err.count("cannot be used") == 1 and "the configuration of sidecar.toml cannot be used:\n" in err
    for said in (
        "  agent other: capability text.echo: input_schema: it is not a JSON Schema: /type: ",
        "output_schema: it is not a JSON Schema, which is an object",
        "'soon' is not a time",
        "there is no program ./absent",
        "there is no group 'no-such-group' on this machine",
        "the certificate allows echo; make a token with --agent other",
    ):
        assert said in err, err
    (tmp_path / "sidecar.toml").write_text(exec_agent("""input_schema = '{"type": "objekt"}'"""))
    code, _, err = await command(tmp_path, "check", "--config", "sidecar.toml")
    assert code == 2 and "input_schema" in err and "identity: nothing says who this sidecar is" in err
    (tmp_path / "sidecar.toml").write_text(exec_agent("""input_schema = '{"type": "object"}'"""))
    code, out, _ = await command(tmp_path, "check", "--config", "sidecar.toml", ANTIPHON_TOKEN=given)
    assert code == 0 and "agent: echo, exec" in out
    assert not orchestrator.joins and not (tmp_path / "home").exists()


@pytest.mark.parametrize("word", ["check", "run"])
async def test_an_identity_of_other_files_needs_the_orchestrators_named(
    word: str, authority: Authority, tmp_path: Path
) -> None:
    keep(tmp_path / "state", authority, ["127.0.0.1:9"], GRANTS)
    files = Profile.load("sidecar", {"ANTIPHON_HOME": str(tmp_path / "state")}).credential.folder / "current"
    identity = "\n".join(["[identity]", *(f'{key} = "{files}/{key}.pem"' for key in ("key", "cert", "bundle"))])
    (tmp_path / "sidecar.toml").write_text(exec_agent(before=identity))
    code, _, err = await command(tmp_path, word, "--config", "sidecar.toml")
    assert code == 2 and "orchestrators: name one, such as 127.0.0.1:7443" in err


async def test_a_run_folder_that_cannot_be_had_leaves_the_token_unspent(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("no folder")
    given = token(authority, orchestrator)
    code, _, err = await command(tmp_path, "run", "--run-folder", "run", "--", "true", ANTIPHON_TOKEN=given)
    assert code == 1 and "choose another: run_folder" in err
    assert not orchestrator.joins


async def test_without_an_identity_it_says_what_to_give(tmp_path: Path) -> None:
    code, _, err = await command(tmp_path, "run", "--", "true")
    assert code == 1 and "--token, or ANTIPHON_TOKEN" in err
    assert "--profile operator --kind sidecar --name edge --agent hello --capability 'hello.*'" in err
    code, _, err = await command(tmp_path, "health")
    assert code == 1 and "no sidecar is known; give its --run-folder, --state or --config" in err
    code, _, err = await command(tmp_path, "run", "--token", "nonsense", "--", "true")
    assert code == 1 and "not a join token" in err and "nonsense" not in err


async def test_a_token_of_another_kind_is_refused(authority: Authority, tmp_path: Path) -> None:
    code, _, err = await command(tmp_path, "check", ANTIPHON_TOKEN=token(authority, None, Kind.CLIENT))
    assert code == 1 and "make one with --kind sidecar" in err


async def test_a_token_is_not_shown_to_a_server_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority.init(tmp_path / "foreign", "mesh.test")
    async with serving(foreign) as impostor:
        environ = {"ANTIPHON_TOKEN": token(authority, impostor)}
        async with sidecar(tmp_path, "--", *RAW_AGENT, environ=environ) as process:
            await process.logged("cannot join yet")
        assert not impostor.joins


async def test_an_orchestrator_of_another_authority_is_not_spoken_to(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority.init(tmp_path / "foreign", "mesh.test")
    async with serving(foreign) as impostor:
        keep(tmp_path / "state", authority, [impostor.address], GRANTS)
        async with sidecar(tmp_path, "--state", str(tmp_path / "state"), "--", *RAW_AGENT) as process:
            await process.logged("detached")
        assert not impostor.attachments


async def test_check_and_health_say_what_is_there(orchestrator: FakeMesh, authority: Authority, tmp_path: Path) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    words = ("--state", str(tmp_path / "state"), "--run-folder", str(tmp_path / "run"))
    code, out, _ = await command(tmp_path, "check", *words)
    assert code == 0 and f"orchestrator: {orchestrator.address}, reachable" in out and "agent: echo" in out
    code, _, err = await command(tmp_path, "health", *words)
    assert code == 1 and "no sidecar answers" in err
    async with sidecar(tmp_path, "--state", str(tmp_path / "state"), "--", *RAW_AGENT) as process:
        await (await orchestrator.attachment()).window("echo", 2)
        codes = [(await command(tmp_path, "health", *words))[0]]
        while codes[-1] != 0 and len(codes) < 20:  # it looks twice a second
            codes.append((await command(tmp_path, "health", *words))[0])
        assert codes[-1] == 0
        code, _, err = await command(tmp_path, "run", *words, "--", "true")
        assert code == 1 and "another sidecar runs in" in err
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 0


async def test_a_sidecar_whose_only_agent_is_refused_does_not_serve_and_says_why(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    path = tmp_path / "sidecar.toml"
    path.write_text(exec_agent())
    words = ("--state", str(tmp_path / "state"), "--config", str(path))

    async def health() -> tuple[int, str, str]:  # which needs no secret of a service
        return await command(tmp_path, "health", *words, "--run-folder", str(tmp_path / "run"))

    path.write_text(f"""{exec_agent()}
        [[agent]]
        name = "gateway"
        adapter = "http"
        [[agent.capability]]
        name = "text.ask"
        url = "http://127.0.0.1:9/"
        headers = {{ Authorization = "Bearer ${{env:SERVICE_KEY}}" }}
        """)
    assert "set the environment variable SERVICE_KEY" in (await command(tmp_path, "check", *words))[2]
    code, _, err = await health()
    assert code == 1 and "no sidecar answers" in err
    code, _, err = await command(tmp_path, "health", "--agent", "echo")
    assert code == 2 and "--agent" in err  # it is about the whole sidecar
    path.write_text(exec_agent())

    async with sidecar(tmp_path, *words) as process:
        stream = await orchestrator.attachment()
        await stream.until(lambda: "echo" in stream.agents)
        response = mesh.AttachResponse()
        response.refusals.add(agent="echo", reason=error_pb2.ERROR_REASON_REQUEST_INVALID, message="no JSON Schema")
        stream.send(response)
        await process.logged("agent refused")
        seen = await health()
        while seen[0] == 0 or "refused" not in seen[2]:  # it looks twice a second
            seen = await health()
        assert "the sidecar does not serve: agent echo is refused: " in seen[2] and "no JSON Schema" in seen[2]
        stream.end()
        await orchestrator.attachment(2)  # which refuses nobody
        while seen[0]:
            seen = await health()
        assert seen[1] == "serving\n"


async def test_check_says_which_orchestrator_cannot_be_reached(authority: Authority, tmp_path: Path) -> None:
    keep(tmp_path / "state", authority, ["127.0.0.1:9"], GRANTS)
    code, _, err = await command(tmp_path, "check", "--state", "state")
    assert code == 1 and "orchestrator 127.0.0.1:9" in err


async def test_an_agent_does_not_outlive_a_sidecar_that_is_killed(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    marker = tmp_path / "pids"
    words, environ = ("--state", str(tmp_path / "state"), "--", *RAW_AGENT), {"MARKER": str(marker)}
    async with sidecar(tmp_path, *words, environ=environ) as process:
        await (await orchestrator.attachment()).window("echo", 2)
        process.signal(signal.SIGKILL)
        await process.exit_code()
    (agent,) = marker.read_text().split()
    await eventually(lambda: not Path(f"/proc/{agent}").exists())
    async with sidecar(tmp_path, *words, environ=environ):  # and its lock and socket are free
        stream = await orchestrator.attachment(2)
        await stream.window("echo", 2)
        assert stream.hello.incarnation != orchestrator.attachments[0].hello.incarnation


@pytest.mark.parametrize(
    ("input", "how"),
    [
        (b'{"exit": 3}', "ended with exit code 3; its sidecar's log has what it wrote"),
        (b'{"hang": true}', "was killed by signal 9; its sidecar's log has what it wrote"),
    ],
)
async def test_what_is_lost_says_how_the_process_of_its_agent_ended_where_the_sidecar_started_it(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path, input: bytes, how: str
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    marker = tmp_path / "pids"
    words = ("--state", str(tmp_path / "state"), "--", *RAW_AGENT)
    async with sidecar(tmp_path, *words, environ={"MARKER": str(marker)}):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("a", input=input)
        await stream.until(lambda: "a" in stream.reports)  # it has begun, or is lost already
        if b"hang" in input:
            os.kill(int(marker.read_text()), signal.SIGKILL)
        failure = (await stream.outcome("a")).failure
    assert (failure.code, failure.message) == ("AGENT_DIED", f"the agent's process {how}")


async def test_the_end_of_a_program_that_lives_on_is_not_waited_for(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    """Of an agent beneath a program that goes on, its stream is all that tells."""
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    words = ("--state", str(tmp_path / "state"), "--", "sh", "-c", '"$@"; sleep 60', "sh", *RAW_AGENT)
    async with sidecar(tmp_path, *words):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("a", input=b'{"exit": 3}')
        failure = (await stream.outcome("a")).failure
        assert (failure.code, failure.message) == ("AGENT_DIED", "the agent's process went away")
        await stream.until(lambda: "echo" not in stream.agents)


@pytest.mark.parametrize("how", ["killed", "signalled twice"])
async def test_a_program_does_not_outlive_a_sidecar_that_ends_at_once(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path, how: str
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    marker = tmp_path / "pid"
    code = f"import os, time; print(os.getpid(), file=open('{marker}', 'w'), flush=True); time.sleep(60)"
    (tmp_path / "sidecar.toml").write_text(f"""
        state = "state"
        [[agent]]
        name = "echo"
        adapter = "exec"
        command = ["{sys.executable}", "-c", "{code}"]
          [[agent.capability]]
          name = "text.echo"
        """)
    async with sidecar(tmp_path, "--config", str(tmp_path / "sidecar.toml")) as process:
        stream = await orchestrator.attachment()
        await stream.window("echo", 4)
        stream.offer("a")
        await eventually(lambda: marker.exists() and marker.read_text())
        if how == "killed":
            process.signal(signal.SIGKILL)
            await process.exit_code()
        else:
            process.signal(signal.SIGTERM)
            await process.logged("draining")
            process.signal(signal.SIGTERM)
            assert await process.exit_code() == 130
    await eventually(lambda: not Path(f"/proc/{marker.read_text().strip()}").exists())


def started_with(pid: int) -> dict[str, str]:
    """The environment that a process began with."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(variable.split("=", 1) for variable in variables if variable)


async def test_no_program_gets_the_join_token_which_may_be_unspent(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], Grants(("*",), ("*",)))
    python, agent = RAW_AGENT
    show = "import json, os, sys; [print(json.dumps(dict(os.environ)), flush=True) for line in sys.stdin]"
    program = f'''command = ["{python}", "-c", "{show}"]\n[[agent.capability]]\nname = "text.show"'''
    (tmp_path / "sidecar.toml").write_text(f"""
        state = "state"
        [[agent]]
        name = "echo"
        command = ["{python}", "{agent}"]
        [[agent]]
        name = "kept"
        adapter = "exec"
        mode = "pool"
        {program}
        [[agent]]
        name = "fresh"
        adapter = "exec"
        {program}
        """)
    marker, held = tmp_path / "pids", tmp_path / "token"
    text = token(authority, orchestrator, grants=Grants(("*",), ("*",)))
    held.write_text(text)
    environ = {"ANTIPHON_TOKEN": text, "ANTIPHON_TOKEN_FILE": str(held), "MARKER": str(marker), "OTHER": "here"}
    async with sidecar(tmp_path, "--config", str(tmp_path / "sidecar.toml"), environ=environ):
        stream = await orchestrator.attachment()
        for name, slots in (("kept", 1), ("fresh", 4)):
            await stream.window(name, slots)
            stream.offer(name, agent=name, capability="text.show")
        seen = [json.loads((await stream.outcome(name)).output.inline) for name in ("kept", "fresh")]
        await stream.window("echo", 2)
        seen.append(started_with(int(marker.read_text())))
    assert not orchestrator.joins
    for variables in seen:
        assert variables["OTHER"] == "here" and not {"ANTIPHON_TOKEN", "ANTIPHON_TOKEN_FILE"} & variables.keys()


async def test_one_sidecar_stands_beside_several_agents_of_all_sorts(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], Grants(("*",), ("*",)))
    python, agent = RAW_AGENT
    (tmp_path / "sidecar.toml").write_text(f"""
        state = "state"
        [[agent]]
        name = "echo"
        command = ["{python}", "{agent}"]
        [[agent]]
        name = "dials-in"
        [[agent]]
        name = "upper"
        adapter = "exec"
        mode = "pool"
        pool_size = 2
        command = ["{python}", "-c", "import sys; [print(line.strip().upper(), flush=True) for line in sys.stdin]"]
          [[agent.capability]]
          name = "text.upper"
        """)
    async with sidecar(tmp_path, "--config", str(tmp_path / "sidecar.toml")):
        stream = await orchestrator.attachment()
        await stream.until(lambda: {"echo", "upper"} <= stream.agents.keys())
        assert "dials-in" not in stream.agents
        await stream.window("upper", 2)
        await stream.window("echo", 2)
        stream.offer("a", agent="upper", capability="text.upper")
        stream.offer("b", agent="echo")
        assert (await stream.outcome("a")).output.inline == b'"HELLO"'
        assert (await stream.outcome("b")).output.inline == b'"hello"'
        process = await asyncio.create_subprocess_exec(
            *RAW_AGENT, env={**os.environ, "ANTIPHON_SOCKET": str(tmp_path / "run" / "dials-in.sock")}
        )
        await stream.until(lambda: "dials-in" in stream.agents)
        process.terminate()
        await process.wait()
        await stream.until(lambda: "dials-in" not in stream.agents)


def test_the_entry_point_carries_neither_the_command_line_nor_adapters() -> None:
    heavy = "{'typer', 'rich', 'structlog', 'http.client', 'yaml', 'sqlalchemy', 'antiphon_orchestrator'}"
    code = f"import sys, antiphon_sidecar.__main__; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
