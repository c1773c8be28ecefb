"""Who may talk to the mesh and what they may claim: certificates, tokens, grants, policy; refused on live processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon import Client, Graph, PolicyDenied, output_of
from antiphon.mesh.v1 import mesh_service_pb2, mesh_service_pb2_grpc
from antiphon.v1 import (
    error_pb2,
    identity_service_pb2,
    identity_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
)
from antiphon_certs import Authority, JoinToken, Kind, mint

from tests.harness import Ca, Mesh, OrchestratorProcess, Process, SidecarProcess, eventually, journal_of
from tests.harness.joining import join, new_token
from tests.harness.raw import Pem, channel, reason_of

pytest_plugins = ("tests.harness.fixtures",)

TEN_MINUTES = timedelta(minutes=10)


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


async def refusal(address: str, pem: Pem | None, *, bundle: bytes = b"") -> grpc.aio.AioRpcError:
    """How the mesh refuses somebody who asks for a run."""
    async with channel(address, pem, bundle=bundle) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetRun(run_service_pb2.GetRunRequest(run_id="r0000"), timeout=30)
        return refused.value


async def test_without_a_certificate_or_with_a_foreign_one_there_is_no_connection(
    client: Client, mesh: Mesh, tmp_path: Path
) -> None:
    address, bundle = mesh.orchestrator.address, mesh.ca.authority.bundle_pem
    foreign = Ca(tmp_path / "foreign").issue(Kind.CLIENT, "alice")
    assert (await refusal(address, None, bundle=bundle)).code() is grpc.StatusCode.UNAVAILABLE
    assert (await refusal(address, foreign, bundle=bundle)).code() is grpc.StatusCode.UNAVAILABLE
    assert (await refusal(address, foreign)).code() is grpc.StatusCode.UNAVAILABLE
    expired = mesh.ca.issue(Kind.CLIENT, "late", lifetime=TEN_MINUTES, now=datetime.now(UTC) - timedelta(hours=1))
    assert (await refusal(address, expired)).code() is grpc.StatusCode.UNAVAILABLE


async def test_plaintext_is_not_spoken(client: Client, mesh: Mesh) -> None:
    async with grpc.aio.insecure_channel(mesh.orchestrator.address) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetRun(run_service_pb2.GetRunRequest(run_id="r0000"), timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_only_joining_is_served_without_a_certificate(client: Client, mesh: Mesh) -> None:
    bundle = mesh.ca.authority.bundle_pem
    assert reason_of(await refusal(mesh.orchestrator.join_address, None, bundle=bundle)) in (
        "CERTIFICATE_REQUIRED",
        "METHOD_UNKNOWN",
    )


@pytest.mark.proves("certificate expiry and rotation")
async def test_a_certificate_that_expires_on_a_live_connection_ends_calls_and_streams(
    client: Client, mesh: Mesh
) -> None:
    never = mesh.path("never")
    run = await client.submit(one_task("work.hold@1", str(never)))
    pem = mesh.ca.issue(Kind.CLIENT, "alice", lifetime=timedelta(seconds=5))
    async with channel(mesh.orchestrator.address, pem) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        request = run_service_pb2.GetRunRequest(run_id=run.run_id)
        assert (await stub.GetRun(request, timeout=30)).run.run_id == run.run_id
        watching = stub.WatchRun(run_service_pb2.WatchRunRequest(run_id=run.run_id))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in watching:
                pass
        assert reason_of(ended.value) == "CERTIFICATE_EXPIRED"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetRun(request, timeout=30)
        assert reason_of(refused.value) == "CERTIFICATE_EXPIRED"
    await client.cancel(run.run_id)


async def test_a_token_works_once_also_after_a_crash(client: Client, mesh: Mesh) -> None:
    token = await new_token(mesh)
    assert (await join(mesh, token)).certificate.spiffe_id == "spiffe://mesh.test/ns/team-a/sidecar/joiner"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(mesh, token)
    assert reason_of(refused.value) == "TOKEN_NOT_ACCEPTED"
    mesh.orchestrator.restart()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(mesh, token)
    assert reason_of(refused.value) == "TOKEN_NOT_ACCEPTED"


async def test_a_token_that_is_guessed_expired_or_of_another_mesh_is_refused(
    client: Client, mesh: Mesh, tmp_path: Path
) -> None:
    token = await new_token(mesh)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(mesh, token, secret=b"\0" * 32)
    assert reason_of(refused.value) == "TOKEN_NOT_ACCEPTED"
    assert (await join(mesh, token)).certificate.chain  # a wrong guess spends nothing
    text, _ = mint(
        token.identity,
        token.grants,
        TEN_MINUTES,
        root_pem=token.root_pem,
        addresses=token.addresses,
        join_addresses=token.join_addresses,
        now=datetime.now(UTC),
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(mesh, JoinToken.parse(text))
    assert reason_of(refused.value) == "TOKEN_NOT_ACCEPTED"
    short = await new_token(mesh, lifetime=timedelta(seconds=1))
    await eventually(lambda: datetime.now(UTC) > short.expire_time)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(mesh, short)
    assert reason_of(refused.value) == "TOKEN_NOT_ACCEPTED"


def started(mesh: Mesh, token: str) -> SidecarProcess:
    name = mesh.path("joiner").name
    sidecar = SidecarProcess(name, mesh.folder, arguments=["--token", token], command=["sleep", "1000"])
    mesh.sidecars.append(sidecar)
    sidecar.start()
    return sidecar


async def test_a_sidecar_with_a_bad_token_says_so_in_one_line_and_ends(client: Client, mesh: Mesh) -> None:
    token = await new_token(mesh)
    damaged = token.text()[:-12] + "A" * 12
    refused = started(mesh, damaged)
    assert refused.end() in (1, 2)
    assert "damaged" in refused.said()
    first = started(mesh, token.text())
    await eventually(lambda: "attached" in first.said())
    second = started(mesh, token.text())
    assert second.end() == 1
    assert "not accepted" in second.said() and "Traceback" not in second.said()
    assert "antiphon certs token" in second.said()
    # The first goes on, and needs its token no more.
    first.restart()
    await eventually(lambda: first.said().count('"attached"') == 2)


async def test_a_sidecar_never_gives_its_secret_to_a_stranger(client: Client, mesh: Mesh, tmp_path: Path) -> None:
    token = await new_token(mesh)
    stranger = Ca(tmp_path / "stranger")
    impostor = OrchestratorProcess(tmp_path, stranger.folder, settings=("--policy-profile", "dev"))
    impostor.start()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with channel(impostor.join_address, None, bundle=token.root_pem) as raw:
                stub: Any = identity_service_pb2_grpc.IdentityServiceStub(raw)
                await stub.GetTrustBundle(identity_service_pb2.GetTrustBundleRequest(), timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        impostor.close()


def announced(agent: str, capability: str) -> mesh_service_pb2.AttachRequest:
    request = mesh_service_pb2.AttachRequest()
    request.hello.incarnation = "feedfacefeedface"
    request.hello.generation = 1
    request.hello.protocol_version = 1
    description = request.hello.agents.add(name=agent, concurrency=4)
    description.capabilities.add(name=capability, version="1")
    request.hello.windows.add(agent=agent, generation=1, slots=4)
    return request


async def test_a_sidecar_that_claims_what_it_was_not_granted_gets_no_work(client: Client, mesh: Mesh) -> None:
    pem = mesh.ca.issue(Kind.SIDECAR, "greedy", agents=["mine"], capabilities=["work.mine"])
    for agent, capability in (("worker", "work.mine"), ("mine", "work.echo"), ("mine", "work.mine.and-more")):
        async with channel(mesh.orchestrator.address, pem) as raw:
            stub: Any = mesh_service_pb2_grpc.MeshServiceStub(raw)
            stream = stub.Attach()
            await stream.write(announced(agent, capability))
            first = await stream.read()
            (refused,) = first.refusals
            assert (refused.agent, refused.reason) == (agent, error_pb2.ERROR_REASON_NOT_GRANTED)
            assert "antiphon certs token" in refused.message
            stream.cancel()
    found = [agent.name async for agent in client.list_agents()]
    assert "mine" not in found
    run = await client.submit(one_task("work.echo@1", 1), wait=True)
    assert [one.agent async for one in client.list_attempts(run.run_id, "t")] == ["worker"]


async def test_a_sidecar_cannot_report_for_attempts_of_another(client: Client, mesh: Mesh) -> None:
    gate = mesh.path("gate")
    run = await client.submit(one_task("work.hold@1", str(gate)))

    async def running() -> bool:
        return (await client.get_task(run.run_id, "t")).state == run_pb2.TASK_STATE_RUNNING

    await eventually(running)
    pem = mesh.ca.issue(Kind.SIDECAR, "forger", agents=["forged"], capabilities=["work.*"])
    async with channel(mesh.orchestrator.address, pem) as raw:
        stub: Any = mesh_service_pb2_grpc.MeshServiceStub(raw)
        stream = stub.Attach()
        await stream.write(announced("forged", "work.forged"))
        await stream.read()
        request = mesh_service_pb2.AttachRequest()
        report = request.reports.add(attempt_id=f"{run.run_id}/t/0/1", shard=int(run.run_id[1:5], 16))
        report.output.inline = b'"forged"'
        await stream.write(request)
        verdicts: list[Any] = []
        while not verdicts:
            verdicts = list((await stream.read()).verdicts)
        assert verdicts[0].kind == mesh_service_pb2.VERDICT_KIND_GONE
        stream.cancel()
    gate.touch()
    assert output_of(await client.wait(run.run_id)) == {"t": "released"}


@pytest.mark.parametrize("namespace", ["team-a", "team-b"])
async def test_a_sidecar_cannot_take_the_seat_of_another_that_is_away(
    client: Client, mesh: Mesh, namespace: str
) -> None:
    agent = f"victim-{namespace}"
    victim = mesh.sidecar(agent, version="7")
    found = await mesh.attached(client, agent)
    run = await client.submit(one_task("work.hold@7", str(mesh.path("never"))))
    await eventually(
        lambda: sum(e.event == "begun" for e in journal_of(mesh.journal) if e.attempt_id.startswith(run.run_id))
    )
    _, incarnation, _ = found.instances[0].instance_id.split("/")
    mesh.dismiss(victim)
    pem = mesh.ca.issue(Kind.SIDECAR, "thief", namespace=namespace, agents=["*"], capabilities=["*"])
    async with channel(mesh.orchestrator.address, pem) as raw:
        stub: Any = mesh_service_pb2_grpc.MeshServiceStub(raw)
        stream = stub.Attach()
        hello = announced("thief", "work.stolen")
        hello.hello.incarnation, hello.hello.generation = incarnation, 1 << 40
        await stream.write(hello)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            while isinstance(message := await stream.read(), mesh_service_pb2.AttachResponse):
                assert not message.offers
        assert reason_of(refused.value) == "STREAM_REPLACED"
    await client.cancel(run.run_id)


async def test_an_agent_of_a_sidecar_that_offers_too_much_is_told(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("narrow", capabilities=("work.echo",))
    await eventually(lambda: "work.double" in sidecar.said() or "NOT_GRANTED" in sidecar.said())
    assert "antiphon certs token" in sidecar.said() and "Traceback" not in sidecar.said()


async def test_with_no_policy_everything_is_denied_with_a_reason() -> None:
    with Mesh(policy=()) as mesh:
        async with mesh.client() as client:
            with pytest.raises(PolicyDenied) as refused:
                await client.submit(one_task("work.echo@1"))
        assert refused.value.metadata["action"] == "submit"
        assert "no polic" in refused.value.metadata["cause"]
        assert refused.value.metadata["decision_id"]
        sidecar = mesh.sidecar()
        await eventually(lambda: "denie" in sidecar.said())


def test_two_orchestrators_on_one_data_folder_are_refused_with_a_clear_line() -> None:
    with Mesh() as mesh:
        second = Process("second", mesh.folder)
        endpoints = (mesh.orchestrator.data / "endpoints.json").read_text()
        second.spawn(
            [
                *(sys.executable, "-m", "antiphon.command", "orchestrator", "serve", "--listen", "127.0.0.1:0"),
                *("--join-listen", "127.0.0.1:0", "--data", str(mesh.orchestrator.data)),
                *("--authority", str(mesh.ca.folder)),
            ],
            {},
        )
        assert second.end() == 2
        lines = [line for line in second.said().splitlines() if not line.startswith("{")]
        assert len(lines) == 1 and "another process has the store" in lines[0]
        assert (mesh.orchestrator.data / "endpoints.json").read_text() == endpoints
        assert mesh.orchestrator.alive


def damaged_authority(folder: Path) -> None:
    Authority.init(folder / "ca", "x.test")
    (folder / "ca" / "intermediate.pem").write_text("x")


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: None, "antiphon certs init"),
        (
            lambda folder: (Authority.init(folder / "ca", "x.test"), (folder / "ca/intermediate.pem").write_text("x")),
            "",
        ),
    ],
)
def test_an_orchestrator_without_a_usable_authority_says_so(
    tmp_path: Path, prepare: Callable[[Path], object], says: str
) -> None:
    prepare(tmp_path)
    command = [sys.executable, "-m", "antiphon.command", "orchestrator", "serve"]
    done = subprocess.run(
        [*command, "--data", str(tmp_path / "data"), "--authority", str(tmp_path / "ca")],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
