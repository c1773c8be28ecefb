"""Does it say hello, and does what it announces make sense?"""

from __future__ import annotations

from ..inputs import BadSchema, Schema
from ..rules import mistakes_in_first
from ..stage import Unplayable, Wrong
from .case import CAPABILITY, SERVICE, Case, Play, first_line

_HELLO = f"{SERVICE}: Work, AgentHello"


async def hello(play: Play) -> None:
    """The first message."""
    try:
        await play.stage.line()
    except Unplayable as error:
        raise Wrong("a stream at the socket in ANTIPHON_SOCKET, and hello on it", str(error), _HELLO) from None
    assert play.stage.hello is not None, "there is a stream"
    mistakes = list(mistakes_in_first(play.stage.hello))
    if mistakes:
        raise Wrong("a hello as the contract has it", "; ".join(mistakes), _HELLO)


async def schemas(play: Play) -> None:
    """What is announced can be checked."""
    for capability in play.stage.description.capabilities:
        for field in ("input_schema", "output_schema"):
            try:
                Schema(getattr(capability, field))
            except BadSchema as error:
                name = f"{capability.name}@{capability.version}"
                seen = f"{field} of {name} is not: {first_line(error)}"
                raise Wrong("JSON Schemas of draft 2020-12", seen, f"{CAPABILITY}: {field}") from None


CASES = (
    Case("hello", "It dials its socket, says hello first and alone, and announces what may be announced.", hello),
    Case("schemas", "The schemas it announces are JSON Schemas that need nothing from elsewhere.", schemas),
)
