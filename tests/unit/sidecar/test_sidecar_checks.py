"""What an agent says is brought within the contract before it travels; the contract itself is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import protovalidate
import pytest
from antiphon.v1 import agent_service_pb2 as agents
from antiphon.v1 import context_request_pb2, failure_pb2, payload_pb2, registry_pb2, run_pb2
from antiphon_sidecar.agents import tidy_progress
from antiphon_sidecar.asks import mistake_in_ask
from antiphon_sidecar.checks import (
    INLINE_LIMIT,
    checked_result,
    mistake_in_call,
    mistake_in_piece,
    mistakes_in_description,
)
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

IMAGE = Path(__file__).parents[3] / "orchestrator/antiphon_orchestrator/api/contracts.binpb"
POOL = descriptor_pool.DescriptorPool()
for file in descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes()).file:
    POOL.Add(file)
VALIDATOR = protovalidate.Validator()


def violations(message: Any) -> list[str]:
    """What the servers' validator finds, with the rules that are stripped from the generated code."""
    contract = message_factory.GetMessageClass(POOL.FindMessageTypeByName(message.DESCRIPTOR.full_name))
    found = VALIDATOR.collect_violations(contract.FromString(message.SerializeToString()))
    return [str(violation.proto) for violation in found]


texts = st.one_of(st.sampled_from(["", "text.echo", "1", "a" * 64, "b" * 3_000, "A B", "é" * 70]), st.text(max_size=80))


@given(
    name=texts,
    version=texts,
    runtime=texts,
    concurrency=st.sampled_from([0, 1, 10_000, 10_001]),
    prefetch=st.sampled_from([0, 10_001]),
    labels=st.dictionaries(texts, texts, max_size=3),
    capabilities=st.lists(st.tuples(texts, texts, texts, st.sampled_from([0, 4, 9]), st.floats()), max_size=2),
)
def test_a_description_is_refused_exactly_when_the_contract_is_broken(
    name: str, version: str, runtime: str, concurrency: int, prefetch: int, labels: Any, capabilities: Any
) -> None:
    description = registry_pb2.AgentDescription(
        name=name, version=version, runtime=runtime, concurrency=concurrency, prefetch=prefetch, labels=labels
    )
    for key, number, text, effect, cost in capabilities:
        description.capabilities.add(name=key, version=number, description=text, effect=effect, cost=cost)
    assert bool(list(mistakes_in_description(description))) == bool(violations(description))


def payload(
    size: int, media: str, labels: list[tuple[str, str]], pointer: str, digest: str | None
) -> payload_pb2.Payload:
    made = payload_pb2.Payload(
        media_type=media, labels=[payload_pb2.Label(key=key, value=text) for key, text in labels]
    )
    made.field_labels.add(pointer=pointer)
    if digest is None:
        made.inline = b"x" * size
    else:
        made.blob.digest = digest
    return made


payloads = st.builds(
    payload,
    st.sampled_from([0, 10, INLINE_LIMIT, INLINE_LIMIT + 1]),
    texts,
    st.lists(st.tuples(texts, texts), max_size=2),
    texts,
    st.sampled_from([None, "f" * 64, "nothing"]),
)
failures = st.builds(
    failure_pb2.Failure,
    kind=st.sampled_from([0, 3, 99]),
    message=st.sampled_from(["", "m" * 5_000]),
    code=texts,
    cause=st.sampled_from(["", "c" * 20_000]),
    field=texts,
)


@given(outcome=st.one_of(st.none(), payloads, failures))
def test_any_result_becomes_one_that_the_contract_takes(outcome: Any) -> None:
    result = agents.Result(attempt_id="a")
    if isinstance(outcome, payload_pb2.Payload):
        result.output.CopyFrom(outcome)
    elif outcome is not None:
        result.failure.CopyFrom(outcome)
    before = bool(violations(result))
    size = checked_result(result, INLINE_LIMIT)
    assert violations(result) == []
    assert size >= len(result.output.inline)
    if isinstance(outcome, payload_pb2.Payload):
        assert result.HasField("failure") == before


@given(call_id=texts, capability=texts, payload=payloads)
def test_a_call_is_refused_exactly_when_the_contract_is_broken(call_id: str, capability: str, payload: Any) -> None:
    call = agents.CallRequest(call_id=call_id, attempt_id="a", attempt_token=b"t", capability=capability, input=payload)
    assert bool(mistake_in_call(call, INLINE_LIMIT)) == bool(violations(call))


@given(fraction=st.floats(), message=st.sampled_from(["", "m" * 2_000]))
def test_any_progress_becomes_one_that_the_contract_takes(fraction: float, message: str) -> None:
    update = agents.ProgressUpdate(attempt_id="a")
    update.progress.fraction, update.progress.message = fraction, message
    tidy_progress(update)
    assert violations(update) == []


def test_the_size_of_a_result_counts_what_a_message_holds() -> None:
    result = agents.Result(attempt_id="a", output=payload_pb2.Payload(inline=b"x" * 500))
    assert checked_result(result, INLINE_LIMIT) == pytest.approx(500, abs=50)


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def of_a_newer_contract(kind: Any, size: int) -> Any:
    """A message with a field that nobody here knows."""
    return kind.FromString(varint(111 << 3 | 2) + varint(size) + b"x" * size)


@pytest.mark.parametrize("where", ["result", "output", "failure", "subgraph", "graph"])
def test_what_a_newer_contract_adds_passes_within_bounds_and_never_beyond(where: str) -> None:
    def made(size: int) -> agents.Result:
        result = agents.Result(attempt_id="a", output=payload_pb2.Payload(inline=b"1"))
        if where == "result":
            result.MergeFrom(of_a_newer_contract(agents.Result, size))
        elif where == "graph":
            result.subgraph.graph.MergeFrom(of_a_newer_contract(type(result.subgraph.graph), size))
        else:
            part = getattr(result, where)
            part.SetInParent()
            part.MergeFrom(of_a_newer_contract(type(part), size))
        return result

    small, large = made(1_000), made(3_000_000)
    assert checked_result(small, INLINE_LIMIT) == small.ByteSize() > 1_000
    assert checked_result(large, INLINE_LIMIT) == large.ByteSize() < 1_000
    assert large.attempt_id == "a" and large.HasField("failure")


def test_nothing_else_that_an_agent_says_can_be_too_large_for_a_message() -> None:
    call = agents.CallRequest(call_id="c", attempt_id="a", attempt_token=b"t", capability="text.echo@1")
    call.input.MergeFrom(of_a_newer_contract(payload_pb2.Payload, 3_000_000))
    mistake = mistake_in_call(call, INLINE_LIMIT)
    assert mistake and mistake.field == "input"
    mistake = mistake_in_piece(of_a_newer_contract(run_pb2.PartialOutput, 3_000_000))
    assert mistake and mistake.field == "labels"
    ask = of_a_newer_contract(context_request_pb2.ContextRequest, 3_000_000)
    ask.request_id, ask.get.key = "r", "k"
    assert mistake_in_ask(ask, INLINE_LIMIT)
    update = agents.ProgressUpdate(attempt_id="a")
    update.progress.MergeFrom(of_a_newer_contract(run_pb2.Progress, 3_000_000))
    assert tidy_progress(update).ByteSize() < 8_192
