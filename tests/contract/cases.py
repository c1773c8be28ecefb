"""Cases for every RPC, made of the contracts alone: what is called, by whom, how, and what must come of it. Pure.

A case is data: a few calls that belong together and what is expected of their answers. Nothing names a method, a field
or a kind of identity, so a new RPC, rule or access option changes the cases by itself.

One thing is looser, by design of the sidecar: on the stream of an agent's socket, a mistake in an item hurts that item,
not the stream (protocol.md, "Agents and their sidecar"). There a broken rule is refused with its path, or the stream
goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.contract.contract import Contract, Method, is_own
from tests.contract.values import Facts, Values

MESSAGE_LIMIT = 4 << 20
"""Bytes of a message, of the contracts' rules: whatever crosses a process fits them."""

SOCKET_LIMIT = 16 << 20
"""The same on an agent's socket, where a message may hold several large values."""

KINDS = ("client", "operator", "sidecar", "orchestrator")
"""The kinds of identity that show a certificate; an agent shows none, its socket says who it is."""

NOBODY, FOREIGN, EXPIRED, EXPIRING = "nobody", "foreign", "expired", "expiring"
"""Who else may call: without a certificate, with one of a foreign authority, with one that has expired before the
connection was made, and with one that expires while it is open."""

_UNKNOWN_FIELD = 100_007
_UNKNOWN_VALUE = 2_000_003


class Kind(StrEnum):
    """What a case is about."""

    VALID = "valid"
    RULE = "rule"
    CERTIFICATE = "certificate"
    ACCESS = "access"
    DEADLINE = "deadline"
    SIZE = "size"
    REPEATED = "repeated"
    REUSED = "reused"
    UNKNOWN = "unknown"


class Expected(StrEnum):
    """What must come of a case.

    ACCEPTED     each answer is OK, or a refusal that the method declares, or a denial of policy
    SERVED       the same, and not every one is a denial of policy
    REFUSED      each is refused for `reason`, and with `path` in its field violations when there is one
    TOLERATED    accepted, or refused so
    UNREACHED    there is no connection
    LATE         DEADLINE_EXCEEDED, whoever notices first
    TOO_LARGE    RESOURCE_EXHAUSTED, whether we say so or gRPC, unread
    EQUAL        accepted, and the answers equal
    DIFFERENT    of three answers, when the last is accepted, the second is refused for `reason`
    """

    ACCEPTED = "accepted"
    SERVED = "served"
    REFUSED = "refused"
    TOLERATED = "tolerated"
    UNREACHED = "unreached"
    LATE = "late"
    TOO_LARGE = "too large"
    EQUAL = "equal"
    DIFFERENT = "different"


@dataclass(frozen=True)
class Call:
    """One call: the one message that is sent, serialised, who sends it, and to which listener.

    timeout  of a unary call; None sends none
    """

    identity: str
    listener: str
    data: bytes
    timeout: float | None = 10.0


@dataclass(frozen=True)
class Case:
    """Calls that belong together, in their order."""

    method: Method
    kind: Kind
    name: str
    calls: tuple[Call, ...]
    expected: Expected
    reason: str = ""
    path: str = ""


class Cases:
    """The cases of a contract. `facts` by listener, for what exists there."""

    def __init__(self, contract: Contract, facts: dict[str, Facts]) -> None:
        self._contract = contract
        self._facts = facts

    def of(self, method: Method, kind: Kind) -> list[Case]:
        """Every case of a kind; none when it does not apply to the method."""
        return list(_MAKERS[kind](self, method))

    def _values(self, method: Method, tag: str) -> Values:
        return Values(self._contract, self._facts.get(method.listener, {}), f"{method.path} {tag}")

    def _usual(self, method: Method) -> str:
        """Somebody who may call."""
        return next((kind for kind in KINDS if kind in method.kinds), NOBODY)

    def _call(self, method: Method, message: Any, **options: Any) -> Call:
        data = message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)
        return Call(**{"identity": self._usual(method), "listener": method.listener, "data": data, **options})

    def _valid(self, method: Method) -> Iterator[Case]:
        callers = [kind for kind in KINDS if kind in method.kinds] or [NOBODY]
        for name, full in (("smallest", False), ("every field", True)):
            message = self._values(method, f"valid {name}").valid(method.request, full=full)
            calls = tuple(self._call(method, message, identity=caller) for caller in callers)
            yield Case(method, Kind.VALID, name, calls, Expected.SERVED)

    def _rule(self, method: Method) -> Iterator[Case]:
        tolerated = method.listener == "agent_socket" and not method.unary
        expected = Expected.TOLERATED if tolerated else Expected.REFUSED
        for broken in self._values(method, "rule").broken(method.request):
            call = self._call(method, broken.message)
            name = f"{broken.path}: {broken.rule}"
            yield Case(method, Kind.RULE, name, (call,), expected, "REQUEST_INVALID", broken.path)

    def _certificate(self, method: Method) -> Iterator[Case]:
        message = self._values(method, "certificate").valid(method.request)
        if method.listener == "mutual_tls":
            for who in (NOBODY, FOREIGN, EXPIRED):
                call = self._call(method, message, identity=who)
                yield Case(method, Kind.CERTIFICATE, who, (call,), Expected.UNREACHED)
            call = self._call(method, message, identity=EXPIRING)
            yield Case(method, Kind.CERTIFICATE, EXPIRING, (call,), Expected.REFUSED, "CERTIFICATE_EXPIRED")
            call = self._call(method, message, identity=NOBODY, listener="join")
            yield Case(method, Kind.CERTIFICATE, "join listener", (call,), Expected.REFUSED, "CERTIFICATE_REQUIRED")

    def _access(self, method: Method) -> Iterator[Case]:
        message = self._values(method, "access").valid(method.request)
        for kind in KINDS:
            call = self._call(method, message, identity=kind, listener="mutual_tls")
            if method.listener == "agent_socket":
                yield Case(method, Kind.ACCESS, kind, (call,), Expected.REFUSED, "METHOD_UNKNOWN")
            elif kind in method.kinds:
                yield Case(method, Kind.ACCESS, kind, (call,), Expected.ACCEPTED)
            else:
                yield Case(method, Kind.ACCESS, kind, (call,), Expected.REFUSED, "ACCESS_DENIED")
        call = self._call(method, message, identity=NOBODY, listener="agent_socket")
        if method.listener == "agent_socket":
            yield Case(method, Kind.ACCESS, "agent", (call,), Expected.ACCEPTED)
        else:
            yield Case(method, Kind.ACCESS, "agent", (call,), Expected.REFUSED, "METHOD_UNKNOWN")

    def _deadline(self, method: Method) -> Iterator[Case]:
        message = self._values(method, "deadline").valid(method.request)
        if method.unary:
            call = self._call(method, message, timeout=None)
            yield Case(method, Kind.DEADLINE, "missing", (call,), Expected.REFUSED, "DEADLINE_REQUIRED")
            call = self._call(method, message, timeout=-1.0)
            yield Case(method, Kind.DEADLINE, "too short", (call,), Expected.LATE)

    def _size(self, method: Method) -> Iterator[Case]:
        # An unknown field makes any message as large as need be, and breaks no rule of its own.
        message = self._values(method, "size").valid(method.request).SerializeToString()
        limit = SOCKET_LIMIT if method.listener == "agent_socket" else MESSAGE_LIMIT
        for name, length in (("just", limit - len(message)), ("much", limit * 3 // 2)):
            call = self._call(method, message + _unknown_text(length))
            # A sidecar leaves sizes to gRPC, which knows no reasons.
            if name == "just" and method.listener != "agent_socket":
                yield Case(method, Kind.SIZE, name, (call,), Expected.REFUSED, "MESSAGE_TOO_LARGE")
            else:
                yield Case(method, Kind.SIZE, name, (call,), Expected.TOO_LARGE)

    def _repeated(self, method: Method) -> Iterator[Case]:
        if method.idempotency in ("read", "natural", "request_id"):
            call = self._call(method, self._values(method, "repeated").valid(method.request))
            yield Case(method, Kind.REPEATED, method.idempotency, (call, call), Expected.EQUAL)

    def _reused(self, method: Method) -> Iterator[Case]:
        if method.idempotency != "request_id":
            return
        names = [name for name, _ in self._values(method, "").others(method.request)]
        for index, name in enumerate(names):
            values, fresh = self._values(method, f"reused {name}"), self._values(method, f"fresh {name}")
            other = [message for _, message in values.others(method.request)][index]
            another = [message for _, message in fresh.others(method.request)][index]
            calls = tuple(self._call(method, message) for message in (values.valid(method.request), other, another))
            yield Case(method, Kind.REUSED, name, calls, Expected.DIFFERENT, "REQUEST_ID_REUSED")

    def _unknown(self, method: Method) -> Iterator[Case]:
        values = self._values(method, "unknown")
        message = values.valid(method.request).SerializeToString(deterministic=True)
        for name, extra in (("number", _varint(_UNKNOWN_FIELD << 3) + _varint(7)), ("text", _unknown_text(40))):
            call = self._call(method, message + extra)
            yield Case(method, Kind.UNKNOWN, f"field, a {name}", (call,), Expected.ACCEPTED)
        nested = values.valid(method.request, full=True)
        plain = nested.SerializeToString(deterministic=True)
        _merge_everywhere(nested, _varint(_UNKNOWN_FIELD << 3) + _varint(7))
        if nested.SerializeToString(deterministic=True) != plain:
            call = self._call(method, nested)
            yield Case(method, Kind.UNKNOWN, "field in every message", (call,), Expected.ACCEPTED)
        for path, message in self._unknown_values(method.request, values, ()):
            yield Case(method, Kind.UNKNOWN, f"value of {path}", (self._call(method, message),), Expected.ACCEPTED)

    def _unknown_values(
        self, descriptor: Descriptor, values: Values, inside: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        """Messages with a value of an enum that nobody knows yet, wherever no rule forbids it."""
        inside = (*inside, descriptor.full_name)
        for field in descriptor.fields:
            if field.enum_type is not None:
                rules = self._contract.rules(field)
                closed = rules.repeated.items.enum if field.is_repeated else rules.enum
                if not closed.defined_only:
                    message = values.valid(descriptor)
                    _put(message, field, _UNKNOWN_VALUE)
                    yield field.name, message
            elif is_own(field.message_type) and field.message_type.full_name not in inside:
                for path, inner in self._unknown_values(field.message_type, values, inside):
                    message = values.valid(descriptor)
                    if field.is_repeated:
                        del getattr(message, field.name)[:]
                    _put(message, field, inner)
                    yield f"{field.name}.{path}", message


_MAKERS = {
    Kind.VALID: Cases._valid,
    Kind.RULE: Cases._rule,
    Kind.CERTIFICATE: Cases._certificate,
    Kind.ACCESS: Cases._access,
    Kind.DEADLINE: Cases._deadline,
    Kind.SIZE: Cases._size,
    Kind.REPEATED: Cases._repeated,
    Kind.REUSED: Cases._reused,
    Kind.UNKNOWN: Cases._unknown,
}


def sensitive_values(contract: Contract, message: Any) -> Iterator[bytes]:
    """What a message holds in fields that no log may show; short values are left out, since anything may hold them."""
    for field, value in message.ListFields():
        if is_own(field.message_type):
            for inner in value if field.is_repeated else (value,):
                yield from sensitive_values(contract, inner)
        elif contract.sensitive(field):
            for item in value if field.is_repeated else (value,):
                data = item.encode() if isinstance(item, str) else item
                if isinstance(data, bytes) and len(data) >= 12:
                    yield data


def _put(message: Any, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None:
        (getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)).CopyFrom(value)
    elif field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def _merge_everywhere(message: Any, extra: bytes) -> None:
    for field, value in message.ListFields():
        if is_own(field.message_type):
            for inner in value if field.is_repeated else (value,):
                _merge_everywhere(inner, extra)
                inner.MergeFromString(extra)


def _unknown_text(length: int) -> bytes:
    """A field that nobody knows, with so many bytes."""
    return _varint(_UNKNOWN_FIELD << 3 | 2) + _varint(length) + b"u" * length


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data += bytes((value & 127 | 128,))
        value >>= 7
    return data + bytes((value,))
