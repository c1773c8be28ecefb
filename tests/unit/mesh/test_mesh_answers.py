"""Graphs that agents answer with: whatever is wrong with one is told to its attempt, and ends nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from antiphon.v1.failure_pb2 import Failure as FailureMessage
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.mesh.calls import Calls
from antiphon_orchestrator.shards import codec


def surprise(_: object) -> Any:
    raise OverflowError("a library's own idea, with \ud800")


@pytest.mark.parametrize(("data", "said"), [(b"\xff", "it is no graph"), (b"", "it cannot be compiled: OverflowError")])
async def test_a_graph_that_breaks_what_judges_it_fails_its_attempt(data: bytes, said: str) -> None:
    nothing: Any = None
    calls = Calls(nothing, nothing, nothing, surprise, lambda: 0)
    _, failure = await calls._graph(data)
    assert isinstance(failure, Failure) and said in failure.message and failure.code == "GRAPH_INVALID"
    codec.put_failure(FailureMessage(), failure)


def test_a_failure_is_recorded_whatever_its_text_holds() -> None:
    made = FailureMessage()
    codec.put_failure(made, Failure(FailureKind.PERMANENT, "no \ud800"))
    assert made.message == "no \\ud800"
