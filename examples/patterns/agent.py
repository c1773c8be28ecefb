"""An agent with the few small things that the graphs of this folder ask for; AGENT_NAME has another name for it."""

import os
from typing import Any

from antiphon import Agent, Graph, PermanentFailure, Subgraph

agent = Agent(os.environ.get("AGENT_NAME", "stepper"))


@agent.capability("step.do@1", effect="pure", idempotent=True)
async def do(value: Any) -> Any:
    """Answers what it is given."""
    return value


@agent.capability("step.next@1", effect="pure", idempotent=True)
async def next_number(number: int) -> int:
    """Answers the next number."""
    return number + 1


@agent.capability("step.positive@1", effect="pure", idempotent=True)
async def positive(number: int) -> int:
    """Answers a number that is positive, and fails for any other."""
    if number <= 0:
        raise PermanentFailure(f"{number} is not positive", "not-positive")
    return number


@agent.capability("step.fail@1", effect="pure")
async def fail(reason: str) -> Any:
    """Fails for the reason that it is given."""
    raise PermanentFailure(reason, "asked-for")


@agent.capability("step.plan@1", effect="pure", idempotent=True)
async def plan(texts: list[str]) -> Subgraph:
    """Makes a step of each text, which it does not do itself."""
    graph = Graph("steps")
    for number, text in enumerate(texts, 1):
        graph.task(f"step{number}", "step.do@1", input=text)
    return Subgraph(graph)


@agent.capability("step.lose@1", effect="write")
async def lose(amount: int) -> Any:
    """Dies before it can say whether anything was done."""
    os._exit(1)


agent.run()
