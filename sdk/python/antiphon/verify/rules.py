"""What an agent's first message must keep, by the contract. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import registry_pb2

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CAPABILITY = re.compile(r"[a-z][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63}){0,7}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,2}")
PROTOCOL_VERSION = 1


def mistakes_in_first(first: pb.WorkRequest) -> Iterator[str]:
    """Every rule that the first message breaks, as a path and what is wrong there."""
    if not first.HasField("hello"):
        yield "the first message is not a hello"
        return
    if others := [field.name for field, _ in first.ListFields() if field.name != "hello"]:
        yield f"the first message holds {', '.join(others)} besides hello"
    if first.hello.protocol_version != PROTOCOL_VERSION:
        yield f"hello.protocol_version is {first.hello.protocol_version}, not {PROTOCOL_VERSION}"
    if not first.hello.HasField("description"):
        yield "hello.description is missing"
        return
    for mistake in _in_description(first.hello.description):
        yield f"hello.description.{mistake}"


def _in_description(description: registry_pb2.AgentDescription) -> Iterator[str]:
    if description.name and not _NAME.fullmatch(description.name):
        yield f"name {description.name[:80]!r} is not 1-63 lower-case letters, digits and inner dashes"
    for field in ("version", "runtime"):
        if len(getattr(description, field)) > 64:
            yield f"{field} has more than 64 characters"
    if not 1 <= len(description.capabilities) <= 100:
        yield f"capabilities has {len(description.capabilities)} items; 1 to 100 are allowed"
    if not 1 <= description.concurrency <= 10_000:
        yield f"concurrency is {description.concurrency}; 1 to 10000 are allowed"
    if description.prefetch > 10_000:
        yield f"prefetch is {description.prefetch}; at most 10000 are allowed"
    if len(description.labels) > 16:
        yield f"labels has {len(description.labels)} pairs; at most 16 are allowed"
    for key, value in description.labels.items():
        if not 1 <= len(key) <= 64 or len(value) > 256:
            yield f"labels[{key[:64]!r}] is longer than 64 characters for the key or 256 for the value"
    names = Counter((one.name, one.version) for one in description.capabilities)
    for (name, version), count in names.items():
        if count > 1:
            yield f"capabilities holds {name}@{version} {count} times"
    for index, capability in enumerate(description.capabilities):
        where = f"capabilities[{index}]"
        if not _CAPABILITY.fullmatch(capability.name):
            yield f"{where}.name {capability.name[:80]!r} is not a dotted lower-case name such as text.summarize"
        if not _VERSION.fullmatch(capability.version):
            yield f"{where}.version {capability.version[:80]!r} is not 1, 1.2 or 1.2.3"
        for field, most in (("description", 2_048), ("input_schema", 32_768), ("output_schema", 32_768)):
            if len(getattr(capability, field)) > most:
                yield f"{where}.{field} has more than {most} characters"
        if len(capability.clearance) > 64 or any(len(key) > 64 for key in capability.clearance):
            yield f"{where}.clearance has more than 64 keys, or one with more than 64 characters"
        if not 0 <= capability.cost <= 1e9:
            yield f"{where}.cost is not 0 to 1000000000"
