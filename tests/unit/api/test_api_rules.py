"""The quick look at a message's rules: a yes where the library would say yes, and never where it would not."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from antiphon.mesh.v1 import mesh_service_pb2
from antiphon.v1.run_service_pb2 import GetRunRequest as RUN
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.api.image import Image, Method
from antiphon_orchestrator.api.rules import Shapes
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

IMAGE = Image.load()
Rules: Any = message_factory.GetMessageClass(IMAGE._pool.FindMessageTypeByName("buf.validate.FieldRules"))
ATTACH = IMAGE.methods["/antiphon.mesh.v1.MeshService/Attach"]
LENGTHS = (0, 1, 5, 63, 64, 128, 129, 256, 257, 512, 513)
NUMBERS = (0, 1, 9, 10, 1000, 1001, 20_000, 20_001, 65_535, 65_536, 2**31 - 1)
COUNTS = (0, 0, 1, 2, 64, 65)
TEXTS = (
    *(
        "A",
        "a-",
        "-a",
        "a\n",
        "\n",
        "a.b",
        "a..b",
        "a.b@1",
        "a.b@1.2.3.4",
        "1",
        "1.2.3",
        "1.",
        "é",
        "a b",
        "a/b",
        "operator",
    ),
    *("x.cedar", "x.toml\n", "0" * 64, "g" * 64, "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "\u0663", "a_b", "A_b.c-d"),
)
"""Near what patterns ask for."""


_UNSIGNED = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)


def _value(rng: random.Random, field: FieldDescriptor) -> Any:
    if field.type == field.TYPE_STRING:
        return rng.choice(TEXTS) if rng.random() < 0.3 else "a" * rng.choice(LENGTHS)
    if field.type == field.TYPE_BYTES:
        return b"a" * rng.choice((*LENGTHS, 65_536, 65_537))
    if field.type == field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_ENUM:
        return rng.choice((-1, 0, 1, 2, 3, 1000))
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
        return rng.choice((-1.0, 0.0, 1.5, 1e9, 2e9, float("nan"), float("inf")))
    return rng.choice(NUMBERS) if field.type in _UNSIGNED else rng.choice((*NUMBERS, -1, -2, -(2**31)))


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
def test_a_quick_look_says_what_the_library_says(path: str) -> None:
    """Both ways: none of our contracts has a rule that only the library knows."""
    method = IMAGE.methods[path]
    for seed in range(60):
        rng = random.Random(f"{path} {seed}")
        message = method.request_class()
        fill(rng, message, rng.choice((0.1, 0.3, 0.9)))
        assert method.shape.keeps(message) == kept(method, message), f"seed {seed}"


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


@pytest.mark.parametrize("rules", ["cel", "unknown pattern"])
def test_what_only_the_library_knows_is_left_to_it_when_it_is_there(rules: str) -> None:
    options = Rules()
    if rules == "cel":
        options.cel.add(expression="true")
    else:
        options.string.pattern = r"^\w$"
    shape = Shapes(lambda field: options, lambda _: False, lambda _: False).of(RUN.DESCRIPTOR)
    assert not shape.keeps(RUN(run_id="a"))
    usual = Shapes(lambda field: Rules(), lambda _: False, lambda _: False).of(RUN.DESCRIPTOR)
    assert usual.keeps(RUN(run_id="a"))


def test_a_server_loads_the_library_when_somebody_breaks_the_contract() -> None:
    program = """
import sys
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.api.image import Image
image = Image.load()
method = image.methods["/antiphon.v1.RunService/GetRun"]
image.parse(method, method.request_class.FromString, method.request_class(run_id="r").SerializeToString())
print("protovalidate" in sys.modules)
try:
    image.parse(method, method.request_class.FromString, b"")
except ApiError as error:
    print("protovalidate" in sys.modules, error.spec.name)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told == "False\nTrue REQUEST_INVALID\n"
