"""Two replicas: whoever is new can be given a token, and join, while one of them is away; and each is told of as it is
advertised."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from antiphon_certs import JoinToken, Kind, Profile

from tests.harness import eventually
from tests.harness.authority import NAMESPACE
from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.harness.mesh import AGENT
from tests.harness.network import Network
from tests.harness.sidecar import SidecarProcess

pytest_plugins = ("tests.harness.etcd_fixtures",)

SHORT = timedelta(seconds=1)


def certs(home: Path, *words: str, **environ: str) -> str:
    """What `antiphon certs` prints."""
    command = [sys.executable, "-m", "antiphon.command", "certs", *words]
    environ = {**os.environ, "ANTIPHON_HOME": str(home), **environ}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def test_who_is_new_is_enrolled_while_a_replica_is_away(etcd_current: Etcd, tmp_path: Path) -> None:
    with Cluster(etcd_current, 2) as cluster:
        await cluster.settled(2)
        both = [(replica.address, replica.join_address) for replica in cluster.replicas]
        addresses, join_addresses = zip(*both, strict=True)
        at = ("--authority", str(cluster.ca.folder), "--namespace", NAMESPACE, "--address", ",".join(addresses))
        new = ("--kind", "operator", "--name", "ada")
        operators = await asyncio.to_thread(certs, tmp_path, "token", *at, *new)
        parsed = JoinToken.parse(operators)
        assert (parsed.addresses, parsed.join_addresses) == (addresses, join_addresses)
        edge = ("--kind", "sidecar", "--name", "edge", "--agent", "worker", "--capability", "*")
        sidecars = await asyncio.to_thread(certs, tmp_path, "token", *at, *edge)

        cluster.replicas[0].kill9()
        await asyncio.to_thread(certs, tmp_path, "join", "--profile", "operator", ANTIPHON_TOKEN=operators)
        joined = Profile.load("operator", {"ANTIPHON_HOME": str(tmp_path)})
        assert (joined.addresses, joined.join_addresses) == (addresses, join_addresses)
        for asked in (at, ("--profile", "operator")):
            token = await asyncio.to_thread(certs, tmp_path, "token", *asked, *new)
            assert JoinToken.parse(token).join_addresses[0] == join_addresses[1]

        # A sidecar joins likewise, and is given its certificate anew when it has expired meanwhile.
        sidecar = SidecarProcess("edge", tmp_path, command=AGENT, environment={"AGENT_NAME": "worker"})
        sidecar.environment |= {"AGENT_JOURNAL": str(cluster.journal), "ANTIPHON_TOKEN": sidecars}
        sidecar.start()
        try:
            async with cluster.client() as client:
                await cluster.attached(client)
            sidecar.kill9()
            kept = Profile.load("sidecar", {"ANTIPHON_HOME": str(sidecar.state)})
            assert kept.join_addresses == join_addresses
            pem = cluster.ca.issue(Kind.SIDECAR, "edge", agents=("worker",), capabilities=("*",), lifetime=SHORT)
            short = kept.credential.store(*pem)
            await eventually(lambda: short.not_after <= datetime.now(UTC))
            sidecar.start()
            await eventually(lambda: kept.credential.load().not_after > datetime.now(UTC))
        finally:
            sidecar.close()


async def test_a_replica_is_told_of_by_the_ports_that_it_advertises(etcd_current: Etcd, tmp_path: Path) -> None:
    with Network() as network, Cluster(etcd_current, 2, network=network) as cluster:
        await cluster.settled(2)  # each of them is reached by the other
        told = {
            (given[given.index("--advertise") + 1], given[given.index("--join-advertise") + 1])
            for given in (replica.settings for replica in cluster.replicas)
        }
        assert {replica.address for replica in (await cluster.status()).replicas} == {address for address, _ in told}
        at = ("--authority", str(cluster.ca.folder), "--address", cluster.replicas[0].address)
        text = await asyncio.to_thread(certs, tmp_path, "token", *at, "--kind", "operator", "--name", "ada")
        token = JoinToken.parse(text)
        assert set(zip(token.addresses, token.join_addresses, strict=True)) == told
        await asyncio.to_thread(certs, tmp_path, "join", ANTIPHON_TOKEN=text)
        listening = {replica.listen for replica in cluster.replicas}
        assert not listening & set(token.addresses)
