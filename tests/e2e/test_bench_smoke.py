"""The benchmark runs as `make bench` calls it and writes what it promises. Times are its business, not a test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.report import targets

pytest_plugins = ("tests.harness.built",)

ROOT = Path(__file__).resolve().parents[2]
LEVEL = {"tasks_per_s", "run_p50_ms", "run_p99_ms"}


@pytest.fixture
def agents(built: Callable[[str], list[str]]) -> None:
    """The agents in other languages, built before the clock runs."""
    for source in ("echo-go.go", "echo-typescript.mts"):
        built(f"benchmarks/agents/{source}")


@pytest.mark.usefixtures("agents")
def test_a_quick_run_writes_every_key(tmp_path: Path) -> None:
    output = tmp_path / "latest.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--pure", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    assert results["R"].keys() == {"calls_per_s", "p50_ms", "p99_ms"}
    assert results["compiled"] is False
    assert results["fsync_p50_ms"] > 0
    assert results["W1"].keys() == {"p50_ms", "p99_ms", "go", "typescript"}
    assert results["W1"]["go"].keys() == results["W1"]["typescript"].keys() == {"p50_ms", "p99_ms"}
    by_language = [results["W2"].pop(language) for language in ("go", "typescript")]
    for levels in (results["W2"], results["W2_unary"], *by_language):
        assert levels.keys() == {"1", "32"}
        assert all(level.keys() == LEVEL for level in levels.values())
    assert results["W3"].keys() == {"runs_per_s"}
    assert results["policy"].keys() == {"default_us", "loaded_us", "cost_us"}
    assert results["W5"].keys() == {"put", "get", "store_put", "store_get"}
    assert all(found.keys() == {"per_s", "p50_ms"} for found in results["W5"].values())
    assert results["W6"].keys() == {"tasks", "waiting", "routing"}
    assert results["W6"]["tasks"].keys() == {"100", "1000"}
    assert results["W6"]["waiting"].keys() == {"runs", "kb", "recovery_s"}
    assert results["W6"]["routing"].keys() == {"10", "100"}
    processes = ("orchestrator", "sidecar", "agent")
    assert results["W4"].keys() == {f"{name}_{when}_mb" for name in processes for when in ("idle", "peak")}
    assert results["versions"].keys() >= {"python", "grpcio", "antiphon-server"}
    assert results["cores"] > 0 and results["date"]
    assert "W1 p50" in done.stdout, "targets stand beside what was measured"


def test_a_language_without_its_toolchain_is_left_out_in_a_line(tmp_path: Path) -> None:
    output = tmp_path / "latest.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--pure", "--only", "W1", "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(output.read_text())["W1"].keys() == {"p50_ms", "p99_ms"}
    for language in ("go", "typescript"):
        assert f"W1.{language} and W2.{language} are not measured: " in done.stderr


def test_throughput_in_another_language_is_held_against_that_of_python() -> None:
    def level(tasks: float) -> dict[str, float]:
        return {"tasks_per_s": tasks, "run_p50_ms": 1.0, "run_p99_ms": 1.0}

    measured = {"1": level(9.0), "256": level(100.0), "go": {"1": level(1.0), "256": level(50.0)}}
    (found,) = targets({"W2": measured})
    assert (found.measured, found.limit, found.passed) == (50.0, 100.0, False)


def test_what_is_not_known_is_refused_before_anything_starts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "W9"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "W9" in done.stderr
