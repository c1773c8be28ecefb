"""The authority's root is replaced under traffic, with everybody's certificates, and no call and no attempt is lost."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import grpc
import pytest
from antiphon import Client, Credentials
from antiphon.v1 import identity_service_pb2, identity_service_pb2_grpc, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import CertificateFiles, Kind, finish_root, new_key_and_csr, prepare_root, switch_root

from tests.harness import Mesh, eventually, journal_of
from tests.harness.raw import Pem, channel, reason_of
from tests.robustness.history import Submission, breaches, read_records
from tests.robustness.test_expiry import lost
from tests.robustness.traffic import load


@pytest.mark.proves("certificate expiry and rotation")
async def test_the_root_is_replaced_under_traffic_and_no_call_fails() -> None:
    with Mesh() as mesh:
        try:
            await replaced(mesh)
        finally:
            mesh.show()


async def replaced(mesh: Mesh) -> None:
    authority = mesh.ca.folder
    sidecar = mesh.sidecar(concurrency=8)
    folder = mesh.path("client")
    before = mesh.ca.issue(Kind.CLIENT, "long")
    mesh.ca.store(folder, before)
    members = CertificateFiles(folder), CertificateFiles(sidecar.state / "profiles" / "sidecar" / "credential")
    submissions: list[Submission] = []
    stop = asyncio.Event()

    async def taken_up(step: int) -> None:
        """The orchestrator has seen the folder, and everybody has renewed since."""
        await eventually(lambda: mesh.orchestrator.said().count('"authority_changed"') == step)
        for files in members:
            await renew(mesh, files)

    client = Client.connect(
        address=mesh.orchestrator.address, credentials=Credentials.from_folder(folder), timeout=timedelta(seconds=60)
    )
    async with client:
        await mesh.attached(client)
        async with asyncio.TaskGroup() as group:
            group.create_task(load(client, random.Random(1), submissions, stop))
            prepare_root(authority)
            await taken_up(1)
            assert {roots(files) for files in members} == {2}
            switch_root(authority, force=True)
            await taken_up(2)
            # Certificates of the new root, on a connection to who shows one; and work goes on beyond that.
            await eventually(lambda: sidecar.said().count('"attached"') > 1)
            count = len(submissions)
            await eventually(lambda: len(submissions) > count + 5)
            stop.set()
        finish_root(authority, force=True)
        await taken_up(3)
        assert {roots(files) for files in members} == {1}
        assert await answer(mesh, before) == "UNAVAILABLE", "what the old root signed is let in no more"
        now = members[0].load()
        assert await answer(mesh, (now.key_pem, now.chain_pem, now.bundle_pem)) == "RUN_NOT_FOUND"
        records = await read_records(client, submissions)
    found = breaches(submissions, records, journal_of(mesh.journal))
    assert not found, "\n".join(found[:20])
    assert records and not list(lost(records)), "a new root cost attempts"


def roots(files: CertificateFiles) -> int:
    """How many roots this member trusts."""
    return files.load().bundle_pem.count(b"BEGIN CERTIFICATE")


async def renew(mesh: Mesh, files: CertificateFiles) -> None:
    """Renew as whoever has these files would at half of the hour, and keep what it gives."""
    old = files.load()
    key, request = new_key_and_csr(old.identity)
    async with channel(mesh.orchestrator.address, (old.key_pem, old.chain_pem, old.bundle_pem)) as raw:
        stub: Any = identity_service_pb2_grpc.IdentityServiceStub(raw)
        asked = identity_service_pb2.RenewRequest(signing_request=request.decode())
        grant = (await stub.Renew(asked, timeout=30)).certificate
    files.store(key, grant.chain.encode(), grant.trust_bundle.encode())


async def answer(mesh: Mesh, pem: Pem) -> str:
    """How a new connection with this certificate is answered that asks for a run which is not there."""
    async with channel(mesh.orchestrator.address, pem, bundle=mesh_bundle(mesh)) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetRun(run_service_pb2.GetRunRequest(run_id="r0000"), timeout=30)
    unreachable = refused.value.code() is grpc.StatusCode.UNAVAILABLE
    return "UNAVAILABLE" if unreachable else reason_of(refused.value)


def mesh_bundle(mesh: Mesh) -> bytes:
    return (mesh.ca.folder / "bundle.pem").read_bytes()
