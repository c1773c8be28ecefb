"""The result of a run: what was measured and on what, the targets beside it, as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from antiphon_orchestrator.cluster.membership import LEASE
from rich.console import Console
from rich.table import Table

_PACKAGES = ("antiphon-server", "grpcio", "protobuf", "cel-expr-python", "cedarpy", "jsonschema-rs")
Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """One goal: `measured` is held against `limit`, which may itself be made of measured numbers."""

    name: str
    measured: float
    limit: float
    at_least: bool

    @property
    def ratio(self) -> float:
        """How much of the way was made: 1 or more is a pass."""
        if not self.measured and not self.at_least:
            return 1.0  # nothing where nothing is best
        return self.measured / self.limit if self.at_least else self.limit / self.measured

    @property
    def passed(self) -> bool:
        return self.ratio >= 1


def surroundings() -> Results:
    """Versions, cores and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count() or 1,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def targets(results: Results) -> list[Target]:
    """Those whose numbers were measured in this run."""
    return list(_targets(results))


def _targets(results: Results) -> Iterator[Target]:
    reference, floor = results.get("R"), results.get("fsync_p50_ms")
    by_stream = results.get("W2", {})
    for level, found in by_stream.items():
        if not level.isdigit():  # a language, and what was measured with its agent
            for number, throughput in found.items():
                if int(number) >= 256:
                    limit = by_stream[number]["tasks_per_s"]
                    yield Target(f"W2.{level} at {number}: tasks/s ≥ Python's", throughput["tasks_per_s"], limit, True)
        elif reference and int(level) >= 256:
            yield Target(f"W2 at {level}: tasks/s ≥ 4 x R", found["tasks_per_s"], 4 * reference["calls_per_s"], True)
    if reference and floor and "W1" in results:
        limit = 6 * reference["p50_ms"] + 2 * floor
        yield Target("W1 p50 ≤ 6 x R p50 + 2 x fsync p50, ms", results["W1"]["p50_ms"], limit, False)
    if "policy" in results:
        # Held against a sum, because the cost itself may come out as nothing, or below.
        found = results["policy"]
        yield Target("policy: CPU a task ≤ default + 10 µs", found["loaded_us"], found["default_us"] + 10, False)
    yield from _large_targets(results.get("W6", {}))
    yield from _cluster_targets(results.get("cluster", {}))
    for name, limit in (("sidecar", 60.0), ("orchestrator", 120.0)):
        if idle := results.get("W4", {}).get(f"{name}_idle_mb"):
            yield Target(f"{name} idle ≤ {limit:g} MB", idle, limit, False)


def _large_targets(found: Results) -> Iterator[Target]:
    if not found:
        return
    few, *_, many = found["tasks"]
    for name, what in (("us", "time"), ("peak_kb", "memory")):
        limit = 1.25 * found["tasks"][few][name]
        yield Target(f"W6: {what} a task, {many} ≤ 1.25 x {few}", found["tasks"][many][name], limit, False)
    yield Target("W6: a waiting run of ten tasks ≤ 10 kB", found["waiting"]["kb"], 10.0, False)
    few, *_, many = found["routing"]
    for name in ("few_us", "all_us"):
        limit = 2 * found["routing"][few][name]
        yield Target(f"W6: routing {name}, {many} agents ≤ 2 x {few}", found["routing"][many][name], limit, False)


def _cluster_targets(found: Results) -> Iterator[Target]:
    for replicas, measured in found.items():
        if replicas.isdigit():
            name = f"W2 on etcd, {replicas} replicas: ratio to embedded ≥ 0.7"
            yield Target(name, measured["W2"]["ratio"], 0.7, True)
            yield Target(f"W1 to W3 on etcd, {replicas} replicas: repeated tasks", measured["repeated"], 0.0, False)
    if lost := found.get("takeover"):
        yield Target("takeover: all shards go on within lease + 2 s", lost["all_progress_s"], LEASE + 2.0, False)
    for name in ("takeover", "rolling"):
        if name in found:
            yield Target(f"{name}: repeated tasks", found[name]["repeated"], 0.0, False)
    if "rolling" in found:
        yield Target("rolling: failed calls", found["rolling"]["failed_calls"], 0.0, False)


def write(path: Path, results: Results) -> None:
    """The results with their surroundings as JSON, and whether each target was reached."""
    reached = {target.name: {"ratio": round(target.ratio, 3), "passed": target.passed} for target in targets(results)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**surroundings(), **_rounded(results), "targets": reached}, indent=2) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def show(results: Results) -> None:
    """Both tables on standard output."""
    console = Console(file=sys.stdout)
    measured = Table("measured", "value", title="Antiphon, side by side with plain gRPC")
    measured.columns[1].justify = "right"
    for name, value in _flat(results):
        shown = str(value).lower() if isinstance(value, bool) else f"{value:,.{2 if value < 100 else 0}f}"
        measured.add_row(name, shown)
    console.print(measured)
    goals = Table("target", "measured", "limit", "ratio", "")
    for target in targets(results):
        verdict = "[green]pass[/]" if target.passed else "[red]miss[/]"
        goals.add_row(target.name, f"{target.measured:,.2f}", f"{target.limit:,.2f}", f"{target.ratio:.2f}", verdict)
    if goals.row_count:
        console.print(goals)


def _flat(results: Results, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in results.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
