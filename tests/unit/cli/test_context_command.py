"""`antiphon context`: what it says of entries, and of what was written wrongly."""

from __future__ import annotations

import pytest
from antiphon._entries import scope_of, scope_text
from antiphon.cli import context as command
from antiphon.cli.problems import Problem
from antiphon.v1 import context_pb2, context_service_pb2
from antiphon.v1.payload_pb2 import BlobReference, Payload
from hypothesis import given
from hypothesis import strategies as st

BY = context_pb2.Provenance(principal="spiffe://d/ns/demo/client/ada")


@given(st.sampled_from(["namespace", "run:r1", "run:", "graph:review", "graph:a.b"]))
def test_a_scope_is_read_back_as_it_is_spelled(text: str) -> None:
    assert scope_text(scope_of(text)) == text


@pytest.mark.parametrize("text", ["", "namespaces", "tasks:x", "Namespace"])
def test_what_is_no_scope_is_one_line_that_says_what_to_write(text: str) -> None:
    with pytest.raises(Problem, match="write namespace, run:ID or graph:NAME"):
        command.get("key", scope=text)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (Payload(inline=b'{"a":1}'), '{"a":1}'),
        (Payload(), "null"),
        (Payload(inline=b"x" * 100), "x" * 79 + "…"),
        (Payload(inline=b"xyz", media_type="image/png"), "3 bytes of image/png"),
        (Payload(blob=BlobReference(digest="0" * 64, size=9)), "9 bytes by reference"),
    ],
)
def test_a_value_is_shown_in_one_short_line(payload: Payload, shown: str) -> None:
    assert command._value(payload) == shown


def test_changes_and_lineages_are_lines() -> None:
    entry = context_pb2.Entry(key="plan", revision=7, value=Payload(inline=b"1"), provenance=BY)
    assert command._line(context_pb2.EntryEvent(put=entry)) == "7 put plan 1"
    gone = context_pb2.EntryDeletion(key="plan", revision=8)
    assert command._line(context_pb2.EntryEvent(deleted=gone)) == "8 deleted plan"
    found = context_service_pb2.GetLineageResponse(cut=True)
    node = found.nodes.add(provenance=BY)
    node.provenance.more_sources = 2
    node.entry.key, node.entry.revision = "plan", 7
    source = found.nodes.add(distance=1)
    source.entry.scope.run_id, source.entry.key, source.entry.revision = "r1", "fact", 3
    assert command._tree(found).plain.splitlines() == [
        "namespace plan at revision 7, written by demo/client/ada, and 2 more sources",
        "  run:r1 fact at revision 3, not there any more",
        "… and more",
    ]
