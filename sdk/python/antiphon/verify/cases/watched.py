"""What an agent must do, or not do, all the time: judged over everything that was played.

Chosen alone, each plays valid inputs first, so that there is something to judge.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from ..inputs import Json
from ..stage import Unplayable, Wrong
from .case import CAPABILITY, FAILURE, PAYLOAD, SERVICE, Case, Play
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
                complaint = _complaint(result.output.media_type, result.output.inline, offered.output.complaint)
                if complaint:
                    contract = f"{CAPABILITY}: output_schema; {PAYLOAD}: media_type"
                    raise Wrong(f"outputs of {offered.name} fit its output schema", complaint, contract)
        if not outputs:
            name = offered.capability.name
            raise Unplayable(
                f"{offered.name} never succeeded, so its output was never seen; give an input that it can work "
                f"with: --input {name}=JSON, and what others answer it: --answer CAPABILITY=JSON"
            )


def _complaint(media_type: str, data: bytes, complaint: Callable[[Json], str]) -> str:
    if media_type and media_type.partition(";")[0].strip() != "application/json":
        return ""
    try:
        return complaint(json.loads(data or b"null"))[:500]
    except ValueError:
        return f"an output that is not JSON, though its media type is {media_type or 'empty, which means JSON'}"


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
