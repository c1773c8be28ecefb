"""The benchmark runs as `make bench` calls it and writes what it promises. Times are its business, not a test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEVEL = {"tasks_per_s", "run_p50_ms", "run_p99_ms"}


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
    assert results["W1"].keys() == {"p50_ms", "p99_ms"}
    for name in ("W2", "W2_unary"):
        assert results[name] and all(level.keys() == LEVEL for level in results[name].values())
    assert results["W3"].keys() == {"runs_per_s"}
    assert results["policy"].keys() == {"default_us", "loaded_us", "cost_us"}
    assert results["W5"].keys() == {"put", "get", "store_put", "store_get"}
    assert all(found.keys() == {"per_s", "p50_ms"} for found in results["W5"].values())
    processes = ("orchestrator", "sidecar", "agent")
    assert results["W4"].keys() == {f"{name}_{when}_mb" for name in processes for when in ("idle", "peak")}
    assert results["versions"].keys() >= {"python", "grpcio", "antiphon-server"}
    assert results["cores"] > 0 and results["date"]
    assert "W1 p50" in done.stdout, "targets stand beside what was measured"


def test_what_is_not_known_is_refused_before_anything_starts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "W9"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "W9" in done.stderr
