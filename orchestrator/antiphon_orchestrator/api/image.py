"""The contracts as data: what is true of each method, and whether a message keeps its rules.

Read from `contracts.binpb`, a descriptor set that `protos/generate.py` writes; nothing is listed by hand. The image has
a pool of its own, because the generated classes have their validation rules stripped: what a quick look leaves in doubt
is parsed a second time with the pool's class and checked by the library.
Violations say where and which rule, never the value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from antiphon.options.v1 import options_pb2
from antiphon.options.v1.options_pb2 import Idempotency, IdentityKind, Listener
from antiphon.v1 import error_pb2
from antiphon.v1.error_pb2 import ErrorReason
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from antiphon_orchestrator.policy import Action

from .errors import ApiError, Violation, request_invalid
from .rules import Shape, Shapes
from .times import Times

if TYPE_CHECKING:
    import protovalidate


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """What the contracts say of one method. `path` is /package.Service/Method; `action` is None when no policy is asked
    for the call as a whole."""

    path: str
    service: str
    name: str
    kinds: frozenset[IdentityKind.ValueType]
    action: Action | None
    listener: Listener.ValueType
    idempotency: Idempotency.ValueType
    errors: frozenset[ErrorReason.ValueType]
    request_streaming: bool
    response_streaming: bool
    request_class: type[Message]
    shape: Shape

    @property
    def unary(self) -> bool:
        return not (self.request_streaming or self.response_streaming)


class Image:
    """The methods of every service of ours by path, and the rules of their messages."""

    def __init__(self, data: bytes) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(data)
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        self._pool = pool
        self._times = Times()
        shapes = self._shapes = _shapes(pool)
        self._items: dict[type[Message], Shape] = {}
        self.methods: Mapping[str, Method] = MappingProxyType(
            {method.path: method for file in files.file for method in _methods(file, pool, shapes)}
        )

    @classmethod
    def load(cls) -> Image:
        """The image that ships with the server."""
        return cls(resources.files(__package__).joinpath("contracts.binpb").read_bytes())

    def parse(self, method: Method, generated: Callable[[bytes], Message], data: bytes) -> Message:
        """A message as the generated class, with every rule kept. Raises `ApiError` (REQUEST_INVALID)."""
        message = decoded(generated, data)
        if not method.shape.keeps(message):
            self.check(method, data)
        return message

    def check_item(self, item: Message) -> None:
        """Every rule of an item of a message that is answered item by item. Raises `ApiError` (REQUEST_INVALID)."""
        kind = type(item)
        if (shape := self._items.get(kind)) is None:
            shape = self._items[kind] = self._shapes.of(self._pool.FindMessageTypeByName(kind.DESCRIPTOR.full_name))
        if not shape.keeps(item) and (found := self.broken(item)):
            raise request_invalid(found)

    def check(self, method: Method, data: bytes) -> Message:
        """The request in the pool's own class, with every rule kept. Raises `ApiError` (REQUEST_INVALID)."""
        message = decoded(method.request_class.FromString, data)
        if found := self._violations(message):
            raise request_invalid(found)
        return message

    def broken(self, message: Message) -> list[Violation]:
        """Every rule that a message of ours breaks which has not come in a call of its own."""
        known = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(message.DESCRIPTOR.full_name))
        return self._violations(known.FromString(message.SerializeToString()))

    def _violations(self, message: Message) -> list[Violation]:
        """Times first: the library cannot compare what is none."""
        found = [Violation(path, wrong) for path, wrong in self._times.wrong(message)]
        return found or [_violation(item.proto) for item in _validator().collect_violations(message)]


@functools.cache
def _validator() -> protovalidate.Validator:
    """The library takes 12 MB, and most servers are never asked for what breaks the contract."""
    import protovalidate

    return protovalidate.Validator()


def decoded(parse: Callable[[bytes], Message], data: bytes) -> Message:
    """The message, whose rules nobody has looked at. Raises `ApiError` (REQUEST_INVALID) for bytes that are none."""
    try:
        return parse(data)
    except DecodeError:
        raise undecodable() from None


def undecodable() -> ApiError:
    """Bytes that are no message of the type."""
    return request_invalid([Violation("request", "is not a message of the method's request type")])


def _shapes(pool: descriptor_pool.DescriptorPool) -> Shapes:
    """Reads rules with the image's own option types: the default pool does not know buf.validate."""

    def reader(extension: Any) -> Callable[[Any], Any]:
        options: Any = message_factory.GetMessageClass(extension.containing_type)
        return lambda of: options.FromString(of.GetOptions().SerializeToString()).Extensions[extension]

    rules = reader(pool.FindExtensionByName("buf.validate.field"))
    choice = reader(pool.FindExtensionByName("buf.validate.oneof"))
    whole = reader(pool.FindExtensionByName("buf.validate.message"))
    return Shapes(rules, lambda oneof: bool(choice(oneof).required), lambda type: bool(whole(type).cel))


def _methods(
    file: descriptor_pb2.FileDescriptorProto, pool: descriptor_pool.DescriptorPool, shapes: Shapes
) -> list[Method]:
    methods = []
    for service in file.service:
        service_name = f"{file.package}.{service.name}"
        for method in service.method:
            # The default pool knows our options, since their generated modules are imported; so they parse as values.
            if not method.options.HasExtension(options_pb2.access):
                continue
            access = method.options.Extensions[options_pb2.access]
            request = pool.FindMessageTypeByName(method.input_type.removeprefix("."))
            methods.append(
                Method(
                    f"/{service_name}/{method.name}",
                    service_name,
                    method.name,
                    frozenset(access.kinds),
                    Action(access.action) if access.action else None,
                    access.listener or options_pb2.LISTENER_MUTUAL_TLS,
                    access.idempotency,
                    frozenset(method.options.Extensions[error_pb2.errors]),
                    method.client_streaming,
                    method.server_streaming,
                    message_factory.GetMessageClass(request),
                    shapes.of(request),
                )
            )
    return methods


def _violation(found: Any) -> Violation:
    path = ""
    for element in found.field.elements:
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            key = element.subscript.value
            path += f'["{key}"]' if isinstance(key, str) else f"[{key}]"
    return Violation(path, f"the key {found.message}" if found.for_key else found.message)
