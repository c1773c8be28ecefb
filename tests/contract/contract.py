"""The contracts as the generated cases need them: methods, rules and the registry of errors, from the image alone.

A reading of its own, independent of the servers': what they read wrongly must not be read wrongly here too. No method,
field or reason is named in this file, so a new one is met without a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, OneofDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


@dataclass(frozen=True)
class Reason:
    """One row of the error registry. `code` is the number of a gRPC status code."""

    name: str
    code: int
    retry: bool
    keys: frozenset[str]
    universal: bool


@dataclass(frozen=True, eq=False)
class Method:
    """One RPC. `kinds`, `listener` and `idempotency` as the options spell them, without prefix, in lower case."""

    path: str
    request: Descriptor
    response: Descriptor
    sends_stream: bool
    answers_stream: bool
    kinds: tuple[str, ...]
    listener: str
    idempotency: str
    errors: frozenset[str]

    @property
    def unary(self) -> bool:
        return not (self.sends_stream or self.answers_stream)


class Contract:
    """An image that is read. `image` is a serialised FileDescriptorSet; the servers' own by default."""

    def __init__(self, image: bytes | None = None) -> None:
        data = (files("antiphon_orchestrator") / "api/contracts.binpb").read_bytes() if image is None else image
        self.files = FileDescriptorSet.FromString(data)
        self.pool = descriptor_pool.DescriptorPool()
        for file in self.files.file:
            self.pool.Add(file)
        self.error = self.pool.FindMessageTypeByName("antiphon.v1.Error")
        self._reasons_by_number: dict[int, str] = {}
        self.reasons: Mapping[str, Reason] = {reason.name: reason for reason in self._reasons()}
        self.methods: Mapping[str, Method] = {method.path: method for method in self._methods()}

    def reason_of(self, number: int) -> str:
        """The name of a reason that came as a value of the enum; empty for one that is unknown."""
        return self._reasons_by_number.get(number, "")

    def rules(self, field: FieldDescriptor) -> Any:
        """The buf.validate rules of a field; all of them unset when it has none."""
        return self._option(field, "buf.validate.field")

    def required(self, oneof: OneofDescriptor) -> bool:
        """Whether one of the fields must be set."""
        return bool(self._option(oneof, "buf.validate.oneof").required)

    def whole(self, message: Descriptor) -> bool:
        """Whether a message has rules over several of its fields."""
        return bool(self._option(message, "buf.validate.message").cel)

    def sensitive(self, field: FieldDescriptor) -> bool:
        """Whether a field holds what no log may show: a secret, or content of users."""
        return bool(self._option(field, "antiphon.options.v1.label"))

    def message(self, descriptor: Descriptor, data: bytes = b"") -> Any:
        """A message, parsed by a class that knows every option."""
        return message_factory.GetMessageClass(descriptor).FromString(data)

    def messages(self) -> Iterator[Descriptor]:
        """Every message of every package of ours, nested ones too, but no entries of maps."""
        for file in self.files.file:
            if file.package.startswith("antiphon."):
                for message in file.message_type:
                    yield from _with_nested(self.pool.FindMessageTypeByName(f"{file.package}.{message.name}"))

    def _methods(self) -> Iterator[Method]:
        for file in self.files.file:
            for service in file.service:
                for method in self.pool.FindServiceByName(f"{file.package}.{service.name}").methods:
                    yield self._method(method)

    def _method(self, method: MethodDescriptor) -> Method:
        access = self._option(method, "antiphon.options.v1.access")
        named = access.DESCRIPTOR.fields_by_name

        def word(field: str, number: int) -> str:
            enum = named[field].enum_type
            name: str = enum.values_by_number[number].name
            return name.removeprefix(enum.values[0].name.removesuffix("UNSPECIFIED")).lower()

        listener = word("listener", access.listener)
        return Method(
            f"/{method.containing_service.full_name}/{method.name}",
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
            tuple(word("kinds", kind) for kind in access.kinds),
            "mutual_tls" if listener == "unspecified" else listener,
            word("idempotency", access.idempotency),
            frozenset(self._reasons_by_number[number] for number in self._option(method, "antiphon.v1.errors")),
        )

    def _reasons(self) -> Iterator[Reason]:
        for value in self.pool.FindEnumTypeByName("antiphon.v1.ErrorReason").values[1:]:
            spec = self._option(value, "antiphon.options.v1.error")
            name = value.name.removeprefix("ERROR_REASON_")
            remedies = spec.DESCRIPTOR.fields_by_name["remedy"].enum_type
            retry = remedies.values_by_name["REMEDY_RETRY"].number
            self._reasons_by_number[value.number] = name
            yield Reason(name, spec.code, spec.remedy == retry, frozenset(spec.metadata), spec.universal)

    def _option(self, descriptor: Any, name: str) -> Any:
        # Of a pool made at run time: the default pool knows none of the validation rules.
        extension: Any = self.pool.FindExtensionByName(name)
        options: Any = message_factory.GetMessageClass(extension.containing_type)
        return options.FromString(descriptor.GetOptions().SerializeToString()).Extensions[extension]


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map: on the wire, a list of entries."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_own(message: Descriptor | None) -> bool:
    """Whether a message is one of ours, so that its fields may carry rules and options."""
    return message is not None and message.full_name.startswith("antiphon.") and not message.GetOptions().map_entry


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
        for nested in message.nested_types:
            yield from _with_nested(nested)
