"""A replica that the others and their clients could not use is not admitted to a cluster, and says why in a line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.cluster import Cluster
from tests.harness.etcd import Etcd
from tests.harness.orchestrator import OrchestratorProcess

pytest_plugins = ("tests.harness.etcd_fixtures",)


@pytest.fixture(scope="module")
def cluster(etcd_current: Etcd) -> Iterator[Cluster]:
    with Cluster(etcd_current, 2) as cluster:
        yield cluster
        cluster.show()


def said(replica: OrchestratorProcess, command: str, *words: str, code: int = 2) -> str:
    """What a command with the settings of a replica prints, besides its log: on stderr unless it succeeds."""
    where = ("--data", str(replica.data), "--authority", str(replica.authority), "--shards", "24")
    listen = ("--listen", replica.listen, "--join-listen", replica.join_listen)
    done = subprocess.run(
        [sys.executable, "-m", "antiphon.command", "orchestrator", command, *where, *listen, *replica.settings, *words],
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    told = done.stderr if code else done.stdout
    return "".join(line for line in told.splitlines(keepends=True) if not line.startswith("{"))


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
