"""`antiphon dev` as a user runs it: one command, data that stays, and other meshes' profiles left alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from antiphon_orchestrator.app import CLUSTER_SHARDS

from tests.harness.etcd_binary import EtcdMissing, binary
from tests.harness.waiting import eventually

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
GRAPH = Path(__file__).resolve().parents[2] / "examples/hello_agent/graph.yaml"
LIMIT = 90.0


def antiphon(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "ANTIPHON_HOME": str(home)}
    done = subprocess.run([ANTIPHON, *words], env=environ, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


@contextmanager
def dev(home: Path, *words: str, **environ: str) -> Iterator[None]:
    """A mesh that serves inside of the block; leaving it is Ctrl-C."""
    log = home.with_suffix(".log")
    with log.open("wb") as output:
        environ = {**os.environ, "ANTIPHON_HOME": str(home), **environ}
        process = subprocess.Popen([ANTIPHON, "dev", "--port", "0", *words], env=environ, stdout=output, stderr=output)
    try:

        def serves() -> bool:
            assert process.poll() is None, log.read_text()
            return "Ctrl-C stops it" in log.read_text()

        asyncio.run(eventually(serves, limit=90.0))
        yield
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0, log.read_text()


def test_a_second_start_goes_on_with_what_the_first_has_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with dev(home):
        run_id = antiphon(home, "run", "submit", str(GRAPH), "--input", '{"name": "Ada"}').stdout.strip()
    with dev(home):
        run = json.loads(antiphon(home, "run", "get", run_id, "--json").stdout)
        assert run_id in json.dumps(run)
        assert antiphon(home, "certs", "show", "--profile", "operator").stdout.count("operator/dev") == 1


def test_the_client_may_not_do_what_is_an_operators(tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = ("certs", "token", "--kind", "client", "--name", "x")
    with dev(home):
        assert "--profile operator" in antiphon(home, *words, code=1).stderr
        for others in ("agent drain x", "policy rollback 1", "audit list", "audit verify"):
            told = json.loads(antiphon(home, *others.split(), "--json", code=1).stderr)["error"]
            assert told["reason"] == "ACCESS_DENIED" and told["remedy"].endswith("--profile operator"), others
        assert antiphon(home, *words, "--profile", "operator").stdout.startswith("antiphon1.")


def test_a_data_folder_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with dev(home):
        said = antiphon(home, "dev", "--port", "0", code=2).stderr
    assert said.count("\n") == 1 and "another process has the store" in said


def test_a_port_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = antiphon(tmp_path / "home", "dev", "--port", str(port), code=2).stderr
        assert said.count("\n") == 1 and f"127.0.0.1:{port}: Address already in use; give other ports" in said
        # That of joining is the one after it, which is bound when the other one serves.
        said = antiphon(tmp_path / "home", "dev", "--port", str(port - 1), code=2).stderr
        assert said.count("\n") == 1 and f"127.0.0.1:{port}: Address already in use; give other ports" in said


def test_a_profile_of_another_mesh_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    profile = home / "profiles/default/profile.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text(
        'addresses = ["mesh.example:7443"]\njoin_addresses = ["mesh.example:7444"]\n'
        'trust_domain = "mesh.example"\nnamespace = "default"\n'
    )
    said = antiphon(home, "dev", "--port", "0", code=2).stderr
    assert "belongs to the mesh mesh.example" in said and "ANTIPHON_HOME" in said
    assert "mesh.example:7443" in profile.read_text()
    assert not (home / "dev").exists()


def test_profiles_of_a_mesh_that_runs_are_left_alone_and_those_of_one_that_has_ended_are_taken_over(
    tmp_path: Path,
) -> None:
    home, data = tmp_path / "home", str(tmp_path / "other")
    profile = home / "profiles/operator"
    with dev(home):
        before = (profile / "profile.toml").read_text(), os.readlink(profile / "credential/current")
        said = antiphon(home, "dev", "--port", "0", "--data", data, code=2).stderr
        assert said.count("\n") == 1 and "belongs to another mesh, which serves at 127.0.0.1:" in said
        assert "ANTIPHON_HOME" in said and not Path(data).exists()
        assert before == ((profile / "profile.toml").read_text(), os.readlink(profile / "credential/current"))
    with dev(home, "--data", data):
        antiphon(home, "run", "list", "--profile", "operator")


def test_several_replicas_share_an_etcd_and_go_on_when_one_is_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    try:
        etcd = Path(binary("current")).parent
    except EtcdMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"not run: {missing}")
    with dev(home, "--replicas", "2", PATH=f"{etcd}{os.pathsep}{os.environ['PATH']}"):
        run_id = antiphon(home, "run", "submit", str(GRAPH), "--input", '{"name": "Ada"}').stdout.strip()
        cluster = json.loads(antiphon(home, "cluster", "status", "--json").stdout)
        assert len(cluster["replicas"]) == 2 and len(cluster["shards"]) == CLUSTER_SHARDS
        table = antiphon(home, "cluster", "status").stdout
        assert all(replica["replica_id"] in table for replica in cluster["replicas"])
        victim = cluster["replicas"][0]["address"]
        said = re.search(rf" {victim} is process (\d+);", home.with_suffix(".log").read_text())
        assert said is not None
        os.kill(int(said[1]), signal.SIGKILL)

        def taken() -> bool:
            shown = json.loads(antiphon(home, "cluster", "status", "--json").stdout)
            (left,) = shown["replicas"] if len(shown["replicas"]) == 1 else [{"replica_id": ""}]
            return {shard["replica_id"] for shard in shown["shards"]} == {left["replica_id"]}

        asyncio.run(eventually(taken, limit=60.0))
        assert json.loads(antiphon(home, "run", "get", run_id, "--json").stdout)


def test_a_number_of_replicas_that_makes_no_sense_is_refused_in_one_line(tmp_path: Path) -> None:
    said = antiphon(tmp_path / "home", "dev", "--replicas", "0", code=2).stderr
    assert said.count("\n") == 1 and "--replicas 1 to 9" in said
