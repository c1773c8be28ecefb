"""Agents as real processes at a sidecar double's real socket."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from antiphon import Agent
from antiphon.v1 import error_pb2, failure_pb2
from antiphon.v1.agent_service_pb2 import CallResponse, WorkResponse
from antiphon.v1.payload_pb2 import Payload

from tests.fakes.agent_socket import WAIT, AgentSocket, Line, agent_socket, assignment, output

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests/fakes/sample_agent.py"


class Child:
    """An agent process; its standard error is kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self) -> tuple[int, str]:
        """Exit status and standard error, once it has ended."""
        async with asyncio.timeout(WAIT):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def child(path: Path | None, *arguments: str, script: Path = SAMPLE) -> AsyncIterator[Child]:
    environment = {key: value for key, value in os.environ.items() if key != "ANTIPHON_SOCKET"}
    if path is not None:
        environment["ANTIPHON_SOCKET"] = str(path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def attached(folder: Path, *arguments: str, **settings: Any) -> AsyncIterator[tuple[AgentSocket, Line, Child]]:
    path = folder / "a.sock"
    async with agent_socket(path, **settings) as sidecar, child(path, *arguments) as process:
        yield sidecar, await sidecar.line(), process


async def test_an_agent_announces_what_its_functions_say(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        described = line.hello.description
        judge = next(one for one in described.capabilities if one.name == "sample.judge")
        assert (described.name, described.version, dict(described.labels)) == ("sample", "7", {"region": "eu"})
        assert (described.concurrency, described.prefetch, line.hello.protocol_version) == (32, 32, 1)
        assert described.runtime.startswith("python/")
        assert (judge.version, judge.description, judge.idempotent) == ("1", "Judge a package.", True)
        assert (judge.cost, list(judge.clearance)) == (2.5, ["pii"])
        assert '"required":["name"]' in judge.input_schema


async def test_async_and_plain_functions_answer_and_batches_are_answered_in_batches(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        line.assign(*[assignment(f"r/t{n}/0/1", "sample.judge@1", {"name": "a", "files": n}) for n in range(200)])
        line.assign(assignment("r/p/0/1", "sample.plain@1", {"name": "a"}))
        await line.results(201)
        assert output(await line.result("r/t0/0/1")) == {"name": "a", "fine": False}
        assert output(await line.result("r/t7/0/1")) == {"name": "a", "fine": True}
        said = output(await line.result("r/p/0/1"))
        assert said["attempt"] == "r/p/0/1" and said["thread"].startswith("antiphon")
        assert max(line.batches) >= 32


@pytest.mark.parametrize(
    ("how", "kind", "retryable"),
    [
        ("transient", failure_pb2.FAILURE_KIND_TRANSIENT, True),
        ("permanent", failure_pb2.FAILURE_KIND_PERMANENT, False),
        ("input", failure_pb2.FAILURE_KIND_INVALID_INPUT, False),
        ("surprise", failure_pb2.FAILURE_KIND_TRANSIENT, True),
        ("cancelled", failure_pb2.FAILURE_KIND_TRANSIENT, True),
        ("exit", failure_pb2.FAILURE_KIND_TRANSIENT, True),
    ],
)
async def test_what_a_handler_raises_chooses_the_kind_of_failure(
    tmp_path: Path, how: str, kind: int, retryable: bool
) -> None:
    async with attached(tmp_path) as (_, line, child):
        line.assign(assignment("r/t/0/1", "sample.fail@1", how))
        failure = (await line.result("r/t/0/1")).failure
        assert (failure.kind, failure.retryable) == (kind, retryable)
        if how == "transient":
            assert (failure.code, failure.message, failure.cause) == ("busy", "come back later", "")
        if how == "input":
            assert failure.field == "/name"
        if how == "surprise":
            assert failure.message == "KeyError: 'surprise'" and "raise KeyError(how)" in failure.cause
            assert child.process.stderr is not None
            while b"failed: KeyError, at " not in (said := await child.process.stderr.readline()):
                assert said, "the log does not say where it was raised"
            assert b"sample_agent.py:" in said and b"surprise" not in said


@pytest.mark.parametrize(
    ("capability", "value", "kind", "says"),
    [
        ("sample.judge@1", {"files": 1}, failure_pb2.FAILURE_KIND_INVALID_INPUT, "'name' is missing"),
        ("sample.judge@1", {"name": 5}, failure_pb2.FAILURE_KIND_INVALID_INPUT, "expected a string, got a number"),
        ("sample.large@1", 70000, failure_pb2.FAILURE_KIND_INVALID_OUTPUT, "larger than 65536 bytes"),
        ("sample.nan@1", None, failure_pb2.FAILURE_KIND_INVALID_OUTPUT, "JSON"),
        ("sample.unheard@1", None, failure_pb2.FAILURE_KIND_PERMANENT, "has no sample.unheard@1"),
    ],
)
async def test_what_cannot_be_converted_is_a_failure_that_says_where(
    tmp_path: Path, capability: str, value: Any, kind: int, says: str
) -> None:
    async with attached(tmp_path) as (_, line, _process):
        line.assign(assignment("r/t/0/1", capability, value))
        failure = (await line.result("r/t/0/1")).failure
        assert failure.kind == kind and says in failure.message, failure
        if value == {"name": 5}:
            assert failure.field == "/name"


async def test_garbage_and_references_in_place_of_input_are_invalid_input(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        garbage, deep, blob = (assignment(f"r/{name}/0/1", "sample.judge@1") for name in ("garbage", "deep", "blob"))
        garbage.input.inline = b"\xff{"
        deep.input.inline = b"[" * 60_000
        blob.input.blob.size = 1 << 30
        line.assign(garbage, deep, blob)
        for result in await line.results(3):
            assert result.failure.kind == failure_pb2.FAILURE_KIND_INVALID_INPUT, result


async def test_a_handler_may_take_and_answer_the_envelope_itself(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        made = assignment("r/t/0/1", "sample.envelope@1")
        made.input.CopyFrom(Payload(inline=b"abc", media_type="text/plain"))
        line.assign(made)
        result = await line.result("r/t/0/1")
        assert (result.output.inline, result.output.media_type) == (b"cba", "text/plain")


async def test_a_context_tells_about_the_attempt(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        made = assignment("run-1/t/0/3", "sample.context@1", seconds=60)
        line.assign(made)
        assert output(await line.result("run-1/t/0/3")) == {
            "attempt_id": "run-1/t/0/3",
            "run_id": "run-1",
            "key": "run-1/t/0",
            "namespace": "team-a",
            "principal": made.principal,
            "traceparent": made.traceparent,
            "capability": "sample.context@1",
            "number": 3,
            "aware": True,
            "left": True,
        }


@pytest.mark.parametrize("capability", ["sample.hold@1", "sample.obey@1"])
async def test_a_cancelled_attempt_stops_and_answers_cancelled(tmp_path: Path, capability: str) -> None:
    async with attached(tmp_path) as (_, line, _process):
        line.assign(assignment("r/t/0/1", capability, 30))
        assert (await line.told("r/t/0/1")).progress.fraction == 0.5
        line.cancel("r/t/0/1")
        assert (await line.result("r/t/0/1")).failure.kind == failure_pb2.FAILURE_KIND_CANCELLED


async def test_an_attempt_cancelled_before_it_began_answers_cancelled_too(tmp_path: Path) -> None:
    async with attached(tmp_path, "1") as (_, line, _process):
        line.assign(assignment("r/first/0/1", "sample.obey@1"))
        await line.told("r/first/0/1")
        async_one = assignment("r/async/0/1", "sample.hold@1", 30)
        waiting = assignment("r/waiting/0/1", "sample.obey@1")
        cancels = WorkResponse(assignments=[waiting, async_one])
        cancels.cancels.add(attempt_id="r/waiting/0/1")
        cancels.cancels.add(attempt_id="r/async/0/1")
        line.send(cancels)
        for attempt_id in ("r/waiting/0/1", "r/async/0/1"):
            assert (await line.result(attempt_id)).failure.kind == failure_pb2.FAILURE_KIND_CANCELLED
        line.cancel("r/first/0/1")
        await line.result("r/first/0/1")


async def test_timeouts_of_asyncio_work_inside_a_handler(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        line.assign(assignment("r/t/0/1", "sample.hold@1", 0.01))
        failure = (await line.result("r/t/0/1")).failure
        assert (failure.kind, failure.message) == (failure_pb2.FAILURE_KIND_TRANSIENT, "TimeoutError")


async def test_an_attempt_that_is_assigned_again_while_it_runs_runs_once(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        line.assign(assignment("r/t/0/1", "sample.obey@1"), assignment("r/t/0/1", "sample.obey@1"))
        await line.told("r/t/0/1")
        line.assign(assignment("r/t/0/1", "sample.obey@1"), assignment("r/c/0/1", "sample.count@1", "k"))
        assert output(await line.result("r/c/0/1")) == 1
        line.cancel("r/t/0/1")
        await line.result("r/t/0/1")


async def test_calls_are_numbered_answered_and_may_fail(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        line.assign(assignment("r/t/0/1", "sample.ask@1"))
        first = await line.call()
        assert (first.call_id, first.attempt_id, first.capability) == ("1", "r/t/0/1", "sample.judge@1")
        assert (first.attempt_token, first.timeout.seconds) == (b"token of r/t/0/1", 9)
        assert first.input.inline == b'{"name":"a","files":1}'
        answer = CallResponse(call_id="1", attempt_id="r/t/0/1", output=Payload(inline=b'{"name":"b","fine":true}'))
        line.send(WorkResponse(call_results=[answer]))
        second = await line.call()
        refused = failure_pb2.Failure(kind=failure_pb2.FAILURE_KIND_PERMANENT, code="no", message="never")
        line.send(WorkResponse(call_results=[CallResponse(call_id="2", attempt_id="r/t/0/1", failure=refused)]))
        third = await line.call()
        assert (second.call_id, third.call_id) == ("2", "mine")
        line.send(WorkResponse(call_results=[CallResponse(call_id="mine", attempt_id="r/t/0/1")]))
        assert output(await line.result("r/t/0/1")) == ["b", "no", None]


async def test_a_call_that_fails_fails_its_caller(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, _process):
        line.assign(assignment("r/t/0/1", "sample.ask-once@1", {"name": "a"}))
        call = await line.call()
        policy = failure_pb2.Failure(kind=failure_pb2.FAILURE_KIND_POLICY, message="denied")
        line.send(WorkResponse(call_results=[CallResponse(call_id=call.call_id, attempt_id="r/t/0/1", failure=policy)]))
        failure = (await line.result("r/t/0/1")).failure
        assert failure.kind == failure_pb2.FAILURE_KIND_PERMANENT
        assert failure.message == "sample.judge@1 failed: denied"


async def test_a_broken_stream_is_dialled_again_and_loses_no_outcome_and_no_call(tmp_path: Path) -> None:
    async with attached(tmp_path) as (sidecar, line, _process):
        gate = tmp_path / "gate"
        slow = assignment("r/slow/0/1", "sample.until@1", str(gate))
        line.assign(slow, assignment("r/ask/0/1", "sample.ask-once@1", {}))
        await line.told("r/slow/0/1")
        await line.call()
        await sidecar.stop()
        await sidecar.start()
        again = await sidecar.line()
        call = await again.call()
        again.send(WorkResponse(call_results=[CallResponse(call_id=call.call_id, attempt_id="r/ask/0/1")]))
        gate.touch()
        assert output(await again.result("r/slow/0/1")) == "there"
        assert output(await again.result("r/ask/0/1")) is None


async def test_an_outcome_lost_with_a_stream_is_repeated_and_not_worked_out_again(tmp_path: Path) -> None:
    async with attached(tmp_path) as (sidecar, line, _process):
        line.assign(assignment("r/t/0/1", "sample.count@1", "k"))
        assert output(await line.result("r/t/0/1")) == 1
        await sidecar.stop()
        await sidecar.start()
        again = await sidecar.line()
        again.assign(assignment("r/t/0/1", "sample.count@1", "k"), assignment("r/t/0/2", "sample.count@1", "k"))
        assert output(await again.result("r/t/0/1")) == 1
        assert output(await again.result("r/t/0/2")) == 2


async def test_a_dial_in_vain_does_not_make_it_forget_what_the_last_stream_may_have_lost(tmp_path: Path) -> None:
    async with attached(tmp_path) as (sidecar, line, _process):
        line.assign(assignment("r/t/0/1", "sample.count@1", "k"))
        assert output(await line.result("r/t/0/1")) == 1
        await sidecar.stop()
        dialled = asyncio.Event()

        def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            dialled.set()

        async with await asyncio.start_unix_server(refuse, sidecar.path), asyncio.timeout(WAIT):
            await dialled.wait()
        sidecar.path.unlink(missing_ok=True)
        await sidecar.start()
        again = await sidecar.line()
        again.assign(assignment("r/t/0/1", "sample.count@1", "k"))
        assert output(await again.result("r/t/0/1")) == 1


async def test_work_that_ends_while_there_is_no_stream_is_not_done_again(tmp_path: Path) -> None:
    agent, begun, go, times = Agent("held"), asyncio.Event(), asyncio.Event(), []

    @agent.capability("held.once@1")
    async def once() -> int:
        times.append(1)
        begun.set()
        await go.wait()
        return len(times)

    path = tmp_path / "a.sock"
    async with agent_socket(path) as sidecar, asyncio.TaskGroup() as group:
        working = group.create_task(agent.serve(socket=str(path)))
        line = await sidecar.line()
        line.assign(assignment("r/t/0/1", "held.once@1"))
        await begun.wait()
        await sidecar.stop()
        go.set()
        await sidecar.start()
        again = await sidecar.line()
        again.assign(assignment("r/t/0/1", "held.once@1"), assignment("r/t/0/2", "held.once@1"))
        assert output(await again.result("r/t/0/2")) == 2, "the second attempt's is the second time"
        assert output(await again.result("r/t/0/1")) == 1
        working.cancel()


async def test_sigterm_drains_finishes_and_exits_0(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, process):
        line.assign(assignment("r/t/0/1", "sample.sleep@1", 0.3))
        await line.told("r/t/0/1")
        process.signal(signal.SIGTERM)
        await line.drained.wait()
        assert output(await line.result("r/t/0/1")) == "awake"
        line.end()
        assert (await process.end())[0] == 0


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with attached(tmp_path) as (_, line, process):
        line.assign(assignment("r/t/0/1", "sample.hold@1", 30))
        await line.told("r/t/0/1")
        process.signal(signal.SIGINT)
        await line.drained.wait()
        process.signal(signal.SIGINT)
        assert (await process.end())[0] == 130


@pytest.mark.parametrize(("signals", "grace", "status"), [(1, "0.1", 0), (2, "30", 130)])
async def test_a_plain_function_that_does_not_end_holds_up_no_end(
    tmp_path: Path, signals: int, grace: str, status: int
) -> None:
    async with attached(tmp_path, "32", grace) as (_, line, process):
        line.assign(assignment("r/t/0/1", "sample.stubborn@1"))
        await line.told("r/t/0/1")
        for _ in range(signals):
            process.signal(signal.SIGTERM)
            await line.drained.wait()
        ended, said = await process.end()
        assert ended == status and ("given up" in said) == (signals == 1)


async def test_a_draining_sidecar_is_left_when_all_is_done_and_dialled_again(tmp_path: Path) -> None:
    async with attached(tmp_path) as (sidecar, line, process):
        line.assign(assignment("r/t/0/1", "sample.sleep@1", 0.3))
        line.send(WorkResponse(drain=True))
        assert output(await line.result("r/t/0/1")) == "awake"
        async with asyncio.timeout(WAIT):
            await line.closed.wait()
        again = await sidecar.line()
        again.assign(assignment("r/c/0/1", "sample.count@1", "k"))
        assert output(await again.result("r/c/0/1")) == 1
        process.signal(signal.SIGTERM)
        await again.drained.wait()
        again.end()
        assert (await process.end())[0] == 0


async def test_an_agent_may_start_before_its_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "late.sock"
    async with child(path) as process:
        assert process.process.stderr is not None
        async with asyncio.timeout(WAIT):
            assert b"dialling until there is one" in await process.process.stderr.readline()
        async with agent_socket(path) as sidecar:
            line = await sidecar.line()
            line.assign(assignment("r/c/0/1", "sample.count@1", "k"))
            assert output(await line.result("r/c/0/1")) == 1


async def test_an_agent_without_a_sidecar_drains_at_once(tmp_path: Path) -> None:
    async with child(tmp_path / "none.sock") as process:
        assert process.process.stderr is not None
        async with asyncio.timeout(WAIT):
            assert b"dialling" in await process.process.stderr.readline()
        process.signal(signal.SIGTERM)
        assert (await process.end())[0] == 0


@pytest.mark.parametrize(
    "reason",
    [
        error_pb2.ERROR_REASON_NOT_GRANTED,
        error_pb2.ERROR_REASON_CAPABILITY_CONFLICT,
        error_pb2.ERROR_REASON_STREAM_REPLACED,
        error_pb2.ERROR_REASON_REQUEST_INVALID,
    ],
)
async def test_a_refusal_ends_the_process_with_one_line(
    tmp_path: Path, reason: error_pb2.ErrorReason.ValueType
) -> None:
    path = tmp_path / "a.sock"
    async with agent_socket(path) as sidecar:
        sidecar.refusal = reason
        async with child(path) as process:
            status, errors = await process.end()
    assert status == 1
    assert errors.startswith("sample: ") and errors.count("\n") == 1, errors


async def test_an_agent_that_says_more_of_itself_than_sidecars_take_says_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "wordy.py"
    script.write_text(
        "from antiphon import Agent\n"
        "agent = Agent('wordy')\n"
        "for number in range(66):\n"
        "    offer = agent.capability(f'wordy.say{number}@1', input_schema={'description': 'x' * 32_000})\n"
        "    offer(lambda value: value)\n"
        "agent.run()\n"
    )
    async with child(tmp_path / "none.sock", script=script) as process:
        status, errors = await process.end()
    assert status == 2
    assert re.fullmatch(
        r"wordy: agent wordy cannot be announced: its 66 capabilities have \d+ bytes with their schemas and "
        r"descriptions, larger than 2097152 bytes; shorten them, or offer some of them in another agent\n",
        errors,
    )


async def test_a_trouble_that_is_another_one_than_before_is_told(tmp_path: Path) -> None:
    path = tmp_path / "late.sock"
    async with child(path) as process:
        assert process.process.stderr is not None
        async with asyncio.timeout(WAIT):
            assert b"is its sidecar running" in await process.process.stderr.readline()
            async with agent_socket(path) as sidecar:
                sidecar.refusal = error_pb2.ERROR_REASON_OVERLOADED
                while b"is its sidecar running" in (told := await process.process.stderr.readline()):
                    pass
                assert b"some queue is full" in told
                sidecar.refusal = None
                await sidecar.line()
                assert b"attached as sample" in await process.process.stderr.readline()


async def test_without_a_socket_the_process_says_what_to_do(tmp_path: Path) -> None:
    async with child(None) as process:
        status, errors = await process.end()
    assert status == 2
    assert errors.startswith("sample: ANTIPHON_SOCKET is not set") and "antiphon sidecar run --" in errors


async def test_an_agent_process_loads_neither_client_nor_yaml(tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(
        "import sys\nfrom antiphon import Agent, TaskContext, TransientFailure\n"
        "unwanted = {'yaml', 'antiphon._client', 'antiphon._graph_file', 'cryptography', 'typer', 'rich'}\n"
        "sys.exit(', '.join(unwanted & set(sys.modules)) or 0)\n"
    )
    async with child(None, script=script) as process:
        assert await process.end() == (0, "")
