"""Pieces of output that wait: in order, joined where they may be, bounded, and gaps show."""

from __future__ import annotations

from antiphon import InvalidOutput, Payload
from antiphon._context import pieces_of
from antiphon.partials import (
    ALL_BYTES,
    JSON_BYTES,
    MAKER_BYTES,
    MESSAGE_PIECES,
    TEXT_LENGTH,
    Pieces,
    content_bytes,
)
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


@mark.parametrize("value", ["x" * JSON_BYTES, Payload(inline=b"no", media_type="image/png"), object(), "\ud800"])
def test_what_cannot_travel_is_refused_where_it_is_emitted(value: object) -> None:
    with raises(InvalidOutput, match="what is emitted"):
        pieces_of([value] if isinstance(value, str) and value.startswith("x") else value)
