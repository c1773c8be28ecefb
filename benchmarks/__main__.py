"""`python -m benchmarks`: one run, side by side with plain gRPC; `--help` and README.md tell the rest."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.harness.etcd_binary import EtcdMissing
from tools import agents, wheel

from . import clustered, fsync, identity, mesh, policy, profiling, r, report, takeover, w1, w2, w3, w4, w5, w6, workload
from .process import ProcessFailed, cpu

AGENTS = Path(__file__).parent / "agents"
SOURCES = {"go": "echo-go.go", "typescript": "echo-typescript.mts"}
RESULTS = Path(__file__).parent / "results"
NAMES = ("R", "fsync", "W1", "W2", "W2_unary", "W3", "W4", "W5", "W6", "policy")
PROCESSES = ("orchestrator", "sidecar", "agent")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Seconds are those of each round or level; `environ` is that of the servers."""

    only: frozenset[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 6.0
    sequential: int = 1000
    levels: tuple[int, ...] = w2.LEVELS
    sizes: w6.Sizes = w6.WHOLE
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Commands of the agents in other languages, by language; W1 and W2 are measured with each of them, too."""


async def measure(plan: Plan, folder: Path) -> report.Results:
    """All that the plan asks for, R before and after the rest, since machines change their pace."""
    results: report.Results = {}
    identity.make(folder)
    reference = r.Reference()
    if "R" in plan.only:
        await r.measure(folder, reference, seconds=plan.seconds / 2, sequential=plan.sequential)
    if "fsync" in plan.only:
        results["fsync_p50_ms"] = fsync.measure(folder, plan.sequential)
    if plan.only & {"W1", "W2", "W2_unary", "W3", "W4", "W5", "policy"}:
        async with mesh.running(folder, plan.environ, plan.others) as product:
            results |= await _measure_product(plan, product, folder)
            product.check()
    if "W6" in plan.only:
        _say("W6")
        results["W6"] = await w6.measure(folder, plan.environ, plan.sizes)
    if "R" in plan.only:
        await r.measure(folder, reference, seconds=plan.seconds / 2, sequential=plan.sequential)
        results["R"] = {
            "calls_per_s": reference.calls_per_s,
            "p50_ms": reference.p50_ms,
            "p99_ms": reference.p99_ms,
        }
    return results


async def _measure_product(plan: Plan, product: mesh.Mesh, folder: Path) -> report.Results:
    results: report.Results = {}
    memory = w4.idle(product)
    if "W1" in plan.only:
        _say("W1")
        results["W1"] = await w1.measure(product, plan.sequential)
        for language in plan.others:
            _say(f"W1 {language}")
            results["W1"][language] = await w1.measure(product, plan.sequential, workload.OTHERS[language])
    submitters: tuple[tuple[str, Callable[[mesh.Mesh, int, float], Coroutine[Any, Any, dict[str, float]]]], ...] = (
        ("W2", w2.by_stream),
        ("W2_unary", w2.by_calls),
    )
    for name, submit in submitters:
        if name in plan.only:
            for level in plan.levels:
                _say(f"{name} {level}")
                results.setdefault(name, {})[str(level)] = await submit(product, level, plan.seconds)
                for language in plan.others if name == "W2" else ():
                    _say(f"W2 {language} {level}")
                    found = await w2.by_stream(product, level, plan.seconds, workload.OTHERS[language])
                    results[name].setdefault(language, {})[str(level)] = found
    if "W3" in plan.only:
        _say("W3")
        results["W3"] = await w3.measure(product, plan.seconds)
    if "policy" in plan.only:
        _say("policy")
        results["policy"] = await policy.measure(product, plan.seconds)
    if "W5" in plan.only:
        _say("W5")
        results["W5"] = await w5.measure(product, folder, plan.seconds)
    if "W4" in plan.only:
        results["W4"] = memory | w4.peak(product)
    return results


async def profile(name: str, folder: Path, seconds: float, environ: Mapping[str, str]) -> None:
    """W2 at 256 in flight, with one process under py-spy; also the CPU that each process spends on a task."""
    output = Path(tempfile.gettempdir()) / f"antiphon-{name}.speedscope.json"
    identity.make(folder)
    async with mesh.running(folder, environ) as product:
        await w2.by_stream(product, 256, 2.0)
        before = {each: cpu(child.pid) for each, child in product.children.items()}
        load = asyncio.create_task(w2.by_stream(product, 256, seconds))
        await profiling.record(product.children[name].pid, output)
        result = await load
        tasks = result["tasks_per_s"] * seconds * 1.25
        for each, child in product.children.items():
            print(f"{each}: {(cpu(child.pid) - before[each]) / tasks * 1e6:.0f} us CPU a task")
    print(f"{result['tasks_per_s']:,.0f} tasks/s under the profiler; open {output} in speedscope")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured (targets reached or not), 1 a process failed, 2 the command line is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed and memory, beside plain gRPC.")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that it works, not how fast")
    parser.add_argument("--only", default="", help=f"some of {', '.join(NAMES)}; comma between several")
    parser.add_argument("--cluster", action="store_true", help="several orchestrators on etcd and PostgreSQL instead")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    parser.add_argument("--pure", action="store_true", help="measure the source, not the compiled wheel")
    parser.add_argument("--profile", choices=PROCESSES, help="py-spy on one process instead of measuring")
    given = parser.parse_args(arguments)
    only = frozenset(given.only.split(",") if given.only else NAMES)
    if unknown := only - set(NAMES):
        parser.error(f"nothing is called {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    try:
        product = None if given.pure else _wheel()
        environ = product.environ() if product else {}
        plan = Plan(only, environ, 0.4, 20, (1, 32), w6.QUICK) if given.quick else Plan(only, environ)
        if only & {"W1", "W2"} and not given.profile and not given.cluster:
            plan = replace(plan, others=_others())
        with tempfile.TemporaryDirectory(prefix="antiphon-bench-") as folder:
            if given.profile:
                asyncio.run(profile(given.profile, Path(folder), profiling.SECONDS + 1.0, environ))
                return 0
            results: report.Results = {"compiled": product is not None and product.compiled}
            if given.cluster:
                several = replace(clustered.QUICK if given.quick else clustered.Plan(), environ=environ)
                results |= asyncio.run(clustered.measure(several, Path(folder), _say))
            else:
                results |= asyncio.run(measure(plan, Path(folder)))
    except (ProcessFailed, takeover.NotTakenOver, EtcdMissing, wheel.BuildFailed, agents.BuildFailed, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    output = given.output or RESULTS / ("cluster.json" if given.cluster else "latest.json")
    report.write(output, results)
    report.show(results)
    print(f"written to {output}")
    return 0


def _wheel() -> wheel.Wheel:
    """What users install."""
    print("building the wheel, unless it is there already …", file=sys.stderr, flush=True)
    product = wheel.unpacked()
    if not product.compiled:
        print("no C compiler: the wheel is pure Python, and slower", file=sys.stderr, flush=True)
    return product


def _others() -> dict[str, list[str]]:
    """Commands of the agents in other languages, by language; those whose toolchain is missing are left out."""
    found = {}
    for language, source in SOURCES.items():
        print(f"building the agent in {language}, unless it is there already …", file=sys.stderr, flush=True)
        try:
            found[language] = agents.built(AGENTS / source)
        except agents.Missing as error:
            print(f"W1.{language} and W2.{language} are not measured: {error}", file=sys.stderr, flush=True)
    return found


def _say(what: str) -> None:
    print(f"measuring {what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
