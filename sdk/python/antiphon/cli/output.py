"""Writing: data to stdout, everything about it to stderr; colour only on a terminal and never with NO_COLOR.

What is shown may come from an agent, so no character of it controls the terminal, and half a surrogate pair, which has
no bytes, does not keep the rest from being shown: in text each becomes �, and JSON escapes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_WIDTH_OF_PIPES = 10_000  # a pipe has no width, and programs such as grep read whole lines
_STYLES = {
    "SUCCEEDED": "green",
    "ACTIVE": "green",
    "FAILED": "red",
    "DENIED": "red",
    "LOST": "red",
    "GONE": "red",
    "CANCELLED": "yellow",
    "SUSPENDED": "yellow",
    "DRAINING": "yellow",
    "WAITING": "yellow",
    "PAUSED": "yellow",
    "ESCALATED": "bold red",
    "QUARANTINED": "bold red",
    "RETURNED": "yellow",
    "RUNNING": "cyan",
    "OFFERED": "cyan",
    "READY": "blue",
    "PENDING": "dim",
    "SKIPPED": "dim",
}


_CONTROLS = [number for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"]
_BREAKS = {10: "\\n", 13: "\\r", 9: "\\t"}
_HALVES = range(0xD800, 0xE000)
_VISIBLE = dict.fromkeys((*_CONTROLS, *_HALVES), "\ufffd")
_ESCAPED = {number: f"\\u{number:04x}" for number in (*_CONTROLS, *_HALVES)}


class _Console(Console):
    """A console on which only what rich itself adds controls the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def data() -> Console:
    """The console for data."""
    return _made(stderr=False)


def notes() -> Console:
    """The console for everything that is not data."""
    return _made(stderr=True)


def _made(*, stderr: bool) -> Console:
    # Made anew each time: it looks at the stream and at NO_COLOR of this moment.
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        stderr=stderr,
        width=None if stream.isatty() else _WIDTH_OF_PIPES,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not stream.isatty(),
    )


def show(thing: RenderableType) -> None:
    """Data for people. On a pipe each row of a table is one line, without the blanks that fill its last column."""
    console = data()
    if console.is_terminal:
        console.print(thing)
        return
    with console.capture() as written:
        console.print(thing)
    print("\n".join(line.rstrip(" ") for line in written.get().split("\n")), end="", flush=True)


def note(text: str) -> None:
    """A sentence about the data."""
    notes().print(text)


def visible(text: str) -> str:
    """The text, with each character that could control a terminal, or has no bytes, as �."""
    return text.translate(_VISIBLE)


def show_line(text: str) -> None:
    """A line of data as it is, however long: a console would wrap it."""
    print(visible(text), flush=True)


def show_content(content: bytes) -> None:
    """A value of any media type: for a pipe as it is, for a terminal as text."""
    if sys.stdout.isatty():
        print(visible(content.decode("utf-8", "replace")), end="", flush=True)
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()


def show_json(value: object) -> None:
    """Data for programs: one JSON value, protobuf messages in proto JSON with the field names of the contracts."""
    print(json.dumps(to_json(value), indent=2, ensure_ascii=False).translate(_ESCAPED))


def show_json_line(value: object) -> None:
    """One of many JSON values, a line each."""
    print(json.dumps(to_json(value), ensure_ascii=False).translate(_ESCAPED), flush=True)


def to_json(value: object) -> Any:
    """The JSON form of messages, and of mappings and lists that hold them. Every field is there, so keys are stable."""
    if isinstance(value, Message):
        return MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    return value


def state(name: str) -> Text:
    """The name of a state, in its colour."""
    return Text(name, _STYLES.get(name, ""))


def table(columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A table without lines, as `ps` and `kubectl` print."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(one_line(cell) if isinstance(cell, str | Text) else cell for cell in row))
    return made


def one_line(text: str | Text) -> Text:
    """The text with its ends of lines and tabs as \\n, \\r and \\t: for what has one line, or a place in one."""
    if isinstance(text, str):
        return Text(text.translate(_BREAKS))
    for breaking, shown in _BREAKS.items():
        if chr(breaking) in text.plain:
            text = Text(shown).join(text.split(chr(breaking), allow_blank=True))
    return text


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    made = Table.grid(padding=(0, 2))
    for name, value in pairs:
        made.add_row(Text(name, "bold"), value)
    return made


def silent() -> Console:
    """A console that is no terminal and shows nothing, for output that is JSON alone."""
    return Console(quiet=True, force_terminal=False)
