"""The engine under any graph and any order of events: tables, joins, retries, fan-outs, codec, recovery."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import antiphon_orchestrator.engine.run as run_module
import pytest
from antiphon_orchestrator.engine.plan import HedgePlan, OnFailure, Plan
from antiphon_orchestrator.engine.states import ATTEMPT_TRANSITIONS, RUN_TRANSITIONS, TASK_TRANSITIONS, RunState
from engine_play import Player, state_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.plans import SECOND, Node, plan, retry


@st.composite
def nodes(draw: st.DrawFn, index: int) -> Node:
    earlier = list(range(index))
    needs = tuple(sorted(draw(st.sets(st.sampled_from(earlier), max_size=4)))) if earlier else ()
    fan_out = draw(st.sampled_from([None, None, None, 0, 1, 3, 7, 120]))
    broken = draw(st.sampled_from([""] * 10 + ["when", "input", "for_each", "members", "undo"]))
    when = draw(st.sampled_from([None, None, None, True, False]))
    if (broken == "when" and when is None) or (broken == "input" and fan_out is not None):
        broken = ""
    if broken in ("for_each", "members") and fan_out is None:
        broken = ""
    plain = fan_out is None and not broken
    other = draw(st.sampled_from([""] * 5 + ["wait", "loop", "quorum", "hedge", "graph"])) if plain else ""
    agree = draw(st.integers(2, 4)) if other == "quorum" else int(other == "hedge")
    alone = other in ("", "loop")
    wait = (
        draw(st.sampled_from([0, 2 * SECOND, -3 * SECOND, -(10**12), "go", "go", "stop"])) if other == "wait" else None
    )
    iterations = draw(st.integers(0, 4)) if other == "loop" else 0
    if other == "quorum" and draw(st.integers(0, 5)) == 5:
        broken = "quorum"
    return Node(
        needs=needs,
        join=draw(st.one_of(st.none(), st.integers(1, len(needs)))) if needs else None,
        when=when,
        members=fan_out,
        broken=broken,
        on_failure=draw(st.sampled_from(OnFailure)),
        retry=draw(st.sampled_from([(), (retry(3),), (retry(2, first=5 * SECOND, longest=6 * SECOND),)])),
        deadline=draw(st.sampled_from([None, None, 3 * SECOND, 50 * SECOND])),
        wait=wait,
        iterations=iterations,
        most_iterations=draw(st.integers(max(1, iterations - 1), 5)) if other == "loop" else 0,
        undone=fan_out is None and other not in ("wait", "quorum") and draw(st.booleans()),
        at_most_once=alone and draw(st.integers(0, 3)) == 3,
        graph="below@1" if other == "graph" else "",
        agree=agree,
        of=draw(st.integers(agree, agree + 2)) if other == "quorum" else 2 * agree,
        hedge=HedgePlan(SECOND, 0.0, 0.1) if other == "hedge" else None,
        cache_ttl=SECOND if other not in ("wait", "quorum", "graph") and draw(st.integers(0, 3)) == 3 else 0,
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 7))
    return plan(*[draw(nodes(index)) for index in range(count)], broken_output=draw(st.integers(0, 15)) == 15)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans(), st.integers(0, 2**32))
def test_any_order_of_events_keeps_every_invariant_and_ends_the_run(of: Plan, seed: int) -> None:
    Player(of, random.Random(seed), steers=seed % 3 * 2, losses=1 + seed % 2 * 8, answers=seed % 4 / 10).play()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans(), st.integers(0, 2**32), st.integers(0, 60))
def test_recovery_from_records_or_from_a_snapshot_gives_the_live_state(of: Plan, seed: int, steps: int) -> None:
    player = Player(
        of,
        random.Random(seed),
        steers=seed % 2 * 4,
        losses=1 + seed % 3 * 4,
        answers=seed % 3 / 5,
        cancels=seed % 4 * 2,
    )
    for _ in range(steps):
        if player.run.state is not RunState.RUNNING:
            break
        player.step()
        assert state_of(player.fold()) == state_of(player.run)
        if player.run.state is RunState.RUNNING:
            assert state_of(player.moved()) == state_of(player.run)


class _Rows(dict[Any, Any]):
    """A table that remembers which of its rows were used."""

    def __init__(self, table: dict[Any, Any]) -> None:
        super().__init__(table)
        self.used: set[Any] = set()

    def __getitem__(self, row: Any) -> Any:
        found = super().__getitem__(row)
        self.used.add(row)
        return found

    def __contains__(self, row: object) -> bool:
        if found := super().__contains__(row):
            self.used.add(row)
        return found


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, _Rows]]:
    watched = {
        "TASK_TRANSITIONS": _Rows(TASK_TRANSITIONS),
        "ATTEMPT_TRANSITIONS": _Rows(dict.fromkeys(ATTEMPT_TRANSITIONS)),
        "RUN_TRANSITIONS": _Rows(dict.fromkeys(RUN_TRANSITIONS)),
    }
    for name, table in watched.items():
        monkeypatch.setattr(run_module, name, table)
    yield watched


def test_every_row_of_every_table_is_there_for_something(tables: dict[str, _Rows]) -> None:
    deadline = 5 * SECOND
    graphs = [
        plan(
            Node(retry=(retry(3),), deadline=deadline),
            Node((0,), when=False),
            Node((0,), broken="input"),
        ),
        plan(Node(), Node((0,)), Node(graph="below@1")),
        plan(
            Node(on_failure=OnFailure.ESCALATE, retry=(retry(2, first=1),)),
            Node(on_failure=OnFailure.ESCALATE, retry=(retry(2, first=1),), members=3),
        ),
        plan(Node(retry=(retry(100, first=4 * SECOND),), deadline=60 * SECOND), Node((0,))),
        plan(Node(members=3, retry=(retry(3),), deadline=deadline)),
        plan(Node(wait=SECOND), Node(wait="go", deadline=deadline), Node((1,), iterations=2, most_iterations=3)),
        plan(Node(members=3), Node((0,)), Node(wait="go")),
        plan(Node(cache_ttl=SECOND), Node(members=2, cache_ttl=SECOND)),
        plan(
            Node(on_failure=OnFailure.ESCALATE, schedule_timeout=SECOND),
            Node(broken="input", on_failure=OnFailure.ESCALATE),
            Node(wait="go", deadline=deadline, on_failure=OnFailure.ESCALATE),
            Node(members=2, on_failure=OnFailure.ESCALATE, retry=(retry(3),), deadline=deadline),
            Node(iterations=9, most_iterations=1, broken="until", on_failure=OnFailure.ESCALATE),
        ),
    ]
    Player(plan(Node(members=120)), random.Random(0)).play(10)
    for seed in range(2400):
        turn, which = divmod(seed, len(graphs))
        # Where tasks may be poison, processes die often, and people are asked.
        losses, steers = (25, 10) if which == 2 else (1 + turn % 5 * 5, turn % 2 * 5)
        answers = (which == 1) / 5
        Player(graphs[which], random.Random(seed), 1 + turn % 3 * 10, steers, losses, answers).play(60)
        if all(table.used == set(table) for table in tables.values()):
            break
    for name, table in tables.items():
        assert table.used == set(table), f"rows of {name} that nothing uses"
