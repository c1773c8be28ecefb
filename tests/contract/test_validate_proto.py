"""The vendored validate.proto says of every option it declares what the validator's own copy says.

A wrong number or type there would fail nowhere: the rule would silently not be enforced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from protovalidate._gen.buf.validate import validate_pb


@pytest.fixture(scope="module")
def ours(image: FileDescriptorSet) -> FileDescriptorProto:
    """Our trimmed file."""
    return next(file for file in image.file if file.name == "buf/validate/validate.proto")


@pytest.fixture(scope="module")
def published() -> FileDescriptorProto:
    """The whole file, inside the protovalidate package."""
    return FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())


def declarations(file: FileDescriptorProto) -> dict[str, tuple[object, ...]]:
    """Every field and extension by full name, with all that decides how its bytes are read."""
    found: dict[str, tuple[object, ...]] = {}
    for extension in file.extension:
        found[f"extension {extension.extendee} {extension.name}"] = shape(extension, None)
    for path, message in messages(file.message_type, file.package):
        for field in message.field:
            found[f"{path}.{field.name}"] = shape(field, message)
    return found


def messages(some: Iterable[DescriptorProto], prefix: str) -> Iterator[tuple[str, DescriptorProto]]:
    for message in some:
        path = f"{prefix}.{message.name}"
        yield path, message
        yield from messages(message.nested_type, path)


def shape(field: FieldDescriptorProto, message: DescriptorProto | None) -> tuple[object, ...]:
    oneof = message.oneof_decl[field.oneof_index].name if message and field.HasField("oneof_index") else ""
    return field.number, field.type, field.label, field.type_name, oneof


def test_every_vendored_declaration_equals_the_published_one(
    ours: FileDescriptorProto, published: FileDescriptorProto
) -> None:
    mine, theirs = declarations(ours), declarations(published)
    assert mine, "the image holds no declarations"
    assert {name: theirs.get(name) for name in mine} == mine


def test_package_and_syntax_are_the_published_ones(ours: FileDescriptorProto, published: FileDescriptorProto) -> None:
    assert (ours.package, ours.syntax) == (published.package, published.syntax)
