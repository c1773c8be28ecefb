"""Adds golden bytes for what has none: `python tools/golden.py`. It never changes or removes a line.

`tests/contract/golden/wire.jsonl` holds encodings of every message of ours, one a line: its name, the bytes, and what
they say. Today's code must read the same out of them and write the same again (tests/contract/test_golden.py), so a
number or a type that changes is noticed, also where a program of today would not meet it. A line is added for a message
that has none, and for one with a field that no line holds.

A line that is wrong because the contract was changed on purpose, before its release, is deleted by hand first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, NamedTuple

import antiphon
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

PATH = Path(__file__).resolve().parent.parent / "tests/contract/golden/wire.jsonl"
_DEEPEST = 2


class Line(NamedTuple):
    """One line: full name of the message, its bytes in hexadecimal, and its content in protobuf's JSON."""

    message: str
    wire: str
    says: Any


def lines(text: str) -> list[Line]:
    """What a file holds."""
    return [Line(**json.loads(line)) for line in text.splitlines()]


@cache
def messages() -> dict[str, Descriptor]:
    """Every message of the generated code by full name, nested ones too, entries of maps not.

    Those of antiphon.conformance are left out: no program keeps them, and they change with the cases.
    """
    found: dict[str, Descriptor] = {}
    for module in walk_packages(antiphon.__path__, "antiphon."):
        if module.name.endswith("_pb2") and not module.name.startswith("antiphon.conformance."):
            for message in import_module(module.name).DESCRIPTOR.message_types_by_name.values():
                found |= {nested.full_name: nested for nested in _with_nested(message)}
    return dict(sorted(found.items()))


def complaint(line: Line) -> str | None:
    """What is wrong with a line for today's code; None when nothing is."""
    descriptor = messages().get(line.message)
    if descriptor is None:
        return "there is no such message"
    try:
        message = message_factory.GetMessageClass(descriptor).FromString(bytes.fromhex(line.wire))
    except DecodeError:
        return "the bytes cannot be read"
    if unknown := next(_unknown(message), None):
        return f"a field of {unknown} is unknown"
    if message.SerializeToString(deterministic=True).hex() != line.wire:
        return "the bytes are written otherwise"
    if (says := said(message)) != line.says:
        return f"the bytes say something else: {says}"
    return None


def said(message: Any) -> Any:
    """The content of a message, as JSON-ready data; options of descriptors do not occur."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def missing(present: Iterable[Line]) -> Iterator[Line]:
    """Lines for the fields that no line holds yet, and for the messages without fields."""
    known = list(present)
    for name, descriptor in messages().items():
        own = [line for line in known if line.message == name]
        held = {key for line in own for key in line.says}
        turns = max((len(oneof.fields) for oneof in descriptor.oneofs), default=1)
        for turn in range(turns):
            message = filled(descriptor, turn)
            fields = {field.name for field, _ in message.ListFields()}
            if fields - held or not (own or fields):
                held |= fields
                line = Line(name, message.SerializeToString(deterministic=True).hex(), said(message))
                own.append(line)
                yield line


def filled(descriptor: Descriptor, turn: int, depth: int = 0) -> Any:
    """A message with every field set, always the same; of each oneof the member whose turn it is."""
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        group = field.containing_oneof
        if group is not None and group.fields[turn % len(group.fields)] is not field:
            continue
        if entry := _entry(field):
            key, value = (entry.fields_by_name[name] for name in ("key", "value"))
            if value.message_type is None:
                getattr(message, field.name)[_scalar(key)] = _scalar(value)
            else:
                getattr(message, field.name)[_scalar(key)].CopyFrom(filled(value.message_type, 0, depth + 1))
        elif field.message_type is not None:
            if depth < _DEEPEST:
                inner = filled(field.message_type, 0, depth + 1)
                if field.is_repeated:
                    getattr(message, field.name).append(inner)
                else:
                    getattr(message, field.name).CopyFrom(inner)
                    getattr(message, field.name).SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend([_scalar(field)] * 2)
        else:
            setattr(message, field.name, _scalar(field))
    return message


def _scalar(field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = f"{field.name} é"
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return field.number + 0.5
    signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    # Times and durations that JSON can say are not negative.
    return -field.number if signed and field.full_name.startswith("antiphon.") else 1000 + field.number


def _entry(field: FieldDescriptor) -> Descriptor | None:
    """The type of a map's entries; None for any other field."""
    kind = field.message_type
    return kind if kind is not None and kind.GetOptions().map_entry else None


def _unknown(message: Any) -> Iterator[str]:
    if len(UnknownFieldSet(message)):
        yield message.DESCRIPTOR.full_name
    for field, value in message.ListFields():
        if field.message_type is not None and _entry(field) is None:
            for inner in value if field.is_repeated else (value,):
                yield from _unknown(inner)


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
        for nested in message.nested_types:
            yield from _with_nested(nested)


def main() -> int:
    """Append what is missing; 1, with nothing written, when a line that is there no longer holds."""
    present = lines(PATH.read_text()) if PATH.exists() else []
    wrong = [f"{line.message}: {what}" for line in present if (what := complaint(line))]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        print("golden lines are never changed: old bytes must stay readable", file=sys.stderr)
        return 1
    with PATH.open("a") as file:
        for line in missing(present):
            file.write(json.dumps(line._asdict(), separators=(",", ":"), ensure_ascii=False) + "\n")
            print(f"added {line.message}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
