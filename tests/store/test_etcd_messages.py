"""Our cut of etcd's messages against etcd's own files: every field of ours is there, by number and type."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
import pytest
from antiphon.etcd.v3 import kv_pb2, rpc_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

ROOT = Path(__file__).resolve().parents[2]
API = "go.etcd.io/etcd/api/v3"
OURS = "antiphon.etcd.v3."
FILES = {"mvccpb": "mvccpb/kv.proto", "etcdserverpb": "etcdserverpb/rpc.proto"}

# Options and what only they and the services need; what is left compiles by itself.
OPTIONS = re.compile(
    r"^option \([^)]*\) = \{.*?^\};\n|^[ \t]*option \(.*?;\n|\s*\[\s*\(.*?\](?=;)", re.MULTILINE | re.DOTALL
)
FOREIGN = re.compile(r'^import "(?!etcd/api/mvccpb/).*\n', re.MULTILINE)
SERVICES = re.compile(r"^service \w+ \{.*?^\}\n", re.MULTILINE | re.DOTALL)
ROLES = re.compile(r"^message Auth\w+ \{.*?^\}\n", re.MULTILINE | re.DOTALL)


def module_folder() -> Path:
    """Where Go keeps the files of the release that `tools/etcd` names; fetched when it is not there yet."""
    missing = "not run: go is missing, which fetches etcd's own files; install Go 1.21 or newer"
    if shutil.which("go") is not None:
        asked = ["go", "list", "-m", "-f", "{{.Dir}}", API]
        subprocess.run(["go", "mod", "download", API], cwd=ROOT / "tools/etcd", capture_output=True, timeout=300)
        answer = subprocess.run(asked, cwd=ROOT / "tools/etcd", capture_output=True, text=True, timeout=300)
        if answer.returncode == 0 and answer.stdout.strip():
            return Path(answer.stdout.strip())
        missing = f"not run: {API} cannot be fetched: {answer.stderr.strip()[-200:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> DescriptorPool:
    """etcd's messages in a pool of their own."""
    folder, source = tmp_path_factory.mktemp("etcd"), module_folder()
    for path in FILES.values():
        text = (source / path).read_text()
        for noise in (SERVICES, FOREIGN, ROLES, OPTIONS):
            text = noise.sub("", text)
        target = folder / "etcd/api" / path
        target.parent.mkdir(parents=True)
        target.write_text(text)
    image = folder / "image.binpb"
    paths = [f"etcd/api/{path}" for path in FILES.values()]
    include = Path(grpc_tools.__file__).parent / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"-I{include}", f"-o{image}", *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file:
        pool.Add(file)
    return pool


def messages() -> Iterator[tuple[Descriptor, str]]:
    """Every message of ours and the name of etcd's."""
    for module, package in ((kv_pb2, "mvccpb"), (rpc_pb2, "etcdserverpb")):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            yield message, f"{package}.{message.name}"


def shape(field: FieldDescriptor) -> tuple[object, ...]:
    """All of a field that the wire shows, with the short name of what it refers to."""
    refers = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else ""
    return field.name, field.type, field.is_repeated, field.has_presence, oneof, refers.name if refers else ""


def values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


ALL = list(messages())


def test_there_are_messages_to_compare() -> None:
    assert len(ALL) > 30


@pytest.mark.parametrize(("message", "name"), ALL, ids=[name for _, name in ALL])
def test_every_field_of_ours_is_etcds(theirs: DescriptorPool, message: Descriptor, name: str) -> None:
    original = theirs.FindMessageTypeByName(name)
    for field in message.fields:
        assert field.number in original.fields_by_number, field.name
        assert shape(field) == shape(original.fields_by_number[field.number])
    for enum in message.enum_types:
        known = values(original.enum_types_by_name[enum.name])
        assert values(enum).items() <= known.items()


def test_every_enum_of_ours_is_etcds(theirs: DescriptorPool) -> None:
    for enum in rpc_pb2.DESCRIPTOR.enum_types_by_name.values():
        assert values(enum).items() <= values(theirs.FindEnumTypeByName(f"etcdserverpb.{enum.name}")).items()
