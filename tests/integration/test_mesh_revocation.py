"""Sidecars and clients whose certificates are revoked, and sidecars that were away for days: real processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from antiphon import CertificateRevoked, Client, Graph, output_of
from antiphon.v1 import run_service_pb2, run_service_pb2_grpc
from antiphon_certs import CertificateFiles, Credential, JoinToken, Kind

from tests.harness import Mesh, SidecarProcess, eventually, journal_of
from tests.harness.raw import channel, reason_of

pytest_plugins = ("tests.harness.fixtures",)

SHORT = timedelta(seconds=1)


def one_task(capability: str, input: Any = None) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input)
    return graph


async def expired(mesh: Mesh, agent: str) -> SidecarProcess:
    """A sidecar that joined, was switched off, and whose certificate has expired since."""
    sidecar = mesh.sidecar(agent, start=False)
    pem = mesh.ca.issue(Kind.SIDECAR, sidecar.name, agents=(agent,), capabilities=("*",), lifetime=SHORT)
    process = mesh.orchestrator
    mesh.ca.join_sidecar(sidecar.state, sidecar.name, process.address, pem, join_address=process.join_address)
    end = kept(sidecar).not_after
    await eventually(lambda: datetime.now(UTC) > end)
    return sidecar


def kept(sidecar: SidecarProcess) -> Credential:
    return CertificateFiles(sidecar.state / "profiles" / "sidecar" / "credential").load()


async def token(operator: Client, name: str, agent: str) -> JoinToken:
    answer = await operator.create_token("sidecar", name, agents=[agent], capabilities=["*"])
    return JoinToken.parse(answer.token)


@pytest.mark.proves("certificate revocation")
async def test_a_revoked_client_loses_its_calls_and_streams_and_is_told_what_to_do(client: Client, mesh: Mesh) -> None:
    run = await client.submit(one_task("work.hold@1", str(mesh.path("never"))))
    pem = mesh.ca.issue(Kind.CLIENT, "mallory")
    async with channel(mesh.orchestrator.address, pem) as raw, mesh.operator() as operator:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        watching = stub.WatchRun(run_service_pb2.WatchRunRequest(run_id=run.run_id))
        await watching.read()
        asked = run_service_pb2.SubmitRunRequest(request_id="waits", wait=True)
        asked.inline.CopyFrom(one_task("work.hold@1", str(mesh.path("never"))).to_proto())
        waiting = stub.SubmitRun(asked, timeout=300)

        async def begun() -> bool:
            return any([one.principal.endswith("/mallory") async for one in client.list_runs()])

        await eventually(begun)
        await operator.revoke_certificates("client", "mallory", cause="her laptop was stolen")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetRun(run_service_pb2.GetRunRequest(run_id=run.run_id), timeout=30)
        assert reason_of(refused.value) == "CERTIFICATE_REVOKED"
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await watching.read() is not grpc.aio.EOF:
                pass
        assert reason_of(ended.value) == "CERTIFICATE_REVOKED"
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await waiting
        assert reason_of(lost.value) == "CERTIFICATE_REVOKED"
        found = [one async for one in operator.list_revocations()]
        assert ("client", "mallory") in [(one.identity.kind, one.identity.name) for one in found]
    async with mesh.client("mallory") as mallory:
        with pytest.raises(CertificateRevoked, match=r"laptop was stolen.*antiphon certs token"):
            await mallory.get_run(run.run_id)
    await client.cancel(run.run_id)


@pytest.mark.proves("certificate revocation")
async def test_a_revoked_sidecar_ends_with_a_clear_line_and_a_new_token_brings_it_back(
    client: Client, mesh: Mesh
) -> None:
    async with mesh.operator() as operator:
        first = await token(operator, "lost", "joined")
        sidecar = SidecarProcess("lost", mesh.folder, arguments=["--token", first.text()], command=["sleep", "1000"])
        mesh.sidecars.append(sidecar)
        sidecar.start()
        await eventually(lambda: "attached" in sidecar.said())
        await operator.revoke_certificates("sidecar", "lost", cause="its disk was stolen")
        assert sidecar.end() == 1
        said = sidecar.said()
        assert "its disk was stolen" in said and "antiphon certs token" in said and "Traceback" not in said
        # The token of before is of no use, for it was made before.
        sidecar.start()
        assert sidecar.end() == 1
        assert "not accepted" in sidecar.said()
        second = await token(operator, "lost", "joined")
        again = SidecarProcess("again", mesh.folder, arguments=["--token", second.text()], command=["sleep", "1000"])
        again.state = sidecar.state
        mesh.sidecars.append(again)
        again.start()
        await eventually(lambda: "attached" in again.said())


@pytest.mark.proves("certificate expiry and rotation")
async def test_a_sidecar_whose_certificate_expired_while_it_was_off_needs_no_new_token(
    client: Client, mesh: Mesh
) -> None:
    sidecar = await expired(mesh, "returned")
    sidecar.start()
    await mesh.attached(client, "returned")
    assert "recovered" in sidecar.said()
    assert kept(sidecar).not_after > datetime.now(UTC)


async def test_a_sidecar_that_was_off_is_not_let_in_again_once_it_is_revoked(client: Client, mesh: Mesh) -> None:
    sidecar = await expired(mesh, "banned")
    async with mesh.operator() as operator:
        await operator.revoke_certificates("sidecar", sidecar.name, cause="its machine was sold")
    sidecar.start()
    assert sidecar.end() == 1
    assert "its machine was sold" in sidecar.said() and "Traceback" not in sidecar.said()
    assert not [entry for entry in journal_of(mesh.journal) if entry.event == "begun" and "banned" in entry.attempt_id]
    assert output_of(await client.submit(one_task("work.echo@1", 1), wait=True)) == {"t": 1}
