"""What an agent must do, or not do, all the time: judged over everything that was played.

Chosen alone, each plays valid inputs first, so that there is something to judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import NoReturn

from antiphon.v1.payload_pb2 import Payload

from ..stage import Unplayable, Wrong
from .case import CAPABILITY, FAILURE, PAYLOAD, SERVICE, Case, Offered, Play
from .work import valid_input


async def output_schema(play: Play) -> None:
    """Every output, and at least one of each capability."""
    await _something(play)
    for offered in play.offered:
        outputs = 0
        for attempt in play.stage.ledger.attempts.values():
            if attempt.capability != offered.name:
                continue
            for result in attempt.results:
                if result.WhichOneof("outcome") == "failure" or result.output.HasField("blob"):
                    continue
                outputs += 1
                complaint = _complaint(offered, result.output)
                if complaint:
                    contract = f"{CAPABILITY}: output_schema; {PAYLOAD}: media_type"
                    raise Wrong(f"outputs of {offered.name} fit its output schema", complaint, contract)
        if not outputs:
            name = offered.capability.name
            raise Unplayable(
                f"{offered.name} never succeeded, so its output was never seen; give an input that it can work "
                f"with: --input {name}=JSON, and what others answer it: --answer CAPABILITY=JSON"
            )


def _complaint(offered: Offered, payload: Payload) -> str:
    """What the mesh would refuse an output for."""
    essence = payload.media_type.partition(";")[0].strip().lower()
    if essence not in ("", "application/json") and not essence.endswith("+json"):
        return f"an output of {payload.media_type}, which fits no schema" if offered.capability.output_schema else ""
    try:
        value = _DECODER.decode(payload.inline.decode()) if payload.HasField("inline") else None
        return offered.output.complaint(value)[:500]
    except (ValueError, RecursionError) as error:
        kind = payload.media_type or "empty, which means JSON"
        return f"an output that is not JSON in UTF-8, though its media type is {kind}: {error}"[:500]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _finding(case: str, expected: str, contract: str) -> Callable[[Play], Awaitable[None]]:
    async def judge(play: Play) -> None:
        await _something(play)
        found = play.stage.ledger.findings.get(case, ())
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise Wrong(expected, f"{found[0]}{more}", contract)

    return judge


async def _something(play: Play) -> None:
    if not any(attempt.results for attempt in play.stage.ledger.attempts.values()):
        await valid_input(play)


CASES = (
    Case("output-schema", "What it answers fits its output schemas.", output_schema),
    Case(
        "outcomes",
        "Each attempt has one outcome, and there is no word of others.",
        _finding("outcomes", "one outcome of each attempt, and no word of others", f"{SERVICE}: Result"),
    ),
    Case(
        "failures",
        "Its failures have a kind that is an agent's to set, and say something.",
        _finding(
            "failures", "failures of an agent's kinds, with a message", f"{FAILURE}: FailureKind, Failure.message"
        ),
    ),
    Case(
        "limits",
        "What it sends is within the contract's limits.",
        _finding("limits", "messages within the limits", f"{SERVICE} and {PAYLOAD}: the limit at each field"),
    ),
    Case(
        "attempt-token",
        "What it does on behalf of an attempt carries that attempt's token, and ends with it.",
        _finding(
            "attempt-token", "the token of the assignment, until its outcome", f"{SERVICE}: Assignment.attempt_token"
        ),
    ),
)
