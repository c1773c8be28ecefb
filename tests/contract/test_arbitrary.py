"""Every RPC with whatever keeps the rules of its request: what it says is right, or refused, and never a bug."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.contract.cases import NOBODY, Call, Case, Expected, Kind
from tests.contract.contract import Contract
from tests.contract.world import World
from tests.harness.messages import serialised

LONG = os.environ.get("ANTIPHON_ROBUST") == "1"
CONTRACT = Contract()
UNARY = [method for method in CONTRACT.methods.values() if method.unary]
STREAMS = [method for method in CONTRACT.methods.values() if not method.unary]
GIVEN = {"SubmitRunRequest.wait": st.just(False)}
"""Whoever waits for the end of a run waits longer than a test does."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One mesh for all of it."""
    with World() as made:
        yield made


def played(world: World, method: Any, data: st.DataObject) -> list[str]:
    """What is wrong with the answer to one call."""
    identity = data.draw(st.sampled_from(method.kinds or (NOBODY,)))
    known = {name: (fact,) for name, fact in world.facts[method.listener].items() if isinstance(fact, str | bytes)}
    request = data.draw(serialised(method.request, GIVEN, known))
    call = Call(identity, method.listener, request)
    case = Case(method, Kind.VALID, "arbitrary", (call,), Expected.TOLERATED, "REQUEST_INVALID")
    return world.play([case])


@settings(
    max_examples=4_000 if LONG else 150,
    derandomize=not LONG,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(method=st.sampled_from(UNARY), data=st.data())
def test_no_request_that_keeps_the_rules_meets_a_bug(world: World, method: Any, data: st.DataObject) -> None:
    assert played(world, method, data) == []
