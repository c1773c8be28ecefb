"""Contracts are compared with those of the last release, each package by its own promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet

from tools import check

Change = Callable[[str, Callable[[DescriptorProto], object]], tuple[bool, str]]


@pytest.fixture
def after_a_release_in_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """What is said of the contracts as they are, after a release in which a message was different."""
    path = tmp_path / "baseline.binpb"
    built, said = check.run("buf", "build", "--exclude-source-info", "-o", str(path))
    assert built, said
    monkeypatch.setattr(check, "BASELINE", path)

    def judged(name: str, change: Callable[[DescriptorProto], object]) -> tuple[bool, str]:
        image = FileDescriptorSet.FromString(path.read_bytes())
        messages = {f"{file.package}.{message.name}": message for file in image.file for message in file.message_type}
        change(messages[name])
        path.write_bytes(image.SerializeToString())
        return check.breaking()

    return judged


def had(number: int, name: str) -> Callable[[DescriptorProto], object]:
    return lambda message: message.field.add(number=number, name=name, json_name=name, type=8, label=1)


def had_other_name(message: DescriptorProto) -> None:
    message.field[0].name = message.field[0].json_name = "other"


def test_contracts_that_did_not_change_break_nothing(after_a_release_in_which: Change) -> None:
    assert after_a_release_in_which("antiphon.v1.Run", lambda message: None) == (True, "")


@pytest.mark.parametrize(
    "name", ["antiphon.v1.Run", "antiphon.store.v1.RunSnapshot", "antiphon.mesh.v1.Hello", "antiphon.options.v1.Access"]
)
def test_a_field_that_went_breaks_a_promise(after_a_release_in_which: Change, name: str) -> None:
    passed, said = after_a_release_in_which(name, had(900, "gone"))
    assert not passed and f'"gone" on message "{name.rpartition(".")[2]}" was deleted' in said


def test_a_field_has_another_name_only_where_nobodys_source_depends_on_it(after_a_release_in_which: Change) -> None:
    assert after_a_release_in_which("antiphon.mesh.v1.Hello", had_other_name) == (True, "")
    passed, said = after_a_release_in_which("antiphon.v1.Run", had_other_name)
    assert not passed and "other" in said
