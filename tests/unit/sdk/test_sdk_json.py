"""Values as JSON: what the library itself would write and read, and no more than travels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from antiphon import _json
from hypothesis import given
from hypothesis import strategies as st

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_VALUES: Any = st.recursive(_LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=20)
_AROUND = st.text(alphabet=" \t\r\n\v,]}0x\ufeff", max_size=3)


def _library(text: str) -> Any:
    try:
        return json.JSONDecoder().decode(text)
    except ValueError as error:
        return str(error)


@given(value=_VALUES)
def test_values_are_written_as_the_library_does(value: Any) -> None:
    assert _json.dumps(value).decode() == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@given(value=_VALUES, before=_AROUND, after=_AROUND, cut=st.integers(min_value=0, max_value=3))
def test_texts_are_read_as_the_library_does(value: Any, before: str, after: str, cut: int) -> None:
    spelled = json.dumps(value)
    text = before + spelled[: len(spelled) - cut] + after
    try:
        found = _json.loads(text.encode())
    except ValueError as error:
        found = str(error)
    expected = _library(text)
    assert found == expected and type(found) is type(expected)


def test_what_has_no_end_or_no_form_is_refused() -> None:
    within: list[Any] = []
    within.append(within)
    with pytest.raises(ValueError, match="nested too deeply"):
        _json.dumps(within)
    assert _json.dumps([[]]) == b"[[]]", "and the next value is written as ever"
    for number in (float("nan"), [float("inf")]):
        with pytest.raises(ValueError, match="not JSON compliant"):
            _json.dumps(number)
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        _json.dumps({"a": object()})
    for text in (b"NaN", b"[Infinity]"):
        with pytest.raises(ValueError, match="is not JSON"):
            _json.loads(text)
