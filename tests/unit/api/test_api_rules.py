"""The quick look at a message's rules: never a yes where the library would say no, and a yes to what is usual."""

from __future__ import annotations

import random
from typing import Any

import pytest
from antiphon.mesh.v1 import mesh_service_pb2
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.api.image import Image, Method
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

IMAGE = Image.load()
ATTACH = IMAGE.methods["/antiphon.mesh.v1.MeshService/Attach"]
LENGTHS = (0, 1, 5, 63, 64, 128, 129, 256, 257, 512, 513)
NUMBERS = (0, 1, 9, 10, 1000, 1001, 20_000, 20_001, 65_535, 65_536, 2**31 - 1)
COUNTS = (0, 0, 1, 2, 64, 65)


def _value(rng: random.Random, field: FieldDescriptor) -> Any:
    if field.type == field.TYPE_STRING:
        return "a" * rng.choice(LENGTHS)
    if field.type == field.TYPE_BYTES:
        return b"a" * rng.choice((*LENGTHS, 65_536, 65_537))
    if field.type == field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_ENUM:
        return rng.randrange(4)
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
        return rng.choice((-1.0, 0.0, 1.5))
    return rng.choice(NUMBERS)


def fill(rng: random.Random, message: Message, likely: float, depth: int = 0) -> None:
    """Sets each field with a probability, to a value at or near the bounds that contracts like to have."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() > likely:
            continue
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry and field.message_type is not None:
            value = field.message_type.fields_by_name["value"]
            if value.message_type is None:
                for _ in range(rng.choice((1, 2))):
                    key = _value(rng, field.message_type.fields_by_name["key"])
                    getattr(message, field.name)[key] = _value(rng, value)
        elif field.is_repeated:
            for _ in range(rng.choice(COUNTS) if depth < 2 else 1):
                if field.message_type is None:
                    getattr(message, field.name).append(_value(rng, field))
                elif depth < 4:
                    fill(rng, getattr(message, field.name).add(), likely, depth + 1)
        elif field.message_type is None:
            setattr(message, field.name, _value(rng, field))
        elif depth < 4:
            getattr(message, field.name).SetInParent()
            fill(rng, getattr(message, field.name), likely, depth + 1)


def kept(method: Method, message: Message) -> bool:
    try:
        IMAGE.check(method, message.SerializeToString())
    except ApiError:
        return False
    return True


@pytest.mark.parametrize("path", sorted(IMAGE.methods))
def test_what_is_surely_kept_is_kept(path: str) -> None:
    method = IMAGE.methods[path]
    for seed in range(60):
        rng = random.Random(f"{path} {seed}")
        message = method.request_class()
        fill(rng, message, rng.choice((0.1, 0.3, 0.9)))
        assert not method.shape.keeps(message) or kept(method, message), f"seed {seed}"


def _report(**fields: Any) -> mesh_service_pb2.AttachRequest:
    request = mesh_service_pb2.AttachRequest()
    report = request.reports.add(attempt_id="r/t/0/1", agent="a")
    report.output.inline = b"1"
    for name, value in fields.items():
        setattr(report, name, value)
    return request


def test_the_usual_report_needs_no_second_look() -> None:
    assert ATTACH.shape.keeps(_report())


@pytest.mark.parametrize(
    "broken",
    [
        _report(attempt_id=""),
        _report(attempt_id="x" * 513),
        _report(shard=65_536),
        _report(agent="a" * 64),
        mesh_service_pb2.AttachRequest(reports=[mesh_service_pb2.Report(attempt_id="r/t/0/1")]),
        mesh_service_pb2.AttachRequest(reports=[mesh_service_pb2.Report(attempt_id="r")] * 257),
    ],
)
def test_each_broken_bound_is_left_to_the_library_which_refuses_it(broken: Message) -> None:
    assert not ATTACH.shape.keeps(broken) and not kept(ATTACH, broken)


def test_what_only_the_library_knows_is_left_to_it_when_it_is_there() -> None:
    labelled = _report()
    labelled.reports[0].output.labels.add(key="pii")
    assert not ATTACH.shape.keeps(labelled) and kept(ATTACH, labelled)
