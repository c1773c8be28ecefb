"""W6: what is large. One run of many tasks, many runs that wait, how long these take to come back, and many agents."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from antiphon import Client
from antiphon.v1 import graph_pb2, registry_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.placement.candidates import Instance, Need
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies, dev_profile

from . import identity, mesh, workload
from .process import Child, child, cpu, memory

IN_FLIGHT = 1000
_PLACEMENTS = 2_000
_FITTING = 10


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each: tasks of one run, runs that wait, agents."""

    tasks: tuple[int, ...] = (1_000, 10_000, 100_000)
    waiting: int = 20_000
    agents: tuple[int, ...] = (10, 1_000, 10_000)
    placements: int = _PLACEMENTS


WHOLE = Sizes()
QUICK = Sizes((100, 1_000), 200, (10, 100), 100)


async def measure(folder: Path, environ: Mapping[str, str], sizes: Sizes) -> dict[str, object]:
    """Keys: tasks, waiting, routing; each in a mesh, an orchestrator, or a fleet of its own."""
    return {
        "tasks": await _large(folder / "large", environ, sizes.tasks),
        "waiting": await _waiting(folder / "waiting", environ, sizes.waiting),
        "routing": {str(count): _routing(count, sizes.placements) for count in sizes.agents},
    }


async def _large(folder: Path, environ: Mapping[str, str], levels: Iterable[int]) -> dict[str, dict[str, float]]:
    """By number of tasks, each for one of them: us (from submission to end), cpu_us and peak_kb of the orchestrator."""
    _make(folder)
    results: dict[str, dict[str, float]] = {}
    async with mesh.running(folder, environ) as product:
        pid = product.children["orchestrator"].pid
        idle, _ = memory(pid)
        for count in levels:
            graph, items = workload.large(count)
            await product.operator.register_graph(graph)
            _forget_peak(pid)
            used, begun = cpu(pid), time.perf_counter()
            workload.check(await product.client.submit(workload.reference(graph), items, wait=True))
            took, spent = time.perf_counter() - begun, cpu(pid) - used
            results[str(count)] = {
                "us": took / count * 1e6,
                "cpu_us": spent / count * 1e6,
                "peak_kb": (memory(pid)[1] - idle) / count * 1024,
            }
            product.check()
    return results


async def _waiting(folder: Path, environ: Mapping[str, str], count: int) -> dict[str, float]:
    """Keys: runs; kb of memory for each, of ten tasks; recovery_s until 10,000 such runs are there after a crash."""
    _make(folder)
    graph = workload.waiting()
    async with _alone(folder, environ) as (orchestrator, address):
        async with mesh.connected(folder, "operator", address) as operator:
            await operator.register_graph(graph)
        async with mesh.connected(folder, "client", address) as client:
            (last,) = await _submit(client, graph, 1)
            idle, _ = memory(orchestrator.pid)
            last = (await _submit(client, graph, count))[-1]
            grown = memory(orchestrator.pid)[0] - idle
            await client.get_run(last)
        orchestrator.process.kill()
        await orchestrator.process.wait()
    (folder / "data" / "endpoints.json").unlink()
    begun = time.perf_counter()
    async with _alone(folder, environ) as (_, address), mesh.connected(folder, "client", address) as client:
        await client.get_run(last)
        took = time.perf_counter() - begun
    return {"runs": count, "kb": grown / count * 1024, "recovery_s": took / count * 10_000}


async def _submit(client: Client, graph: graph_pb2.Graph, count: int) -> list[str]:
    """Ids of so many runs, all of which are there."""
    async with client.submitter(IN_FLIGHT) as submitter:
        name = workload.reference(graph)
        answers = [await submitter.submit(name, workload.INPUT) for _ in range(count)]
        return [run.run_id for run in await asyncio.gather(*answers)]


def _routing(count: int, placements: int) -> dict[str, float]:
    """Microseconds of a choice with its slot given back. few_us: ten of the agents offer what is asked; all_us: all."""
    return {"few_us": _placed(count, _FITTING, placements), "all_us": _placed(count, count, placements)}


def _placed(count: int, fitting: int, placements: int) -> float:
    fleet = Fleet(CedarPolicies(dev_profile()), SchemaSet(Values()))
    for number in range(count):
        description = registry_pb2.AgentDescription(name=f"crowd-{number}", concurrency=4)
        description.capabilities.append(workload.capability())
        if number >= fitting:
            description.capabilities[0].name = f"crowd.echo-{number}"
        instance = f"crowd-{number}/i/crowd-{number}"
        principal = workload.principal("sidecar")
        fleet.attach(Instance(instance, workload.NAMESPACE, principal, "i", description, 4, 1, 0))
    need = Need(workload.NAMESPACE, "echo@1", (), 0.0, frozenset())
    payload, client = workload.payload(), workload.principal("client")
    for offered in fleet._fit(need):
        # What policy says of an agent is kept from the first time on, and does not depend on how many there are.
        fleet._decide(offered, need, client, "client", payload, 1)
    begun = time.perf_counter()
    for _ in range(placements):
        placed = fleet.place(need, client, "client", payload, 1)
        assert placed is not None and hasattr(placed, "instance")
        fleet.give_back(placed.instance, 0.01)
    return (time.perf_counter() - begun) / placements * 1e6


def _make(folder: Path) -> None:
    folder.mkdir()
    identity.make(folder)


@asynccontextmanager
async def _alone(folder: Path, environ: Mapping[str, str]) -> AsyncIterator[tuple[Child, str]]:
    """An orchestrator without agents, and its address."""
    data = folder / "data"
    arguments = mesh.serve(data, folder / "ca", "127.0.0.1:0", "127.0.0.1:0")
    async with child("orchestrator", arguments, folder / "orchestrator.log", environ) as orchestrator:
        endpoints = data / "endpoints.json"
        await orchestrator.until(endpoints.exists, "it does not serve")
        yield orchestrator, json.loads(endpoints.read_text())["address"]


def _forget_peak(pid: int) -> None:
    """The peak of a process's memory counts from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
