"""The rules of shared context, one by one."""

from __future__ import annotations

import pytest
from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import context_pb2, context_request_pb2, payload_pb2
from antiphon_orchestrator.context import rules
from antiphon_orchestrator.context.rules import Place, Scope, ScopeUnnamed, Standing
from antiphon_orchestrator.store.port import KeyValue
from hypothesis import given
from hypothesis import strategies as st

ALICE = "spiffe://d/ns/demo/client/alice"
CLIENT = Standing(ALICE, "client", "demo")
TASK = Standing(
    ALICE,
    "client",
    "demo",
    agent="worker",
    attempt_id="r2/t/0/1",
    task_id="t",
    run_id="r2",
    root_run_id="r1",
    graph="review",
    labels=(payload_pb2.Label(key="untrusted", asserted_by="schema"),),
    reads=context_request_pb2.ContextReads(labels=[payload_pb2.Label(key="pii", value="name", asserted_by="bob")]),
)
NAMES = st.text(st.sampled_from("abc:/%.-_"), min_size=1, max_size=12)


@given(st.integers(0, 10), st.integers(1, 10))
def test_what_expires_is_there_until_that_moment_and_what_does_not_is_there_for_ever(expire: int, now: int) -> None:
    assert rules.visible(expire, now) == (expire == 0 or now < expire)


@given(st.none() | st.integers(0, 3), st.integers(0, 3))
def test_only_the_expected_revision_is_no_conflict(expected: int | None, revision: int) -> None:
    assert rules.conflict(expected, revision) == (expected is not None and expected != revision)


@given(st.sampled_from(["namespace", "run", "graph"]), NAMES, NAMES, NAMES)
def test_a_place_is_read_back_from_its_key(kind: str, name: str, namespace: str, key: str) -> None:
    scope = Scope(kind, "" if kind == "namespace" else name)
    place = Place(namespace, scope, key)
    assert Place.read(place.store_key) == place
    assert Scope.of(scope.message(), CLIENT) == scope


def test_a_task_may_leave_out_its_own_names_and_a_client_must_give_them() -> None:
    run, graph = context_pb2.ContextScope(run_id=""), context_pb2.ContextScope(graph="")
    assert Scope.of(run, TASK) == Scope("run", "r1"), "the outermost run, which those it called share"
    assert Scope.of(graph, TASK) == Scope("graph", "review")
    for scope in (run, graph):
        with pytest.raises(ScopeUnnamed):
            Scope.of(scope, CLIENT)


def test_own_is_what_a_task_works_for_and_everything_for_a_client() -> None:
    assert Scope("run", "r1").own(TASK) and Scope("run", "r2").own(TASK) and Scope("graph", "review").own(TASK)
    assert not Scope("run", "r3").own(TASK) and not Scope("graph", "other").own(TASK)
    assert Scope("namespace").own(TASK) and Scope("run", "r3").own(CLIENT)


def test_runs_are_not_told_apart_by_policy_and_graphs_are() -> None:
    assert Scope("run", "r1").resource == "run" and Scope("graph", "review").resource == "graph:review"


def test_labels_are_asserted_by_the_writer_and_joined_with_those_of_all_it_knew() -> None:
    value = payload_pb2.Payload(labels=[payload_pb2.Label(key="own", asserted_by="forged")])
    kept = rules.labelled(value, TASK)
    assert kept is not None
    assert [(label.key, label.value, label.asserted_by) for label in kept.labels] == [
        ("own", "", ALICE),
        ("untrusted", "", "schema"),
        ("pii", "name", "bob"),
    ]
    assert kept.origin_attempt_id == TASK.attempt_id
    assert value.labels[0].asserted_by == "forged", "what came in is as it was"


def test_more_labels_than_a_payload_carries_are_refused_and_never_dropped() -> None:
    value = payload_pb2.Payload(labels=[payload_pb2.Label(key=f"l{number}") for number in range(63)])
    assert rules.labelled(value, TASK) is None
    del value.labels[0]
    assert rules.labelled(value, TASK) is not None


def test_a_claim_is_held_by_one_attempt_until_its_moment() -> None:
    record = records.ClaimRecord(principal=ALICE, attempt_id=TASK.attempt_id, expire_time=10)
    assert rules.holds(TASK, record, 9)
    assert not rules.holds(TASK, record, 10)
    assert not rules.holds(CLIENT, record, 9), "its principal is not the attempt"


def test_the_fence_is_the_revision_that_gave_the_claim_also_after_renewals() -> None:
    taken = KeyValue(b"k", b"", create_revision=3, mod_revision=7, version=2)
    assert rules.fence_of(taken, records.ClaimRecord()) == 7
    assert rules.fence_of(taken, records.ClaimRecord(fence=5)) == 5
