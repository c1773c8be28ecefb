"""Loads the cases and plays them on one executor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from antiphon.conformance.v1 import case_pb2 as cases
from google.protobuf import json_format

from tests.conformance import agent_mode
from tests.conformance.client_mode import conversation

FOLDER = Path(__file__).with_name("cases")


def load() -> list[cases.Case]:
    """Every case, those of agents first, in order of name. Raises `ValueError` for a file that is none."""
    found = []
    for path in sorted(FOLDER.glob("*/*.json")):
        try:
            case = json_format.Parse(path.read_text("utf-8"), cases.Case())
        except json_format.ParseError as error:
            raise ValueError(f"{path}: {error}") from None
        if (path.parent.name, path.stem) != (case.WhichOneof("mode"), case.name):
            raise ValueError(f"{path} holds a case of mode {case.WhichOneof('mode')} and name {case.name}")
        found.append(case)
    return found


def name_of(case: cases.Case) -> str:
    """Its name among all cases, such as agent/cancel."""
    return f"{case.WhichOneof('mode')}/{case.name}"


async def play(command: Sequence[str], chosen: Sequence[cases.Case]) -> AsyncIterator[cases.CaseResult]:
    """The result of each case, in order."""
    agents = [case for case in chosen if case.HasField("agent")]
    clients = [case for case in chosen if case.HasField("client")]
    for case in agents:
        yield _result(case, await agent_mode.play(command, case.agent))
    if clients:
        async with conversation(command) as talk:
            for case in clients:
                yield _result(case, await talk.play(case.client))


def _result(case: cases.Case, complaint: str) -> cases.CaseResult:
    return cases.CaseResult(name=name_of(case), passed=not complaint, complaint=complaint)
