"""What policies cost a task: W2 at 256 in flight under the default profile and under a hundred policies more, in turns.

Compared is the orchestrator's CPU a task, since the machine's pace changes between two measurements far more than that.
A decision is evaluated once for each kind of question and remembered for as long as its epoch lasts, which is why more
policies should cost a task next to nothing; this shows whether that is so.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import w2
from .mesh import Mesh
from .process import cpu

POLICIES = 100
IN_FLIGHT = 256
ROUNDS = 3

_RULE = """@id("bench.{number}") @reason("not measured")
forbid (principal, action in [Action::"submit", Action::"dispatch", Action::"release"], resource)
when {{ context.labels.contains("label-{number}") && principal.name == "nobody-{number}" }};
"""


async def measure(mesh: Mesh, seconds: float) -> dict[str, float]:
    """Keys default_us, loaded_us: microseconds of the orchestrator's CPU a task; cost_us: what the policies add."""
    default = {file.name: file.text for file in (await mesh.operator.get_policy()).files}
    loaded = default | {"bench.cedar": "".join(_RULE.format(number=number) for number in range(POLICIES))}
    default_us, loaded_us = [], []
    for _ in range(ROUNDS):
        default_us.append(await _cpu_of_a_task(mesh, default, seconds / ROUNDS))
        loaded_us.append(await _cpu_of_a_task(mesh, loaded, seconds / ROUNDS))
    # The least disturbed of each.
    return {"default_us": min(default_us), "loaded_us": min(loaded_us), "cost_us": min(loaded_us) - min(default_us)}


async def _cpu_of_a_task(mesh: Mesh, files: Mapping[str, str], seconds: float) -> float:
    epoch = (await mesh.operator.get_policy()).epoch
    await mesh.operator.activate_policies(files, expected_epoch=epoch)
    await w2.by_stream(mesh, IN_FLIGHT, seconds / 4)
    orchestrator = mesh.children["orchestrator"].pid
    before = cpu(orchestrator)
    result = await w2.by_stream(mesh, IN_FLIGHT, seconds)
    return (cpu(orchestrator) - before) / (result["tasks_per_s"] * seconds * w2.WHOLE) * 1e6
