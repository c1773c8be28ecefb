"""Certificates that live for seconds, under traffic, on a cluster: who renews notices nothing, who does not is refused.

The sidecars renew by themselves; the client renews as a service would, by a function that it gives to the SDK.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from antiphon import Client, Credentials
from antiphon.v1 import run_pb2
from antiphon_certs import CertificateFiles, Kind

from tests.harness import eventually, journal_of
from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.robustness.history import Record, Submission, breaches, read_records
from tests.robustness.traffic import load

LIFE = timedelta(seconds=40)
"""Of each certificate of the client, which is asked every ten seconds whether it wants another, and of the first of
the sidecar."""


@pytest.mark.long_form
@pytest.mark.proves("certificate expiry and rotation")
async def test_certificates_expire_under_traffic_and_no_call_fails(etcd_current: Etcd) -> None:
    with Cluster(etcd_current, 2) as cluster:
        try:
            await traffic_over_lives(cluster)
        finally:
            cluster.show()


async def traffic_over_lives(cluster: Cluster) -> None:
    sidecar = cluster.sidecar(concurrency=16, start=False)
    pem = cluster.ca.issue(Kind.SIDECAR, sidecar.name, agents=("worker",), capabilities=("*",), lifetime=LIFE)
    cluster.ca.join_sidecar(sidecar.state, sidecar.name, cluster.orchestrator.address, pem)
    ends = [CertificateFiles(sidecar.state / "profiles" / "sidecar" / "credential").load().not_after]
    sidecar.start()
    folder = cluster.path("short")

    async def renew() -> None:
        cluster.ca.store(folder, cluster.ca.issue(Kind.CLIENT, "short", lifetime=LIFE))
        ends.append(CertificateFiles(folder).load().not_after)

    await renew()
    credentials = Credentials.from_folder(folder)
    submissions: list[Submission] = []
    stop = asyncio.Event()
    connected = Client.connect(
        address=cluster.addresses, credentials=credentials, renew=renew, timeout=timedelta(seconds=60)
    )
    async with connected as client:
        await cluster.attached(client)
        async with asyncio.TaskGroup() as group:
            for seed in range(2):
                group.create_task(load(client, random.Random(seed), submissions, stop))
            # The first of the sidecar and several of the client's have ended, one after the other.
            await eventually(lambda: sum(end < datetime.now(UTC) for end in ends) > 4, limit=240)
            stop.set()
        records = await read_records(client, submissions)
    found = breaches(submissions, records, journal_of(cluster.journal))
    assert not found, "\n".join(found[:20])
    assert "certificate renewed" in sidecar.said()
    assert not list(lost(records)), "a new certificate cost attempts"


def lost(records: list[Record]) -> Iterator[str]:
    """Attempts that were lost."""
    for record in records:
        for attempts in record.attempts.values():
            for attempt in attempts:
                if attempt.state == run_pb2.ATTEMPT_STATE_LOST:
                    yield attempt.attempt_id
