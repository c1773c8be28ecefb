"""Mappings: JSON text whose strings may hold ${CEL}, as a task's input and a graph's output are written.

A string that is one ${…} and nothing else becomes its value; in any other string each ${…} becomes text: strings as
they are, everything else as JSON. $${ stands for the characters ${. Property names are taken as they are.

A mapping is kept as a flat list of JSON fragments and expressions, so that rendering joins text and never builds a
tree; the size is checked while it grows, because a few references can ask for much more than a payload may hold.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .expression import Expression, ExpressionInvalid, Problem
from .mistakes import Code
from .paths import Lookup, origins_of, source_of
from .syntax import Path
from .values import MAX_INLINE_BYTES, Unusable, decode_json, encode_json, in_utf8, inline_bytes

MAX_EXPRESSIONS = 256
_OPENING = re.compile(r"\$\$\{|\$\{")
# What may hold a brace that does not count: raw strings, strings, comments; then the braces themselves.
_TOKEN = re.compile(
    r'''(?:[rR][bB]?|[bB][rR])(?:"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|"[^"\n]*"|'[^'\n]*')'''
    r'''|"""(?:\\[\s\S]|[^\\])*?"""|\'\'\'(?:\\[\s\S]|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*\''''
    r"""|//[^\n]*|[{}]"""
)


class MappingInvalid(Exception):
    """The mapping is refused; all problems found in it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a value: `whole` keeps its type, otherwise it becomes text inside a string."""

    expression: Expression
    whole: bool


class Mapping:
    """A compiled mapping. `references` are the paths of all its expressions, sorted. `source` is set when the mapping
    is nothing but one whole source, such as ${tasks.a.output}: then the payload can pass unparsed."""

    __slots__ = ("origins", "parts", "references", "source")

    def __init__(self, text: str) -> None:
        """Compiles; raises MappingInvalid."""
        builder = _Builder()
        try:
            _check_names(text)
            builder.add(decode_json(text), "")
        except Unusable as error:
            raise MappingInvalid([Problem(Code.VALUE, str(error))]) from None
        except RecursionError:
            raise MappingInvalid([Problem(Code.VALUE, "is nested too deeply")]) from None
        self.parts = builder.parts()
        slots = [part for part in self.parts if isinstance(part, Slot)]
        if len(slots) > MAX_EXPRESSIONS:
            builder.problems.append(Problem(Code.VALUE, f"holds more than {MAX_EXPRESSIONS} expressions"))
        if builder.problems:
            raise MappingInvalid(builder.problems)
        self.references = tuple(sorted({path for slot in slots for path in slot.expression.references}))
        self.origins = origins_of(self.references)
        self.source: Path | None = None
        if len(self.parts) == 1 and slots and slots[0].whole:
            pure = slots[0].expression.pure
            if pure is not None and pure == source_of(pure):
                self.source = pure

    def render(self, lookup: Lookup) -> bytes:
        """The JSON text, compact, in UTF-8, at most 65,536 bytes. Raises Unusable."""
        texts: list[str] = []
        length = 0
        for part in self.parts:
            text = part if isinstance(part, str) else _fill(part, lookup)
            length += len(text)
            texts.append(text)
            if length > MAX_INLINE_BYTES:
                break
        return inline_bytes("".join(texts))


def _fill(slot: Slot, lookup: Lookup) -> str:
    try:
        selection = slot.expression.selection  # asked for here, since expressions are not compiled and this is
        value = slot.expression.evaluate(lookup) if selection is None else selection.value(lookup)
        if slot.whole:
            return encode_json(value)
        return encode_json(value if isinstance(value, str) else encode_json(value))[1:-1]
    except Unusable as error:
        raise Unusable(f"{shown(slot.expression.text)} {error}") from None


def shown(text: str) -> str:
    """An expression as a message shows it."""
    return "${" + (text if len(text) <= 60 else text[:59] + "…") + "}"


class _Builder:
    """Flattens a JSON value into fragments and slots; neighbouring fragments become one."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._parts: list[str | Slot] = []
        self._text: list[str] = []

    def parts(self) -> tuple[str | Slot, ...]:
        """All that was added so far."""
        self._end_text()
        return tuple(self._parts)

    def add(self, value: object, pointer: str) -> None:
        if isinstance(value, str):
            self._add_string(value, pointer)
        elif isinstance(value, list):
            self._add_text("[")
            for place, item in enumerate(value):
                self._add_text("," if place else "")
                self.add(item, f"{pointer}/{place}")
            self._add_text("]")
        elif isinstance(value, dict):
            self._add_text("{")
            for place, (name, item) in enumerate(value.items()):
                if _OPENING.search(name):
                    self._problem(Code.EXPRESSION, pointer, f"the property name {name!r} cannot hold an expression")
                self._add_text(("," if place else "") + encode_json(name) + ":")
                self.add(item, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
            self._add_text("}")
        else:
            self._add_text(encode_json(value))

    def _add_text(self, text: str) -> None:
        self._text.append(text)

    def _add_slot(self, slot: Slot) -> None:
        self._end_text()
        self._parts.append(slot)

    def _end_text(self) -> None:
        if self._text:
            self._parts.append("".join(self._text))
            self._text.clear()

    def _add_string(self, text: str, pointer: str) -> None:
        pieces = list(self._pieces(text, pointer))
        if len(pieces) == 1 and isinstance(pieces[0], Expression):
            self._add_slot(Slot(pieces[0], whole=True))
            return
        self._add_text('"')
        for piece in pieces:
            if isinstance(piece, str):
                self._add_text(encode_json(piece)[1:-1])
            else:
                self._add_slot(Slot(piece, whole=False))
        self._add_text('"')

    def _pieces(self, text: str, pointer: str) -> Iterator[str | Expression]:
        position = 0
        while opening := _OPENING.search(text, position):
            if opening.start() > position:
                yield text[position : opening.start()]
            position = opening.end()
            if opening[0] == "$${":
                yield "${"
                continue
            end = _closing(text, position)
            if end is None:
                self._problem(Code.EXPRESSION, pointer, f"the ${{ at character {opening.start() + 1} has no closing }}")
                return
            expression = self._compile(text[position:end], pointer)
            if expression is not None:
                yield expression
            position = end + 1
        if position < len(text):
            yield text[position:]

    def _compile(self, text: str, pointer: str) -> Expression | None:
        try:
            return Expression(text)
        except ExpressionInvalid as invalid:
            for problem in invalid.problems:
                self._problem(problem.code, pointer, f"{shown(text)} {problem.message}")
            return None

    def _problem(self, code: Code, pointer: str, message: str) -> None:
        self.problems.append(Problem(code, in_utf8(f"{pointer}: {message}" if pointer else message)))


def _closing(text: str, position: int) -> int | None:
    """Index of the brace that closes an expression which begins at `position`."""
    depth = 1
    for token in _TOKEN.finditer(text, position):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                return token.start()
    return None


def _check_names(text: str) -> None:
    """Refuses an object with the same name twice, of which JSON readers silently keep one."""

    def unique(pairs: list[tuple[str, object]]) -> None:
        for name, times in Counter(name for name, _ in pairs).items():
            if times > 1:
                raise Unusable(f"has the property {name!r} {times} times in one object")

    try:
        json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return  # decode_json says what is wrong
