"""The reference pages, made from an image that holds source comments: the API, the errors, and who may call what. Pure.

What a page says is in the protos and nowhere else: their comments, their validation rules and our options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGES = ("antiphon.v1", "antiphon.mesh.v1")
"""What somebody outside can meet; the store's records are on no wire."""

PAGES = ("api.md", "errors.md", "access.md")

_HEAD = "<!-- Generated from protos/ by `make gen`; do not edit. -->\n"
_REGISTRY = "ErrorReason"
_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {number: name.removeprefix("TYPE_").lower() for name, number in _FIELD.Type.items()}
_UNITS = {"string": "characters", "bytes": "bytes", "repeated": "items", "map": "pairs"}


def pages(image: bytes) -> dict[str, str]:
    """Each page's text by its file name. `image` is a serialised FileDescriptorSet with source info."""
    contracts = _Contracts(image)
    return dict(zip(PAGES, (_api(contracts), _errors(contracts), _access(contracts)), strict=True))


class _Contracts:
    """The image, with comments by full name and options as messages."""

    def __init__(self, image: bytes) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(image)
        self._pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self._pool.Add(file)
        # Parsed by a class that knows the extensions; with the default one they would be unknown bytes.
        known: Any = message_factory.GetMessageClass(
            self._pool.FindMessageTypeByName("google.protobuf.FileDescriptorSet")
        )
        own = [file for file in known.FromString(image).file if file.package in PACKAGES]
        self.files: list[Any] = sorted(own, key=lambda file: (PACKAGES.index(file.package), file.name))
        self.comments: dict[str, str] = {}
        for file in self.files:
            self._read_comments(file)
        declared = Counter(one.name for file in self.files for one in (*file.message_type, *file.enum_type))
        self._unique = {name for name, count in declared.items() if count == 1}

    def option(self, declared: Any, name: str) -> Any:
        """An option of a declaration, as its default when it is not set."""
        return declared.options.Extensions[self._pool.FindExtensionByName(name)]

    def word(self, enum: str, number: int) -> str:
        """A value of an enum of our options, without its prefix and in lower case."""
        values = self._pool.FindEnumTypeByName(enum).values_by_number
        prefix = values[0].name.removesuffix("UNSPECIFIED")
        return values[number].name.removeprefix(prefix).lower()

    def identity_kinds(self) -> list[str]:
        """Every kind of identity, by its word."""
        enum = "antiphon.options.v1.IdentityKind"
        return [self.word(enum, value.number) for value in self._pool.FindEnumTypeByName(enum).values[1:]]

    def methods(self) -> Iterator[tuple[Any, Any, str]]:
        """Service, method and the method's full name."""
        for file in self.files:
            for service in file.service:
                for method in service.method:
                    yield service, method, f"{file.package}.{service.name}.{method.name}"

    def reasons(self) -> Iterator[tuple[Any, Any]]:
        """Each reason as it is declared, and its row of the registry."""
        for file in self.files:
            for enum in file.enum_type:
                if enum.name == _REGISTRY:
                    for value in enum.value[1:]:
                        yield value, self.option(value, "antiphon.options.v1.error")

    def errors_of(self, method: Any) -> list[str]:
        """The reasons a method declares, by name."""
        declared = set(self.option(method, "antiphon.v1.errors"))
        return [_reason(value) for value, _ in self.reasons() if value.number in declared]

    def link(self, type_name: str) -> str:
        """A message or enum, with a link to its place when it has one on the page."""
        name = type_name.rpartition(".")[2]
        if name == _REGISTRY:
            return f"[{name}](errors.md)"
        own = any(type_name.startswith(f".{package}.") for package in PACKAGES)
        return f"[{name}](#{name.lower()})" if own and name in self._unique else name

    def _read_comments(self, file: Any) -> None:
        said = {
            tuple(place.path): _one_line(place.leading_comments)
            for place in file.source_code_info.location
            if place.leading_comments
        }

        def read(declared: Any, path: tuple[int, ...], scope: str) -> None:
            full_name = f"{scope}.{declared.name}"
            self.comments[full_name] = said.get(path, "")
            for descriptor, value in declared.ListFields():
                if descriptor.name in ("field", "nested_type", "enum_type", "value", "method", "oneof_decl"):
                    for index, inner in enumerate(value):
                        read(inner, (*path, descriptor.number, index), full_name)

        for descriptor, value in file.ListFields():
            if descriptor.name in ("message_type", "enum_type", "service"):
                for index, declared in enumerate(value):
                    read(declared, (descriptor.number, index), file.package)


def _api(contracts: _Contracts) -> str:
    parts = [
        "# API\n",
        _HEAD,
        "Every service with its methods, then every message and enum. What a refusal says is in [errors](errors.md),\n"
        "who may call what in [access](access.md). Rules are enforced before a method is reached.\n",
    ]
    for file in contracts.files:
        for service in file.service:
            name = f"{file.package}.{service.name}"
            parts += [f"## {service.name}\n", f"`{name}`: {contracts.comments[name]}\n"]
            parts += [_method(contracts, service, method, f"{name}.{method.name}") for method in service.method]
    parts.append("## Messages\n")
    for file in contracts.files:
        for message in file.message_type:
            parts += _message(contracts, message, file.package)
    parts.append("## Enums\n")
    for file in contracts.files:
        for enum in file.enum_type:
            if enum.name != _REGISTRY:
                parts += _enum(contracts, enum, file.package)
    return "\n".join(parts)


def _method(contracts: _Contracts, service: Any, method: Any, full_name: str) -> str:
    asks, answers = contracts.link(method.input_type), contracts.link(method.output_type)
    asks = f"stream of {asks}" if method.client_streaming else asks
    answers = f"stream of {answers}" if method.server_streaming else answers
    lines = [f"### {service.name}.{method.name}\n", f"{asks} → {answers}\n", f"{contracts.comments[full_name]}\n"]
    if errors := contracts.errors_of(method):
        linked = ", ".join(f"[{name}](errors.md#{name.lower()})" for name in errors)
        lines.append(f"Refused with: {linked}, or a universal reason.\n")
    return "\n".join(lines)


def _message(contracts: _Contracts, message: Any, scope: str) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    entries = {f".{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    yield f"### {message.name}\n"
    yield f"{contracts.comments[name]}\n"
    rows = []
    for field in message.field:
        kind = _type(contracts, field, entries)
        rules = _rules(contracts.option(field, "buf.validate.field"))
        if field.HasField("oneof_index") and not field.proto3_optional:
            oneof = message.oneof_decl[field.oneof_index]
            need = "exactly one" if contracts.option(oneof, "buf.validate.oneof").required else "at most one"
            rules = [f"{need} of `{oneof.name}`", *rules]
        if label := contracts.word("antiphon.options.v1.Label", contracts.option(field, "antiphon.options.v1.label")):
            rules += [f"{label}: in no log"] if label != "unspecified" else []
        meaning = contracts.comments[f"{name}.{field.name}"]
        rows.append((str(field.number), f"`{field.name}`", kind, "; ".join(rules), meaning))
    if rows:
        yield _table(("number", "field", "type", "rules", "meaning"), rows)
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from _message(contracts, nested, name)
    for enum in message.enum_type:
        yield from _enum(contracts, enum, name)


def _enum(contracts: _Contracts, enum: Any, scope: str) -> Iterator[str]:
    name = f"{scope}.{enum.name}"
    yield f"### {enum.name}\n"
    yield f"{contracts.comments[name]}\n"
    rows = [(str(value.number), f"`{value.name}`", contracts.comments[f"{name}.{value.name}"]) for value in enum.value]
    yield _table(("number", "value", "meaning"), rows)


def _type(contracts: _Contracts, field: Any, entries: Mapping[str, Any]) -> str:
    if field.type_name in entries:
        key, value = (_type(contracts, part, {}) for part in entries[field.type_name].field)
        return f"map of {key} to {value}"
    kind = contracts.link(field.type_name) if field.type_name else _TYPES[field.type]
    return f"list of {kind}" if field.label == _FIELD.LABEL_REPEATED else kind


def _rules(rules: Any) -> list[str]:
    """The validation rules of a field, in words."""
    words = ["required"] if rules.required else []
    words += [rule.message or f"`{rule.expression}`" for rule in rules.cel]
    kind = rules.WhichOneof("type")
    if kind is None:
        return words
    bound = getattr(rules, kind)
    has = {option.name for option, _ in bound.ListFields()}
    for least, most in (("min_len", "max_len"), ("min_items", "max_items"), ("min_pairs", "max_pairs")):
        if least in has or most in has:
            words.append(f"{_range(bound, least, most, has, _number)} {_UNITS[kind]}")
    if "gte" in has or "lte" in has:
        words.append(_range(bound, "gte", "lte", has, _duration if kind == "duration" else _number))
    if "pattern" in has:
        words.append(f"`{bound.pattern}`")
    if "defined_only" in has:
        words.append("a known value")
    if "not_in" in has:
        words.append(f"not {', '.join(map(str, bound.not_in))}")
    if "unique" in has:
        words.append("no two equal")
    for part, prefix in (("items", "each"), ("keys", "keys"), ("values", "values")):
        if part in has and (inner := _rules(getattr(bound, part))):
            words.append(f"{prefix}: {', '.join(inner)}")
    return words


def _range(bound: Any, least: str, most: str, has: set[str], show: Any) -> str:
    if least not in has:
        return f"at most {show(getattr(bound, most))}"
    if most not in has:
        return f"at least {show(getattr(bound, least))}"
    return f"{show(getattr(bound, least))} to {show(getattr(bound, most))}"


def _number(value: Any) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _duration(value: Any) -> str:
    if value.seconds and value.seconds % 86_400 == 0 and not value.nanos:
        return f"{value.seconds // 86_400} d"
    return f"{value.seconds + value.nanos / 1e9:g} s"


def _errors(contracts: _Contracts) -> str:
    users: dict[str, list[str]] = {}
    for service, method, _ in contracts.methods():
        for reason in contracts.errors_of(method):
            users.setdefault(reason, []).append(f"[{service.name}.{method.name}](api.md#{_anchor(service, method)})")
    rows = []
    for value, spec in contracts.reasons():
        name = _reason(value)
        comment = contracts.comments[f"antiphon.v1.{_REGISTRY}.{value.name}"]
        rows.append(
            (
                f'<a id="{name.lower()}"></a>`{name}`',
                _CODES[spec.code],
                contracts.word("antiphon.options.v1.Remedy", spec.remedy).replace("_", " "),
                ", ".join(f"`{key}`" for key in spec.metadata),
                f"{comment} *{spec.message}*",
                "any" if spec.universal else ", ".join(users.get(name, [])),
            )
        )
    return "\n".join(
        (
            "# Errors\n",
            _HEAD,
            "How a call is refused: a `google.rpc.Status` with exactly one `ErrorInfo`: its `reason` is one of these,\n"
            "its `domain` is `antiphon.v1`, and its `metadata` holds exactly the keys named here. `RetryInfo` is\n"
            "there exactly when the remedy is to retry. Streams that answer item by item say the same in\n"
            "[Error](api.md#error).\n",
            _table(("reason", "code", "remedy", "metadata", "meaning and *message*", "methods"), rows),
        )
    )


def _access(contracts: _Contracts) -> str:
    kinds = contracts.identity_kinds()
    rows = []
    for service, method, _ in contracts.methods():
        access = contracts.option(method, "antiphon.options.v1.access")
        may = {contracts.word("antiphon.options.v1.IdentityKind", kind) for kind in access.kinds}
        listener = contracts.word("antiphon.options.v1.Listener", access.listener)
        rows.append(
            (
                f"[{service.name}.{method.name}](api.md#{_anchor(service, method)})",
                *("yes" if kind in may or not may else "" for kind in kinds),
                f"`{access.action}`" if access.action else "",
                ("mutual tls" if listener == "unspecified" else listener.replace("_", " ")),
                contracts.word("antiphon.options.v1.Idempotency", access.idempotency).replace("_", " "),
            )
        )
    return "\n".join(
        (
            "# Who may call what\n",
            _HEAD,
            "Kinds of identity that may call a method, the action that policy judges it as, the listener that serves\n"
            "it, and how a repetition behaves. Whoever may call is still judged by policy where there is an action; a\n"
            "method of the join listener is open to anyone.\n",
            _table(("method", *kinds, "action", "listener", "repeated"), rows),
        )
    )


def _anchor(service: Any, method: Any) -> str:
    """Where a renderer of Markdown lets the heading of a method begin: messages may have the same name as a method."""
    return f"{service.name}{method.name}".lower()


def _reason(value: Any) -> str:
    name: str = value.name
    return name.removeprefix("ERROR_REASON_")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _one_line(comment: str) -> str:
    return " ".join(comment.split())


# google.rpc.Code, by number.
_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
