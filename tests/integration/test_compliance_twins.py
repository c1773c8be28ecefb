"""Agents of the compliance review in two languages: whichever runs, the answers and so the report are the same."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from email import message_from_string
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from antiphon import Graph, ref
from antiphon.v1 import payload_pb2, run_pb2
from antiphon_orchestrator.demo.report import report_of, write

from tests.harness import Mesh

pytest_plugins = ("tests.harness.built",)

PROGRAMS = Path(__file__).parents[2] / "examples/compliance"
Build = Callable[[str], list[str]]

MIT = (PROGRAMS / "classify.py").read_text().partition('_MIT = """')[2].partition('"""')[0]
SAID = [
    {},
    {"expression": "MIT OR GPL-3.0-only"},
    {"expression": "(Apache-2.0 AND LGPL-2.1-or-later) OR (MPL-2.0 AND MIT)"},
    {"expression": "LicenseRef-Ours"},
    {"expression": "ORACLE-ANDROID"},
    {"license": "MIT", "text": MIT},
    {"license": "BSD", "text": MIT},
    {"text": MIT[: len(MIT) // 2]},
    {"text": MIT[: len(MIT) * 7 // 10]},
    {"text": MIT.upper().replace(" ", "\u2003\x1c")},
    {"text": MIT.replace("a", "o")},
    {"text": "\u00a0\u2028 "},
    {"text": "GNU\u00a0Lesser General\x85Public License"},
    {"license": "éMIT"},
    {"license": "MITé"},
    {"license": "mit_license"},
    {"license": "the \uff2d\uff29\uff34 licence"},
    {"license": "\U0001d518" * 200},
    {"license": "\U0001d518" * 100 + " ISC " + "ß" * 100},
    {"classifiers": ["License :: OSI Approved :: BSD License", "License :: Public Domain"]},
    {"classifiers": None, "license": "all rights reserved"},
    {"license": "Zope Public License", "text": "\U0001d518" * 2000 + " apache license version 2"},
]


def documents() -> list[dict[str, Any]]:
    """What is said in every way we could think of, and what is installed here."""
    found: list[dict[str, Any]] = [{"directory": f"{number}", **said} for number, said in enumerate(SAID)]
    for one in distributions():
        meta = message_from_string(one.read_text("METADATA") or "")
        paths = (Path(str(file.locate())) for file in one.files or () if file.name.upper().startswith("LICEN"))
        text = next((path.read_text("utf-8", "replace")[:3000] for path in paths if path.is_file()), "")
        found.append({"directory": meta["Name"], "license": str(meta.get("License", ""))[:300], "text": text})
    return found


REVIEWS: list[dict[str, Any]] = [
    {"packages": [], "kinds": [], "doubts": [], "redactions": []},
    {
        "packages": ["b", "ä", "a<b>&", "\uffee", "\U0001d518", "z"],
        "kinds": ["permissive", "unknown", "proprietary", "unknown", "unknown", "proprietary"],
        "doubts": ["", "why", 'quoted "so"', "no", "no", "see"],
        "redactions": [0, 3, 0, 1, 0, 0],
    },
    {
        "packages": [f"p{number:03}" for number in reversed(range(250))],
        "kinds": ["weak-copyleft", "permissive"] * 125,
        "doubts": ["look"] * 250,
        "redactions": [1] * 250,
    },
]
WRONG: list[dict[str, Any]] = [
    {"packages": ["a"], "kinds": [], "doubts": [""], "redactions": []},
    {"packages": ["a"], "kinds": ["odd"], "doubts": [""], "redactions": []},
]


async def answers(agent: str, capability: str, command: Sequence[str], inputs: Sequence[Any]) -> dict[str, Any]:
    """What the agent announces, what it makes of each input, and what it leaves in shared context."""
    graph = Graph("one", output=ref("tasks.t.output"))
    graph.task("t", capability, input=ref("input"))
    with Mesh() as mesh:
        mesh.sidecar(agent, command=command)
        async with mesh.client() as client:
            attached = await mesh.attached(client, agent)
            runs = await asyncio.gather(*(client.submit(graph, value, wait=True) for value in inputs))
            await client.submit(graph, inputs[0], wait=True)  # alone, so that it is known whose totals stay
            shared = [(entry.key, json.loads(entry.value.inline)) async for entry in client.list_entries("compliance/")]
    said = attached.description
    return {
        "agent": (said.name, said.concurrency, said.prefetch),
        "runtime": said.runtime.partition("/")[0],
        "capabilities": [
            (
                *(one.name, one.description, one.effect, one.idempotent, list(one.clearance)),
                *(json.loads(one.input_schema), json.loads(one.output_schema)),
            )
            for one in said.capabilities
        ],
        "outputs": [run.output.inline or (run.failure.kind, run.failure.message) for run in runs],
        "shared": shared,
    }


async def both(
    agent: str, capability: str, python: str, other: list[str], inputs: Sequence[Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    ours = await answers(agent, capability, [sys.executable, str(PROGRAMS / python)], inputs)
    theirs = await answers(agent, capability, other, inputs)
    assert (ours.pop("runtime"), len(ours["outputs"])) == ("python", len(inputs))
    return ours, theirs


async def test_the_classifier_in_typescript_answers_as_the_one_in_python(built: Build) -> None:
    command = built("examples/compliance/classify.mts")
    inputs = documents()
    ours, theirs = await both("classifier", "license.classify@1", "classify.py", command, inputs)
    assert theirs.pop("runtime") == "typescript"
    for document, one, other in zip(inputs, ours.pop("outputs"), theirs.pop("outputs"), strict=True):
        assert json.loads(one) == json.loads(other), document
    assert ours == theirs


async def test_the_report_of_the_agent_in_go_is_that_of_the_one_in_python_to_the_byte(
    built: Build, tmp_path: Path
) -> None:
    command = built("examples/compliance/report.go")
    ours, theirs = await both("reporter", "report.write@1", "report.py", command, REVIEWS + WRONG)
    assert theirs.pop("runtime") == "go"
    assert ours == theirs
    for number in range(len(REVIEWS)):
        files = [written(said["outputs"][number], tmp_path) for said in (ours, theirs)]
        assert files[0] == files[1] and b"by_kind" in files[0]


def written(totals: bytes, folder: Path) -> bytes:
    """Both files of a report with these totals."""
    report = report_of(Path("/site"), run_pb2.Run(run_id="r", output=payload_pb2.Payload(inline=totals)), [])
    return b"".join(path.read_bytes() for path in write(report, folder))
