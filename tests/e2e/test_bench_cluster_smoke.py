"""The benchmark of several orchestrators writes what it promises, and knows work that was repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cluster import Cluster
from benchmarks.report import targets

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("etcd_current", "postgres")
def test_a_quick_run_of_a_cluster_writes_every_key(tmp_path: Path) -> None:
    output = tmp_path / "cluster.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--cluster", "--quick", "--pure", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())["cluster"]
    assert results.keys() == {"2", "rolling", "attach", "takeover"}
    two = results["2"]
    assert two.keys() == {"W1", "W2", "W3", "W4", "repeated"}
    assert two["W2"].keys() >= {"tasks_per_s", "embedded_tasks_per_s", "ratio", "orchestrators_us", "etcd_us"}
    assert two["W4"].keys() == {f"{name}_idle_mb" for name in ("orchestrator", "orchestrator-2", "sidecar", "agent")}
    assert results["attach"].keys() == {"sidecars", "seconds", "cpu_ms", "memory_kb"}
    lost = results["takeover"]
    assert 0 < lost["lost_runs"] <= lost["live_runs"] == 40
    assert lost["first_progress_s"] <= lost["all_progress_s"] <= lost["done_s"]
    assert results["rolling"].keys() >= {"before_tasks_per_s", "during_tasks_per_s", "failed_calls", "repeated"}
    assert "takeover: repeated tasks" in done.stdout, "targets stand beside what was measured"


def test_a_task_that_is_twice_in_the_journal_was_repeated_and_a_line_half_written_is_none(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    cluster = Cluster(mesh=None, replicas=[], journal=journal, gate=tmp_path / "gate")  # type: ignore[arg-type]
    assert (cluster.worked(), cluster.repeated()) == ([], 0)
    journal.write_text("1.0 echo@1 r1/a\n2.0 echo@1 r1/b\n2.5 echo-held@1 r1/a\n3.0 echo@1 r1/b")
    assert (len(cluster.worked()), cluster.repeated()) == (3, 0)
    journal.write_text(journal.read_text() + "\n")
    assert cluster.repeated() == 1


def test_a_task_that_was_worked_on_twice_misses_its_target() -> None:
    found = {"all_progress_s": 3.0, "repeated": 1}
    assert [target.passed for target in targets({"cluster": {"takeover": found}})] == [True, False]
    found["repeated"] = 0
    assert [target.passed for target in targets({"cluster": {"takeover": found}})] == [True, True]
