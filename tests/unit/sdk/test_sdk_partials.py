"""Pieces of output that wait: in order, joined where they may be, bounded, and gaps show."""

from __future__ import annotations

from antiphon import Agent, InvalidOutput, Payload, TaskContext
from antiphon._attempts import Attempts
from antiphon._context import pieces_of
from antiphon._outbox import Outbox
from antiphon.partials import (
    ALL_BYTES,
    JSON_BYTES,
    MAKER_BYTES,
    MESSAGE_PIECES,
    TEXT_LENGTH,
    Pieces,
    content_bytes,
)
from antiphon.v1.agent_service_pb2 import Assignment, CallPartial
from antiphon.v1.payload_pb2 import Label
from antiphon.v1.run_pb2 import PartialOutput
from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, raises

EMITTED = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.text(max_size=5_000), st.integers(), st.just({"tool": "x"}))),
    max_size=60,
)


@given(EMITTED, st.integers(1, 5))
def test_what_is_let_in_comes_out_once_in_the_order_of_its_maker_and_every_gap_shows(emitted, every: int) -> None:
    box: Pieces[str] = Pieces()
    offsets: dict[str, int] = {}
    lost: dict[str, int] = {}
    out: dict[str, list[PartialOutput]] = {}

    def take() -> None:
        taken = box.take()
        assert len(taken) <= MESSAGE_PIECES
        for maker, piece in taken:
            out.setdefault(maker, []).append(piece)

    for number, (maker, value) in enumerate(emitted):
        for piece in pieces_of(value):
            piece.offset = offsets.get(maker, 0)
            size = content_bytes(piece)
            offsets[maker] = piece.offset + size
            if not box.add(maker, piece):
                lost[maker] = lost.get(maker, 0) + size
        if number % every == 0:
            take()
    while box:
        take()
    for maker, pieces in out.items():
        expected = missing = 0
        for piece in pieces:
            assert len(piece.text) <= TEXT_LENGTH and len(piece.json) <= JSON_BYTES
            assert piece.offset >= expected
            missing += piece.offset - expected
            expected = piece.offset + content_bytes(piece)
        assert missing + offsets[maker] - expected == lost.get(maker, 0)
    assert not box._all and not box._bytes


def test_text_that_follows_text_is_joined_and_nothing_else_is() -> None:
    box: Pieces[str] = Pieces()
    label = Payload(inline=b'"d"')
    label.labels.add(key="pii")
    offset = 0
    for value in ("ab", "c", label, {"e": 1}, "f", "g"):
        for piece in pieces_of(value):
            piece.offset = offset
            offset += content_bytes(piece)
            assert box.add("m", piece)
    assert [piece.text or piece.json.decode() for _, piece in box.take()] == ["abc", "d", '{"e":1}', "fg"]


def test_no_more_waits_than_there_is_room_for() -> None:
    box: Pieces[int] = Pieces()
    size = 0
    while box.add(0, PartialOutput(text="x" * TEXT_LENGTH, offset=size)):
        size += TEXT_LENGTH
    assert size <= MAKER_BYTES < size + 2 * TEXT_LENGTH
    for maker in range(1, 100):
        while box.add(maker, PartialOutput(json=b"1" * JSON_BYTES)):
            size += JSON_BYTES
    assert size <= ALL_BYTES
    box.clear()
    assert box.add(0, PartialOutput(text="x"))


def test_that_something_is_withheld_is_said_once() -> None:
    box: Pieces[str] = Pieces()
    for _ in range(3):
        assert box.add("m", PartialOutput(withheld="no", attempt=1))
    assert box.add("m", PartialOutput(withheld="no", attempt=2))
    assert [piece.attempt for _, piece in box.take()] == [1, 2]


LABELLED = Payload(inline=b"1", labels=[Label(key="pii", value="x" * 256)] * 60)


@mark.parametrize(
    "value", ["x" * JSON_BYTES, Payload(inline=b"no", media_type="image/png"), LABELLED, object(), "\ud800"]
)
def test_what_cannot_travel_is_refused_where_it_is_emitted(value: object) -> None:
    with raises(InvalidOutput, match="what is emitted"):
        pieces_of([value] if isinstance(value, str) and value.startswith("x") else value)


def assigned(capability: str) -> Assignment:
    assignment = Assignment(attempt_id="r/t/0/1", capability=capability, version="1")
    assignment.input.inline = b"null"
    return assignment


@mark.parametrize("capability", ["text.soon", "text.plain"])
async def test_what_a_handler_emits_before_it_returns_leaves_with_its_outcome(capability: str) -> None:
    agent = Agent("writer")

    @agent.capability("text.soon@1")
    async def soon(value: None, task: TaskContext) -> str:
        task.emit("one ")
        await task.emit("two")
        return "one two"

    @agent.capability("text.plain@1")
    def plain(value: None, task: TaskContext) -> str:
        task.emit("one ")
        task.emit("two")
        return "one two"

    outbox = Outbox()
    attempts = Attempts(agent._handlers, outbox, 1)
    attempts.assign(assigned(capability), 0.0)
    await attempts.idle()
    request = await outbox.take()
    assert request is not None
    assert [(one.attempt_id, one.partial.text) for one in request.partials] == [("r/t/0/1", "one two")]
    assert [result.output.inline for result in request.results] == [b'"one two"']
    outbox.put_back(request)
    again = await outbox.take()
    assert again is not None and again.results and not again.partials
    await attempts.stop()


async def test_what_a_watcher_of_a_call_raises_ends_the_call_and_nothing_else() -> None:
    agent = Agent("caller")

    @agent.capability("text.ask@1")
    async def ask(value: None, task: TaskContext) -> str:
        def show(piece: PartialOutput) -> None:
            raise RuntimeError(piece.text)

        try:
            return str(await task.call("text.soon@1", on_partial=show))
        except RuntimeError as error:
            return f"raised {error}"

    outbox = Outbox()
    attempts = Attempts(agent._handlers, outbox, 1)
    attempts.assign(assigned("text.ask"), 0.0)
    request = await outbox.take()
    assert request is not None
    (call,) = request.calls
    partial = CallPartial(call_id=call.call_id, attempt_id=call.attempt_id)
    partial.partial.text = "this"
    attempts.made(partial)
    attempts.made(CallPartial(call_id="unknown", attempt_id=call.attempt_id))
    await attempts.idle()
    outcome = await outbox.take()
    assert outcome is not None
    assert [result.output.inline for result in outcome.results] == [b'"raised this"']
    await attempts.stop()
