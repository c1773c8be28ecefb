"""What `antiphon verify` does; the tree of commands imports it only when it is called."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from .. import _json
from ..cli import output
from ..cli.problems import FAILED, UNUSABLE, Problem

try:
    from .playing import chosen, passed, verify
except ModuleNotFoundError as missing:
    if missing.name != "jsonschema_rs":
        raise
    remedy = 'in a checkout of Antiphon, run: pip install "./sdk/python[verify]"'
    raise Problem("jsonschema-rs is not installed", remedy) from None
from .cases import ALL, Play
from .inputs import Json
from .stage import Stage
from .table import show_case, show_end


def run(
    command: Sequence[str],
    *,
    names: Sequence[str],
    seed: int | None,
    report_file: Path | None,
    as_json: bool,
    inputs: Sequence[str],
    answers: Sequence[str],
    patience: float,
    boot: float,
) -> int:
    """Verify the agent that `command` starts; the exit code. Raises `Problem`."""
    try:
        cases = chosen(names)
    except KeyError as error:
        raise Problem(f"there is no case {error}", f"use one of: {', '.join(case.name for case in ALL)}") from None
    if shutil.which(command[0]) is None:
        raise Problem(f"there is no program {command[0]}", "write the command that starts the agent after --")
    if report_file is not None:
        try:
            report_file.open("a").close()  # that it cannot be written is said before minutes of work
        except OSError as error:
            raise Problem(
                f"the report cannot be written: {report_file}: {error.strerror}",
                "give --report a file in a folder that is there",
            ) from None
    given: dict[str, tuple[Json, ...]] = {}
    for name, value in (_pair("--input", text) for text in inputs):
        given[name] = (*given.get(name, ()), value)
    answered = {
        name.partition("@")[0]: json.dumps(value) for name, value in (_pair("--answer", text) for text in answers)
    }
    stage = Stage(command, patience=patience, boot=boot, answers=answered)
    play = Play(stage, secrets.randbelow(1 << 31) if seed is None else seed, given)
    console = output.silent() if as_json else output.data()
    report = asyncio.run(verify(play, cases, lambda case: show_case(console, case)))
    text = MessageToJson(report, preserving_proto_field_name=True)
    if as_json:
        output.show_json(report)
    show_end(console, report)
    if report_file is not None:
        report_file.write_text(text + "\n", "utf-8")
    return 0 if passed(report) else FAILED


def list_cases() -> None:
    """Print the cases."""
    output.show(output.table(("CASE", "MEANING"), [(case.name, case.meaning) for case in ALL]))


def _pair(option: str, text: str) -> tuple[str, Json]:
    name, mark, value = text.partition("=")
    try:
        if mark and name:
            return name, _json.loads(os.fsencode(value))
    except ValueError as error:
        raise Problem(f"{option} {text[:80]}: not JSON: {error}", f"write {option} CAPABILITY=JSON") from None
    raise Problem(f"{option} {text[:80]} is no pair", f"write {option} CAPABILITY=JSON", exit_code=UNUSABLE)
