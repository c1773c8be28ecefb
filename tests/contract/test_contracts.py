"""The rules of the contracts, checked on the image that the servers use; no method or message is listed by hand.

buf lint checks style and comments. Here is what it cannot know: our own options, the error registry, and that
everything a stranger can send has a finite size.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import antiphon
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumValueDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

PACKAGES = {f"antiphon.{name}" for name in ("v1", "mesh.v1", "store.v1", "options.v1", "conformance.v1")}
UNBOUNDED = re.compile(r"(?<!\\)[*+]|\{\d+,\}")
UNITS = re.compile(r"_(ms|millis|us|micros|ns|nanos|seconds|secs|minutes|hours|bytes|kb|mb)$")


@pytest.fixture(scope="module")
def pool(image: FileDescriptorSet) -> DescriptorPool:
    """The contracts in a pool of their own, since the process already knows them without validation rules."""
    made = descriptor_pool.DescriptorPool()
    for file in image.file:
        made.Add(file)
    return made


@pytest.fixture(scope="module")
def methods(image: FileDescriptorSet, pool: DescriptorPool) -> list[MethodDescriptor]:
    names = [f"{file.package}.{service.name}" for file in image.file for service in file.service]
    return [method for name in names for method in pool.FindServiceByName(name).methods]


@pytest.fixture(scope="module")
def own_messages(image: FileDescriptorSet, pool: DescriptorPool) -> list[Descriptor]:
    return [
        pool.FindMessageTypeByName(f"{file.package}.{message.name}")
        for file in image.file
        if file.package in PACKAGES
        for message in file.message_type
    ]


@pytest.fixture(scope="module")
def reasons(pool: DescriptorPool) -> list[EnumValueDescriptor]:
    return list(pool.FindEnumTypeByName("antiphon.v1.ErrorReason").values)


def option(pool: DescriptorPool, descriptor: Any, name: str) -> Any:
    """The value of an option as the pool's own classes read it, or None where it is not set."""
    extension: Any = pool.FindExtensionByName(name)  # of a pool made at run time, so no generated type knows it
    options = message_factory.GetMessageClass(extension.containing_type).FromString(
        descriptor.GetOptions().SerializeToString()
    )
    if extension.is_repeated:
        return list(options.Extensions[extension])
    return options.Extensions[extension] if options.HasExtension(extension) else None


def spec_of(pool: DescriptorPool, reason: EnumValueDescriptor) -> Any:
    return option(pool, reason, "antiphon.options.v1.error")


def reachable(roots: list[Descriptor]) -> dict[str, Descriptor]:
    """Our own messages that the roots can hold, by full name."""
    found: dict[str, Descriptor] = {}
    waiting = list(roots)
    while waiting:
        message = waiting.pop()
        if message.file.package in PACKAGES and message.full_name not in found:
            found[message.full_name] = message
            waiting += [field.message_type for field in message.fields if field.message_type]
    return found


def is_finite_text(rules: Any) -> bool:
    pattern = rules.string.pattern
    bounded = pattern.startswith("^") and pattern.endswith("$") and not UNBOUNDED.search(pattern)
    return bool(rules.string.max_len or rules.bytes.max_len or bounded)


def without_maximum(field: FieldDescriptor, rules: Any) -> Iterator[str]:
    """What of a field a sender could make as large as it likes."""
    text = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    if field.message_type and field.message_type.GetOptions().map_entry:
        if not (rules and rules.map.max_pairs):
            yield "pairs"
        for part, name in zip(field.message_type.fields, ("keys", "values"), strict=True):
            if part.type in text and not (rules and is_finite_text(getattr(rules.map, name))):
                yield name
    elif field.is_repeated:
        if not (rules and rules.repeated.max_items):
            yield "items"
        if field.type in text and not (rules and is_finite_text(rules.repeated.items)):
            yield "text of items"
    elif field.type in text and not (rules and is_finite_text(rules)):
        yield "text"


def test_there_are_contracts_to_check(methods: list[MethodDescriptor], own_messages: list[Descriptor]) -> None:
    assert len(methods) > 20
    assert len(own_messages) > 100


def test_every_file_is_in_the_folder_of_its_package(image: FileDescriptorSet) -> None:
    own = [file for file in image.file if file.name.startswith("antiphon/")]
    assert {file.package for file in own} == PACKAGES
    assert [file.name for file in own if file.name.rsplit("/", 1)[0].replace("/", ".") != file.package] == []


def test_option_numbers_are_used_once(image: FileDescriptorSet) -> None:
    used = Counter((extension.extendee, extension.number) for file in image.file for extension in file.extension)
    assert [key for key, count in used.items() if count > 1] == []


def test_no_open_types_are_used(image: FileDescriptorSet) -> None:
    open_types = {"google/protobuf/any.proto", "google/protobuf/struct.proto"}
    assert [file.name for file in image.file if open_types & set(file.dependency)] == []


def test_every_method_says_who_may_call_it(pool: DescriptorPool, methods: list[MethodDescriptor]) -> None:
    join = pool.FindEnumTypeByName("antiphon.options.v1.Listener").values_by_name["LISTENER_JOIN"].number
    access = {method.full_name: option(pool, method, "antiphon.options.v1.access") for method in methods}
    assert [name for name, rule in access.items() if rule is None] == []
    # Whoever comes in on the join listener has no identity yet; everywhere else at least one kind is named.
    assert [name for name, rule in access.items() if bool(rule.kinds) == (rule.listener == join)] == []
    assert [name for name, rule in access.items() if 0 in rule.kinds] == []


def test_every_method_says_how_a_repetition_behaves(pool: DescriptorPool, methods: list[MethodDescriptor]) -> None:
    silent = [m.full_name for m in methods if not option(pool, m, "antiphon.options.v1.access").idempotency]
    assert silent == []


def test_methods_that_are_repeatable_by_request_id_have_one(
    pool: DescriptorPool, methods: list[MethodDescriptor]
) -> None:
    enum = pool.FindEnumTypeByName("antiphon.options.v1.Idempotency")
    by_request_id = enum.values_by_name["IDEMPOTENCY_REQUEST_ID"].number
    keys = {"request_id", "call_id"}  # the request id of a call inside an attempt is its call_id
    for method in methods:
        if option(pool, method, "antiphon.options.v1.access").idempotency == by_request_id:
            request = method.input_type
            parts = [request, *(field.message_type for field in request.fields if field.is_repeated)]
            assert any(keys & set(part.fields_by_name) for part in parts if part), method.full_name


def test_every_method_has_a_request_and_a_response_of_its_own(methods: list[MethodDescriptor]) -> None:
    for method in methods:
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"


def test_every_reason_a_method_declares_is_in_the_registry_and_not_universal(
    pool: DescriptorPool, methods: list[MethodDescriptor], reasons: list[EnumValueDescriptor]
) -> None:
    by_number = {reason.number: reason for reason in reasons}
    for method in methods:
        declared = option(pool, method, "antiphon.v1.errors")
        assert len(declared) == len(set(declared)), method.full_name
        for number in declared:
            spec = spec_of(pool, by_number[number])
            assert spec is not None and not spec.universal, f"{method.full_name}: {by_number[number].name}"


def test_methods_that_remember_request_ids_declare_that_one_may_be_reused(
    pool: DescriptorPool, methods: list[MethodDescriptor]
) -> None:
    remembers = pool.FindEnumTypeByName("antiphon.options.v1.Idempotency").values_by_name["IDEMPOTENCY_REQUEST_ID"]
    reused = pool.FindEnumTypeByName("antiphon.v1.ErrorReason").values_by_name["ERROR_REASON_REQUEST_ID_REUSED"]
    for method in methods:
        declared = reused.number in option(pool, method, "antiphon.v1.errors")
        access = option(pool, method, "antiphon.options.v1.access")
        assert declared == (access.idempotency == remembers.number), method.full_name


def test_every_reason_that_is_not_universal_is_declared_by_a_method(
    pool: DescriptorPool, methods: list[MethodDescriptor], reasons: list[EnumValueDescriptor]
) -> None:
    declared = {number for method in methods for number in option(pool, method, "antiphon.v1.errors")}
    particular = {reason.number: reason.name for reason in reasons if reason.number}
    for number, name in particular.items():
        spec = spec_of(pool, pool.FindEnumTypeByName("antiphon.v1.ErrorReason").values_by_number[number])
        assert spec.universal or number in declared, f"{name} can never be answered"


def test_every_reason_has_a_complete_row(pool: DescriptorPool, reasons: list[EnumValueDescriptor]) -> None:
    assert reasons[0].number == 0 and spec_of(pool, reasons[0]) is None
    for reason in reasons[1:]:
        spec = spec_of(pool, reason)
        assert spec is not None, f"{reason.name} has no row"
        assert 1 <= spec.code <= 16 and spec.code != 2, f"{reason.name}: UNKNOWN never leaves us"
        assert spec.remedy and spec.message, reason.name


def test_messages_of_errors_use_exactly_their_metadata(
    pool: DescriptorPool, reasons: list[EnumValueDescriptor]
) -> None:
    for reason in reasons[1:]:
        spec = spec_of(pool, reason)
        variables = {name for _, name, _, _ in string.Formatter().parse(spec.message) if name is not None}
        assert variables == set(spec.metadata), reason.name
        assert len(spec.metadata) == len(set(spec.metadata)), reason.name


def test_everything_a_caller_can_send_has_a_maximum(pool: DescriptorPool, methods: list[MethodDescriptor]) -> None:
    endless = [
        f"{field.full_name}: {part}"
        for message in reachable([method.input_type for method in methods]).values()
        for field in message.fields
        for part in without_maximum(field, option(pool, field, "buf.validate.field"))
        if not message.GetOptions().map_entry
    ]
    assert endless == []


def test_fields_are_named_without_units_and_booleans_without_is(own_messages: list[Descriptor]) -> None:
    fields = [field for message in reachable(own_messages).values() for field in message.fields]
    assert [field.full_name for field in fields if UNITS.search(field.name)] == []
    assert [field.full_name for field in fields if field.name.startswith("is_")] == []


def test_pages_are_asked_for_and_continued_in_one_way(methods: list[MethodDescriptor]) -> None:
    for method in methods:
        asks = {"page_size", "page_token"} & set(method.input_type.fields_by_name)
        continues = "next_page_token" in method.output_type.fields_by_name
        if method.name.startswith("List") or asks or continues:
            assert len(asks) == 2 and continues, method.full_name


def test_the_sdk_carries_no_validation_rules() -> None:
    # A second validate.proto in a user's process would be a descriptor-pool error.
    for module in walk_packages(antiphon.__path__, "antiphon."):
        if module.name.endswith("_pb2"):
            assert b"buf/validate" not in import_module(module.name).DESCRIPTOR.serialized_pb, module.name
