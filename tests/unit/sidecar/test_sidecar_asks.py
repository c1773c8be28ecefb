"""What an agent may ask of shared context: the sidecar refuses what the contract refuses, or its stream would end."""

from __future__ import annotations

from typing import Any

import pytest
from antiphon.v1 import agent_service_pb2, context_pb2, payload_pb2
from antiphon.v1 import context_request_pb2 as asked
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.api.image import Image
from antiphon_sidecar.asks import MOST_SOURCES, inherit, mistake_in_ask, note_reads
from antiphon_sidecar.attempts import Attempt
from hypothesis import given, settings
from hypothesis import strategies as st

IMAGE = Image.load()
METHOD = next(method for method in IMAGE.methods.values() if method.request_class.DESCRIPTOR.name == "WorkRequest")
KINDS = [field.name for field in asked.ContextRequest.DESCRIPTOR.oneofs_by_name["kind"].fields]
LIMIT = 65_536

SPELLINGS: dict[str, list[Any]] = {
    "request_id": ["", "r", "r" * 64, "r" * 65],
    "key": ["", "a/b", "-", "a" * 255, "a" * 256, "a b"],
    "name": ["", "plan", "/", "n" * 256],
    "prefix": ["", "a/", "-", "p" * 256, "ü"],
    "page_size": [0, 500, 501, -1],
    "page_token": ["", "t" * 1_025],
    "from_revision": [0, -1, 7],
    "expected_revision": [None, 0, -1, 7],
    "ttl": [None, (0, 1), (0, 1_000_000), (1, 0), (3_600, 0), (3_601, 0), (31_622_400, 0), (31_622_401, 0), (-1, 0)],
    "value": [None, b"1", b"x" * (LIMIT + 1)],
    "scope": [None, ("run_id", ""), ("run_id", "r" * 65), ("graph", "g"), ("graph", "g" * 512)],
    "claim": [None, ("plan", 1), ("plan", 0), ("", 1)],
}


@st.composite
def requests(draw: st.DrawFn) -> asked.ContextRequest:
    """Any kind, with fields at and beyond their bounds."""
    request = asked.ContextRequest(attempt_id="r/t/0/1", attempt_token=b"t")
    request.request_id = draw(st.sampled_from(SPELLINGS["request_id"]))
    kind = draw(st.sampled_from(KINDS))
    inner = getattr(request, kind)
    inner.SetInParent()
    for field in inner.DESCRIPTOR.fields:
        choice = draw(st.sampled_from(SPELLINGS[field.name]))
        if choice is None:
            continue
        part = getattr(inner, field.name)
        if field.name == "ttl":
            part.seconds, part.nanos = choice
        elif field.name == "value":
            part.inline = choice
        elif field.name == "scope":
            setattr(part, *choice)
        elif field.name == "claim":
            part.name, part.fence = choice
        else:
            setattr(inner, field.name, choice)
    return request


def by_contract(request: asked.ContextRequest) -> bool:
    message = agent_service_pb2.WorkRequest(context_requests=[request])
    try:
        IMAGE.check(METHOD, message.SerializeToString())
    except ApiError:
        return False
    return True


@settings(deadline=None)
@given(requests())
def test_the_sidecar_lets_through_exactly_what_the_contract_does(request: asked.ContextRequest) -> None:
    mistake = mistake_in_ask(request, LIMIT)
    assert (mistake is None) == by_contract(request), mistake


def test_every_kind_of_request_has_its_rules() -> None:
    assert mistake_in_ask(asked.ContextRequest(request_id="r"), LIMIT) == "kind: ask for something"
    for kind in KINDS:
        request = asked.ContextRequest(request_id="r")
        getattr(request, kind).SetInParent()
        mistake_in_ask(request, LIMIT)


def entry(key: str, revision: int, *labels: str, part: str = "") -> context_pb2.Entry:
    value = payload_pb2.Payload(labels=[payload_pb2.Label(key=label) for label in labels])
    if part:
        value.field_labels.add(pointer="/a").labels.add(key=part)
    return context_pb2.Entry(key=key, revision=revision, value=value)


def test_what_was_read_is_kept_once_by_revision_with_all_labels_and_goes_into_what_is_made() -> None:
    attempt = Attempt("r/t/0/1", 0, "worker")
    response = asked.ContextResponse()
    response.get.entry.CopyFrom(entry("a", 1, "pii"))
    assert note_reads(attempt, response) and note_reads(attempt, response)
    response.list.entries.extend([entry("a", 2), entry("b", 3, part="secret")])
    assert note_reads(attempt, response)
    response.watch.events.add(put=entry("c", 4, "pii"))
    response.watch.events.add(deleted=context_pb2.EntryDeletion(key="d", revision=5))
    assert note_reads(attempt, response)
    assert [(one.key, one.revision) for one in attempt.reads.entries] == [("a", 1), ("a", 2), ("b", 3), ("c", 4)]
    output = payload_pb2.Payload(labels=[payload_pb2.Label(key="own"), payload_pb2.Label(key="pii")])
    inherit(attempt, output)
    assert [label.key for label in output.labels] == ["own", "pii", "secret"]


def test_more_sources_than_fit_are_counted_and_more_labels_than_fit_are_not_handed_over() -> None:
    attempt = Attempt("r/t/0/1", 0, "worker")
    response = asked.ContextResponse()
    response.list.entries.extend(entry(f"k{number}", number) for number in range(MOST_SOURCES + 3))
    assert note_reads(attempt, response)
    assert (len(attempt.reads.entries), attempt.reads.more) == (MOST_SOURCES, 3)
    before = attempt.reads.SerializeToString()
    response.get.entry.CopyFrom(entry("many", 1, *(f"l{number}" for number in range(65))))
    assert not note_reads(attempt, response)
    assert attempt.reads.SerializeToString() == before  # what it was not given does not go with its next request


@pytest.mark.parametrize("answer", ["put", "release"])
def test_writes_are_no_reads(answer: str) -> None:
    attempt = Attempt("r/t/0/1", 0, "worker")
    response = asked.ContextResponse()
    getattr(response, answer).SetInParent()
    assert note_reads(attempt, response) and attempt.reads is None
