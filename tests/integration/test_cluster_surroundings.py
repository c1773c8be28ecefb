"""A replica that the others and their clients could not use is not admitted to a cluster, and says why in a line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from antiphon_certs import Authority, finish_root, prepare_root, switch_root

from tests.conftest import RequireTool
from tests.harness import eventually
from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.harness.objects import S3Server
from tests.harness.orchestrator import OrchestratorProcess
from tests.harness.postgres import PASSWORD, Postgres

pytest_plugins = ("tests.harness.etcd_fixtures",)

STOP = 20.0
"""Seconds for a stop on a busy machine, less than an object store that stands still takes to be given up."""


@pytest.fixture(scope="module")
def cluster(etcd_current: Etcd) -> Iterator[Cluster]:
    with Cluster(etcd_current, 2) as cluster:
        yield cluster
        cluster.show()


def said(replica: OrchestratorProcess, command: str, *words: str, code: int = 2) -> str:
    """What `run` prints besides its log: on stderr unless it succeeds."""
    done = run(replica, command, *words)
    assert done.returncode == code, done.stdout + done.stderr
    told = done.stderr if code else done.stdout
    return "".join(line for line in told.splitlines(keepends=True) if not line.startswith("{"))


def run(replica: OrchestratorProcess, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command with the settings of a replica."""
    where = ("--data", str(replica.data), "--authority", str(replica.authority), "--shards", "24")
    listen = ("--listen", replica.listen, "--join-listen", replica.join_listen)
    return subprocess.run(
        [sys.executable, "-m", "antiphon.command", "orchestrator", command, *where, *listen, *replica.settings, *words],
        env={**os.environ, **replica.environment, "GRPC_VERBOSITY": "NONE"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_data_folder_in_use_is_refused_and_the_one_that_has_it_is_left_alone(cluster: Cluster) -> None:
    first = cluster.replicas[0]
    endpoints = (first.data / "endpoints.json").read_text()
    where = ("--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0")
    remedy = "stop that process, or give this one a folder of its own"
    assert said(first, "serve", *where) == (
        f"antiphon orchestrator: data: another process has the folder {first.data} open: {remedy}\n"
    )
    assert (first.data / "endpoints.json").read_text() == endpoints
    assert "SERVING" in said(first, "health", code=0)
    assert f"{first.data}" in said(first, "check", code=0)


async def test_the_address_of_a_live_replica_is_refused(cluster: Cluster) -> None:
    others = cluster.add(), cluster.add()
    status = await cluster.status()
    address = cluster.replicas[1].address
    (there,) = (replica.replica_id for replica in status.replicas if replica.address == address)
    for other in others:
        other.listen = "127.0.0.2:0"  # what is advertised is the address, port and all
    commands = zip(others, ("check", "serve"), strict=True)
    checked, served = await asyncio.gather(
        *(asyncio.to_thread(said, other, command, "--advertise", address) for other, command in commands)
    )
    cause = f"advertise: {address} is the address of replica {there}, which is there"
    assert checked == f"antiphon orchestrator: {cause}: give this one an address of its own\n"
    assert served == checked
    assert {replica.address for replica in (await cluster.status()).replicas} == set(cluster.addresses)


async def test_a_replica_that_has_crashed_is_missed_once_and_is_there_again_at_its_address(cluster: Cluster) -> None:
    first, second = cluster.replicas[:2]
    before = first.said().count('"replica_unreachable"')
    await cluster.status(first.address)
    second.kill9()
    for _ in range(3):  # it counts as there until its lease has ended
        shown = (await cluster.status(first.address)).replicas
        assert [replica.HasField("load") for replica in shown if replica.address == second.address] == [False]
    (told,) = [line for line in first.said().splitlines() if '"replica_unreachable"' in line][before:]
    assert f'"address": "{second.address}"' in told and '"replica_id"' in told and '"cause": "' in told
    await asyncio.to_thread(second.start)
    await cluster.settled(2)


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize("domain", ["mesh.test", "another.test"])
def test_another_authority_is_refused(cluster: Cluster, command: str, domain: str) -> None:
    other = cluster.add()
    other.authority = cluster.path("authority")
    ours, theirs = cluster.ca.authority.root_fingerprint, Authority.init(other.authority, domain).root_fingerprint
    cause = f"the replicas on this store trust another root ({ours[:16]}, here {theirs[:16]})"
    if domain != "mesh.test":
        cause = f"the trust domain is {domain}, and that of all replicas on this store mesh.test"
    remedy = "docs/cluster.md says what to do when all have been given another one on purpose"
    assert said(other, command) == f"antiphon orchestrator: authority: {cause}: copy their authority here; {remedy}\n"


@pytest.mark.parametrize("setting", ["archive", "payloads"])
def test_another_archive_or_place_of_payloads_is_refused(cluster: Cluster, setting: str) -> None:
    other = cluster.add()
    (link,) = other.data.glob(f"{setting}*")  # what it has in common with the others
    link.unlink()
    cause = f"antiphon orchestrator: {setting}: the replicas on this store use another one "
    remedy = "give all of them the same; docs/cluster.md says what to do when it was replaced on purpose\n"
    checked = said(other, "check")
    assert checked.startswith(cause) and checked.endswith(f", here a new one): {remedy}")
    assert not link.exists()
    served = said(other, "serve")
    assert served.startswith(cause) and served.endswith(f"): {remedy}") and "a new one" not in served
    assert said(other, "check") == served
    assert said(cluster.add(), "check", code=0)


async def test_an_archive_that_is_away_at_the_start_is_compared_once_it_answers(
    etcd_current: Etcd, require_tool: RequireTool
) -> None:
    require_tool("initdb", package="postgresql")
    with Postgres() as server:
        one, other = server.database(), server.database()
        server.stop()
        with Cluster(etcd_current, 1, "--archive", one) as cluster:
            first, second = cluster.replicas[0], cluster.add()
            second.settings += ("--archive", other)
            assert '"archive_not_compared"' in first.said()
            await asyncio.to_thread(server.start)
            await eventually(lambda: "archive: the replicas on this store" in run(second, "check").stderr)
            server.stop()
            await asyncio.to_thread(second.start)
            assert '"archive_not_compared"' in second.said()
            await asyncio.to_thread(server.start)
            assert await asyncio.to_thread(second.end) == 2
            assert "\nantiphon orchestrator: archive: the replicas on this store use another one " in second.said()
            assert "Traceback" not in second.said() and PASSWORD not in second.said()
            assert first.alive


async def test_payloads_that_stand_still_hold_up_neither_a_start_nor_a_stop_and_are_compared_later(
    etcd_current: Etcd,
) -> None:
    with S3Server() as server:
        place = server.bucket()
        cluster = Cluster(etcd_current, 1, "--payloads", place)
        first, second = cluster.replicas[0], cluster.add()
        first.environment = second.environment = server.environment
        second.settings += ("--payloads", f"{place}/other")
        server.pause()
        with contextlib.closing(cluster):
            await asyncio.to_thread(first.start)
            assert '"payloads_not_compared"' in first.said()
            assert await asyncio.to_thread(first.term, STOP) == 0
            await asyncio.to_thread(first.start)
            server.resume()
            refused = "payloads: the replicas on this store use another one "
            await eventually(lambda: refused in run(second, "check").stderr, limit=60)
            assert refused in said(second, "serve")
            assert first.alive


async def test_an_id_of_payloads_that_was_damaged_is_said_with_the_remedy(etcd_current: Etcd) -> None:
    with Cluster(etcd_current, 1) as cluster:
        first, other = cluster.replicas[0], cluster.add()
        place = other.data / "payloads" / ".identity"
        place.write_bytes(b"")
        checked = said(other, "check")
        cause = f"antiphon orchestrator: payloads: the id of {(other.data / 'payloads').as_uri()} was damaged: "
        assert (
            checked == f"{cause}restore .identity in it from a copy, or delete it and go on as docs/cluster.md says\n"
        )
        assert said(other, "serve") == checked
        assert first.alive and place.read_bytes() == b""


async def test_who_is_trusted_is_followed_through_a_rotation(etcd_current: Etcd) -> None:
    with Cluster(etcd_current, 2) as cluster:
        authority = cluster.ca.folder
        late, early = cluster.add(), cluster.add()
        early.authority = cluster.path("early")
        shutil.copytree(authority, early.authority)
        for step, change in enumerate((prepare_root, switch_root, finish_root), 1):
            assert said(early, "check", code=0)
            if change is prepare_root:
                prepare_root(authority)
            else:
                change(authority, force=True)
            await eventually(
                lambda step=step: all(one.said().count("authority_changed") == step for one in cluster.replicas[:2])
            )
        await eventually(lambda: run(early, "check").returncode == 2)
        assert "trust another root" in said(early, "serve")
        late.start()
