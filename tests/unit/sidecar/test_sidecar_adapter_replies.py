"""Whatever a service or a program answers, and whatever its input holds, ends as an output in JSON or as a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from antiphon.v1 import failure_pb2
from antiphon_sidecar.adapters import base, exec, http
from antiphon_sidecar.config import HttpCall
from hypothesis import example, given
from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters(codec=None), max_size=20)  # half a surrogate pair as well
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode())
KEYS = st.lists(st.sampled_from(["a", "b", "0", "1", "²", "٣", "-1", ""]), min_size=1, max_size=3)


def outcome(work: Callable[[], bytes | str], *kinds: failure_pb2.FailureKind.ValueType) -> bytes | str | None:
    """What came of it; None for a failure of one of these kinds. Everything else is a fault of the adapter."""
    try:
        return work()
    except base.ExecutionFailed as failed:
        assert failed.failure.kind in kinds
        failed.failure.SerializeToString()
        return None


@example(b'{"a": "\\ud800"}', 200, ["a"])
@example(b'["x"]', 200, ["\u00b2"])
@given(ANSWERS, st.integers(100, 599), KEYS)
def test_an_http_answer_is_an_output_or_a_failure(answer: bytes, status: int, keys: list[str]) -> None:
    call = HttpCall("http://localhost/", output="/" + "/".join(keys))
    kinds = (
        failure_pb2.FAILURE_KIND_INVALID_OUTPUT,
        failure_pb2.FAILURE_KIND_PERMANENT,
        failure_pb2.FAILURE_KIND_TRANSIENT,
    )
    found = outcome(lambda: http._output(call, status, answer), *(kinds[:1] if 200 <= status < 300 else kinds[1:]))
    if found is not None:
        json.loads(found)


@example({"a": "\ud800"}, ["a"])
@given(VALUES, st.lists(st.sampled_from(["a", "b", "0", "1", "-1"]), max_size=3))
def test_a_request_is_made_of_any_input_or_refused(value: Any, keys: list[str]) -> None:
    place = "${" + ".".join(["input", *keys]) + "}"
    invalid = failure_pb2.FAILURE_KIND_INVALID_INPUT
    body = outcome(lambda: http.render_body('{"x": ' + place + "}", value), invalid)
    if body is not None:
        json.loads(str(body).encode())
    url = outcome(lambda: http.render_url("http://localhost/" + place, value), invalid)
    if url is not None:
        str(url).encode("ascii")


@example(b'"\\ud800"\n')
@given(ANSWERS)
def test_an_input_is_one_line_for_a_program_or_refused(text: bytes) -> None:
    line = outcome(lambda: exec._one_line(text), failure_pb2.FAILURE_KIND_INVALID_INPUT)
    if line is not None:
        assert isinstance(line, bytes) and line.count(b"\n") == 1 and b"\r" not in line


@example(b"NaN")
@example(b"[" * 100_000)
@example(b"\xff")
@given(ANSWERS)
def test_what_a_program_prints_is_json_or_a_failure(text: bytes) -> None:
    outcome(lambda: json.dumps(base.parsed(text)), failure_pb2.FAILURE_KIND_INVALID_OUTPUT)
