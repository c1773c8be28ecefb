"""A sidecar and its agent as processes, attached to an orchestrator double over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import error_pb2, failure_pb2
from antiphon_certs import Authority, Grants, mint

from tests.fakes.mesh import FakeMesh, keep, now, serving, sidecar_identity
from tests.integration.sidecar_process import RAW_AGENT, eventually, sidecar

GRANTS = Grants(("echo",), ("text.*",))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def orchestrator(authority: Authority) -> AsyncIterator[FakeMesh]:
    async with serving(authority) as fake:
        yield fake


@pytest.fixture
def state(tmp_path: Path, authority: Authority, orchestrator: FakeMesh) -> str:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    return str(tmp_path / "state")


def failure_kind(report: mesh.Report) -> str:
    return failure_pb2.FailureKind.Name(report.failure.kind).removeprefix("FAILURE_KIND_")


def reason(report: mesh.Report) -> str:
    return mesh.ReturnReason.Name(report.returned.reason).removeprefix("RETURN_REASON_")


async def test_an_offer_reaches_the_agent_and_its_output_comes_back(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("r/a/0/1", "r/b/0/1")
        for attempt_id in ("r/a/0/1", "r/b/0/1"):
            report = await stream.outcome(attempt_id)
            assert json.loads(report.output.inline) == "hello"
            assert report.agent == "echo"
        assert sorted(stream.inventories) == [0, 1, 2, 3]
        assert all(pages[-1].last for pages in stream.inventories.values())


async def test_failures_of_the_agent_and_values_that_are_too_large_are_failures(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("fails", input=b'{"fail": "FAILURE_KIND_PERMANENT"}')
        stream.offer("large", input=b'{"large": 2100000}')
        assert failure_kind(await stream.outcome("fails")) == "PERMANENT"
        assert failure_kind(await stream.outcome("large")) == "INVALID_OUTPUT"
        stream.offer("after")
        assert (await stream.outcome("after")).HasField("output")


async def test_a_timeout_fails_at_once_though_the_agent_hangs_and_its_place_stays_taken(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT, environ={"CONCURRENCY": "1", "PREFETCH": "1"}):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("hangs", input=b'{"hang": true}', timeout=0.4)
        assert failure_kind(await stream.outcome("hangs")) == "TIMEOUT"
        stream.offer("waits", timeout=0.3)
        assert reason(await stream.outcome("waits")) == "TOO_LATE"


async def test_a_cancel_stops_the_handler_and_long_attempts_are_announced(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("sleeps", input=b'{"sleep": 60}')
        await stream.until(lambda: any(report.HasField("started") for report in stream.reports.get("sleeps", [])))
        response = mesh.AttachResponse()
        response.cancels.add(attempt_id="sleeps", reason="cancelled")
        stream.send(response)
        assert failure_kind(await stream.outcome("sleeps")) == "CANCELLED"


async def test_an_agent_that_is_killed_loses_its_attempts_and_is_started_again(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    marker = tmp_path / "pids"
    environ = {"CONCURRENCY": "1", "PREFETCH": "1", "MARKER": str(marker)}
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT, environ=environ):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("running", "queued", input=b'{"sleep": 60}')
        await stream.until(lambda: stream.reports.get("running"))
        os.kill(int(marker.read_text().split()[0]), signal.SIGKILL)
        assert failure_kind(await stream.outcome("running")) == "LOST"
        assert reason(await stream.outcome("queued")) == "AGENT_GONE"
        await stream.until(lambda: "echo" not in stream.agents)
        await stream.until(lambda: "echo" in stream.agents and stream.windows["echo"].slots == 2)
        stream.offer("again")
        assert (await stream.outcome("again")).HasField("output")
        assert len(marker.read_text().split()) == 2


async def test_outcomes_without_a_verdict_come_again_on_the_next_stream_after_its_inventory(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    orchestrator.verdicts = False
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT):
        first = await orchestrator.attachment()
        await first.window("echo", 2)
        first.offer("done")
        await first.outcome("done")
        first.offer("sleeps", input=b'{"sleep": 60}')
        await first.until(lambda: first.reports.get("sleeps"))
        orchestrator.verdicts, orchestrator.epoch = True, 2
        first.end()
        second = await orchestrator.attachment(2)
        assert second.hello.incarnation == first.hello.incarnation
        assert second.hello.generation > first.hello.generation
        await second.outcome("done")
        assert list(second.inventories[0][0].attempt_ids) == ["sleeps"]
        assert list(second.inventories[0][0].reported_attempt_ids) == ["done"]
        second.offer("stale", epoch=1)
        assert reason(await second.outcome("stale")) == "STALE_EPOCH"
        second.offer("sleeps", epoch=2)  # it is held: ignored
        await second.window("echo", 2)
        second.offer("fresh", epoch=2)
        assert (await second.outcome("fresh")).HasField("output")
        assert len(second.reports["done"]) == 1


async def test_go_away_is_answered_by_a_new_stream_before_the_old_one_ends(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT) as process:
        first = await orchestrator.attachment()
        await first.window("echo", 2)
        gate = tmp_path / "gate"
        first.offer("waits", input=json.dumps({"until": str(gate)}).encode())
        await first.until(lambda: first.reports.get("waits"))
        response = mesh.AttachResponse()
        response.go_away.reason = "connection_age"
        first.send(response)
        second = await orchestrator.attachment(2)
        assert second.hello.windows[0].slots == 2
        await first.until(first.closed.is_set)
        gate.touch()
        assert json.loads((await second.outcome("waits")).output.inline) == "done"
        assert '"event": "detached"' not in process.log


async def test_a_new_stream_works_though_the_old_one_ended_before_its_welcome(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT) as process:
        first = await orchestrator.attachment()
        await first.window("echo", 2)
        orchestrator.welcomes.clear()
        response = mesh.AttachResponse()
        response.go_away.reason = "connection_age"
        first.send(response)
        async with asyncio.timeout(20):
            await orchestrator.greeted.wait()
        first.end()
        await eventually(lambda: '"event": "detached"' in process.log)
        orchestrator.welcomes.set()
        second = await orchestrator.attachment(2)
        second.offer("after", input=b'{"text": "still here"}')
        assert (await second.outcome("after")).WhichOneof("kind") == "output"
        process.signal(signal.SIGTERM)
        await second.until(lambda: second.drained)


async def test_a_call_goes_up_and_its_result_comes_back_while_the_place_is_free(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT, environ={"CONCURRENCY": "1"}):
        stream = await orchestrator.attachment()
        await stream.window("echo", 1)
        stream.offer("parent", input=b'{"call": "text.echo@1"}')
        await stream.until(lambda: stream.calls)
        await stream.window("echo", 2)
        stream.offer("child", input=b'"of the parent"')
        child = await stream.outcome("child")
        response = mesh.AttachResponse()
        response.call_results.add(call_id="1", attempt_id="parent", output=child.output)
        stream.send(response)
        assert json.loads((await stream.outcome("parent")).output.inline) == "of the parent"
        await stream.window("echo", 1)


async def test_sigterm_drains_gives_back_what_was_not_begun_and_exits_0(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    environ = {"CONCURRENCY": "1", "PREFETCH": "1"}
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT, environ=environ) as process:
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        gate = tmp_path / "gate"
        stream.offer("running", "queued", input=json.dumps({"until": str(gate)}).encode())
        await stream.until(lambda: stream.reports.get("running"))
        process.signal(signal.SIGTERM)
        assert reason(await stream.outcome("queued")) == "DRAINING"
        await stream.until(lambda: stream.drained)
        stream.offer("late")
        assert reason(await stream.outcome("late")) == "DRAINING"
        gate.touch()
        assert json.loads((await stream.outcome("running")).output.inline) == "done"
        assert await process.exit_code() == 0
        assert not list((tmp_path / "run").glob("*.sock"))


async def test_what_outlasts_the_grace_is_lost_and_a_second_signal_exits_at_once(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--grace", "300ms", "--", *RAW_AGENT) as process:
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("running", input=b'{"sleep": 60}')
        await stream.until(lambda: stream.reports.get("running"))
        process.signal(signal.SIGTERM)
        assert failure_kind(await stream.outcome("running")) == "LOST"
        assert await process.exit_code() == 0
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT) as process:
        stream = await orchestrator.attachment(2)
        await stream.window("echo", 2)
        stream.offer("running", input=b'{"sleep": 60}')
        await stream.until(lambda: stream.reports.get("running"))
        process.signal(signal.SIGTERM)
        await stream.until(lambda: stream.drained)
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 130


async def test_an_agent_the_orchestrator_refuses_is_told_why(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT) as process:
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        response = mesh.AttachResponse()
        response.refusals.add(
            agent="echo", reason=error_pb2.ERROR_REASON_CAPABILITY_CONFLICT, message="held with another schema"
        )
        stream.send(response)
        await process.logged("agent refused")
        await process.logged("agent ended")
        assert "held with another schema" in process.log and '"exit_code": 3' in process.log


async def test_an_agent_may_offer_only_what_the_certificate_grants(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT, environ={"CAPABILITY": "mail.send"}) as process:
        await process.logged("agent ended")
        assert "does not allow capability mail.send" in process.log
        stream = await orchestrator.attachment()
        assert not stream.agents


async def test_two_replicas_share_the_slots_and_one_that_goes_leaves_them_to_the_other(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path, state: str
) -> None:
    async with serving(authority, "two") as other:
        orchestrator.topology = [("one", orchestrator.address), ("two", other.address)]
        other.topology = orchestrator.topology
        async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT, environ={"CONCURRENCY": "4"}):
            one, two = await orchestrator.attachment(), await other.attachment()
            await one.window("echo", 2)
            await two.window("echo", 2)
            demand = mesh.AttachResponse()
            demand.demands.add(agent="echo", wanted=10)
            one.send(demand)
            await one.window("echo", 4)
            await two.window("echo", 0)
            assert one.hello.incarnation == two.hello.incarnation
            assert one.hello.generation != two.hello.generation


async def test_a_token_is_spent_once_and_a_restart_needs_it_no_more(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    identity = sidecar_identity(authority)
    text, _ = mint(
        identity,
        GRANTS,
        timedelta(minutes=10),
        root_pem=authority.root_pem,
        addresses=[orchestrator.address],
        join_addresses=[orchestrator.join_address],
        now=now(),
    )
    state = str(tmp_path / "fresh")
    for number, environ in enumerate(({"ANTIPHON_TOKEN": text}, {"ANTIPHON_TOKEN": text}, {}), 1):
        async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT, environ=environ) as process:
            stream = await orchestrator.attachment(number)
            await stream.window("echo", 2)
            process.signal(signal.SIGTERM)
            assert await process.exit_code() == 0
    assert len(orchestrator.joins) == 1
    assert text not in (tmp_path / "sidecar.log").read_text()


async def test_a_replica_that_has_said_that_it_ends_is_waited_for_without_a_warning(
    authority: Authority, tmp_path: Path
) -> None:
    async with serving(authority) as first:
        address = first.address
        keep(tmp_path / "state", authority, [address], GRANTS)
        async with sidecar(tmp_path, "--state", str(tmp_path / "state"), "--", *RAW_AGENT) as process:
            stream = await first.attachment()
            await stream.window("echo", 2)
            response = mesh.AttachResponse()
            response.go_away.reason = "shutdown"
            stream.send(response)
            await process.logged("go away")
            await first.stop()
            async with serving(authority, "two", address) as second:
                await (await second.attachment()).window("echo", 2)
                await eventually(lambda: '"replica": "two"' in process.log)
                assert '"event": "detached"' not in process.log
                await second.stop()
                await process.logged("detached")  # this one has said nothing


async def test_failed_handshakes_leave_nothing_but_json_in_the_log_and_agents_have_their_environment(
    orchestrator: FakeMesh, tmp_path: Path
) -> None:
    other = Authority.init(tmp_path / "other", "mesh.test")
    keep(tmp_path / "state", other, [orchestrator.address], GRANTS)
    agent = "import json, os, time; print(json.dumps(os.environ.get('GRPC_VERBOSITY')), flush=True); time.sleep(60)"
    words = ("--state", str(tmp_path / "state"), "--", sys.executable, "-c", agent)
    async with sidecar(tmp_path, *words) as process:
        await process.logged("detached")
        await eventually(lambda: "null" in process.log.split())
        assert None in [json.loads(line) for line in process.log.splitlines()]


async def test_a_certificate_past_half_its_life_is_renewed_and_the_stream_made_again_first(
    orchestrator: FakeMesh, authority: Authority, tmp_path: Path
) -> None:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS, timedelta(seconds=59))
    state = str(tmp_path / "state")
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT) as process:
        await orchestrator.attachment(2)
        assert orchestrator.renewals >= 1
        assert '"event": "detached"' not in process.log


async def test_a_replica_that_comes_back_is_attached_again_and_told_about_in_one_line(
    authority: Authority, tmp_path: Path
) -> None:
    async with serving(authority) as first:
        address = first.address
        keep(tmp_path / "state", authority, [address], GRANTS)
        async with sidecar(tmp_path, "--state", str(tmp_path / "state"), "--", *RAW_AGENT) as process:
            await (await first.attachment()).window("echo", 2)
            await first.stop()
            await process.logged("detached")
            async with serving(authority, address=address) as second:
                await (await second.attachment()).window("echo", 2)
                await eventually(lambda: process.log.count('"event": "attached"') == 2)
                assert process.log.count('"event": "detached"') == 1
