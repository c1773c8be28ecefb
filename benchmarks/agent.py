"""The measured agent: answers with its input. Written as any agent is."""

from __future__ import annotations

from typing import TypedDict

from antiphon import Agent


class Message(TypedDict):
    """Input and output."""

    text: str


# Slots are no bottleneck here: as many as the largest number of runs in flight, and as many again on their way.
agent = Agent("bench", concurrency=1000, prefetch=1000)


@agent.capability("echo@1", effect="pure")
async def echo(message: Message) -> Message:
    """Gives back what it got."""
    return message


if __name__ == "__main__":
    agent.run()
