"""What policies cost a task: W2 at 256 in flight under the default profile and under a hundred policies more, in turns.

Compared is the orchestrator's CPU a task, since the machine's pace changes between two measurements far more than that.
A decision is evaluated once for each kind of question and remembered for as long as its epoch lasts, which is why more
policies should cost a task next to nothing; this shows whether that is so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from . import workload
from .mesh import Mesh
from .process import cpu

POLICIES = 100
IN_FLIGHT = 256
ROUNDS = 3
RUNS_A_SECOND = 150

_RULE = """@id("bench.{number}") @reason("not measured")
forbid (principal, action in [Action::"submit", Action::"dispatch", Action::"release"], resource)
when {{ context.labels.contains("label-{number}") && principal.name == "nobody-{number}" }};
"""


async def measure(mesh: Mesh, seconds: float) -> dict[str, float]:
    """Keys default_us, loaded_us: microseconds of the orchestrator's CPU a task; cost_us: what the policies add."""
    default = {file.name: file.text for file in (await mesh.operator.get_policy()).files}
    loaded = default | {"bench.cedar": "".join(_RULE.format(number=number) for number in range(POLICIES))}
    runs = int(seconds * RUNS_A_SECOND)
    default_us, loaded_us = [], []
    for _ in range(ROUNDS):
        default_us.append(await _cpu_of_a_task(mesh, default, runs))
        loaded_us.append(await _cpu_of_a_task(mesh, loaded, runs))
    # The least disturbed of each.
    return {"default_us": min(default_us), "loaded_us": min(loaded_us), "cost_us": min(loaded_us) - min(default_us)}


async def _cpu_of_a_task(mesh: Mesh, files: Mapping[str, str], runs: int) -> float:
    epoch = (await mesh.operator.get_policy()).epoch
    await mesh.operator.activate_policies(files, expected_epoch=epoch)
    await _chains(mesh, runs // 4)
    orchestrator = mesh.children["orchestrator"].pid
    before = cpu(orchestrator)
    await _chains(mesh, runs)
    return (cpu(orchestrator) - before) / (runs * workload.CHAIN) * 1e6


async def _chains(mesh: Mesh, runs: int) -> None:
    """So many chains, to their end: a number that is exact whatever the machine's pace."""
    graph = workload.reference(workload.chain())
    async with mesh.client.submitter(IN_FLIGHT) as submitter:
        answers = [await submitter.submit(graph, workload.INPUT, wait=True) for _ in range(runs)]
        for run in await asyncio.gather(*answers):
            workload.check(run)
