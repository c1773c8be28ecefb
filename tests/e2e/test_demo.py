"""The demo as a user runs it: the real command, real processes, real kills; what it says of itself is checked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from tests.harness.waiting import eventually

pytest_plugins = ("tests.harness.built",)

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
LIMIT = 120.0


def demo(*words: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    """One demo, to its end; never a traceback."""
    environment = {**os.environ, **environ}
    done = subprocess.run([ANTIPHON, "demo", *words], capture_output=True, text=True, timeout=LIMIT, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done


def processes_in(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    assert Path("/proc/self/cmdline").exists()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile
        if str(folder) in line:
            found.append(line)
    return found


def languages_of(facts: dict[str, Any]) -> dict[str, str]:
    """By agent, what it is written in, or how its sidecar fronts it."""
    return {agent: runtime.partition("/")[0] for agent, runtime in facts["agents"].items()}


@pytest.fixture
def twins(built: Callable[[str], list[str]]) -> None:
    """Agents in other languages, built before the clock of a demo runs."""
    for source in ("classify.mts", "report.go"):
        built(f"examples/compliance/{source}")


PYTHON = {
    "inventory": "python",
    "classifier": "python",
    "reporter": "python",
    "summarizer": "http",
    "redactor": "exec",
}
ALL = {**PYTHON, "classifier": "typescript", "reporter": "go"}


@pytest.mark.usefixtures("twins")
def test_the_environment_is_reviewed_in_three_languages_amid_kills(tmp_path: Path) -> None:
    killed_and_reviewed(json.loads(demo("--json", "--out", str(tmp_path / "out")).stdout), ALL)


def test_the_environment_is_reviewed_in_python_alone_amid_kills(tmp_path: Path) -> None:
    facts = json.loads(demo("--json", "--languages", "python", "--out", str(tmp_path / "out")).stdout)
    assert facts["not_built"] == {}
    killed_and_reviewed(facts, PYTHON)


def test_without_toolchains_the_agents_run_in_python_and_a_line_says_why(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3").symlink_to(sys.executable)
    words = ("--json", "--no-chaos", "--input", str(small_site(tmp_path)), "--out", str(tmp_path))
    facts = json.loads(demo(*words, PATH=str(tools)).stdout)
    assert languages_of(facts) == PYTHON
    assert facts["not_built"].keys() == {"classifier", "reporter"}
    assert "Node" in facts["not_built"]["classifier"] and "\n" not in facts["not_built"]["classifier"]
    assert "go is missing" in facts["not_built"]["reporter"]


def killed_and_reviewed(facts: dict[str, Any], languages: dict[str, str]) -> None:
    """What must hold of every demo whose agent and orchestrator were killed."""
    assert languages_of(facts) == languages

    installed = {path.name for path in Path(facts["folder"]).glob("*.dist-info")}
    assert facts["packages"] == len(installed) > 50
    assert facts["tasks"] == facts["succeeded"] == 4 * facts["packages"] + 2
    assert facts["attempts"] >= facts["tasks"]
    assert sum(facts["by_kind"].values()) == facts["packages"]
    assert facts["seconds"] < LIMIT

    crash = facts["crash"]
    assert crash["new_orchestrator_pid"] != crash["orchestrator_pid"]
    assert crash["agent_back_after"] > 0
    assert 0.3 * facts["tasks"] < crash["finished_before"] < 0.7 * facts["tasks"]
    assert crash["ran_again"] == []
    assert crash["begun"] <= facts["attempts"]

    withheld = facts["withheld"]
    assert withheld["received"] == ["description", "directory"]
    assert withheld["tasks"] == withheld["by_policy"] == facts["packages"]
    assert withheld["policies"] == ["compliance.no-contacts-for-summarizer"]
    reasons = {part["pointer"]: part["reason"] for part in withheld["example"]["parts"]}
    assert withheld["example"]["package"] in installed
    assert (reasons["/contacts"], reasons["/license_text"]) == (withheld["policies"][0], "schema")
    assert "/description" not in reasons
    assert withheld["by_schema"] == withheld["tasks"] * (len(reasons) - 1)

    denied = facts["denied"]
    assert (denied["state"], denied["policies"]) == ("FAILED", ["dev.restricted"])
    assert "the payload is labelled restricted" in denied["reason"]
    assert denied["run_id"] != facts["run_id"]

    entry = facts["context"]
    assert entry["key"] == "compliance/totals" and entry["revision"] > 0
    assert entry["value"]["by_kind"] == facts["by_kind"] and entry["value"]["packages"] == facts["packages"]
    assert (entry["run_id"], entry["agent"]) == (facts["run_id"], "reporter")
    assert entry["attempt_id"].startswith(f"{facts['run_id']}/report/0/")

    markdown, data = (Path(path) for path in facts["report"])
    report = json.loads(data.read_text())
    versions = {one.metadata["Name"]: one.version for one in distributions(path=[facts["folder"]])}
    assert {row["name"]: row["version"] for row in report["rows"]} == versions
    kinds = {row["name"]: (row["kind"], row["license"]) for row in report["rows"]}
    assert kinds["grpcio"] == ("permissive", "Apache-2.0")
    assert kinds["hypothesis"] == ("weak-copyleft", "MPL-2.0")
    assert not any("@" in row["contacts"] for row in report["rows"])
    text = markdown.read_text()
    assert all(name in text for name in versions)
    assert "MPL-2.0: changes to it must stay open" in text


def small_site(folder: Path) -> Path:
    """A site-packages folder with a package, and one whose metadata is broken."""
    good, broken = folder / "site/lib-1.0.dist-info", folder / "site/broken-2.dist-info"
    good.mkdir(parents=True)
    broken.mkdir()
    contact = "Ann <ann@example.org>, +49 30 1234567"
    (good / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: lib\nVersion: 1.0\nLicense: GPLv3\nAuthor: {contact}\n"
    )
    return folder / "site"


def test_another_folder_is_reviewed_and_broken_metadata_does_not_stop_it(tmp_path: Path) -> None:
    words = ("--languages", "python", "--input", str(small_site(tmp_path)), "--out", str(tmp_path))

    facts = json.loads(demo("--json", "--no-chaos", *words).stdout)

    assert facts["by_kind"] == {"strong-copyleft": 1, "unknown": 1}
    assert facts["crash"] is None
    assert facts["withheld"]["tasks"] == facts["context"]["value"]["packages"] == 2
    rows = {row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert rows["lib"]["contacts"] == "Ann <[email]>, [phone]"
    assert rows["broken"]["doubt"] == "no licence could be determined"


def test_a_folder_without_packages_is_refused_in_one_line(tmp_path: Path) -> None:
    done = demo("--input", str(tmp_path), "--out", str(tmp_path), code=2)
    assert done.stderr.count("\n") == 1
    assert "--input" in done.stderr


def test_ctrl_c_stops_everything_that_was_started(tmp_path: Path) -> None:
    command = [ANTIPHON, "demo", "--keep", "--languages", "python", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        # A shell that starts the tests in the background has SIGINT ignored by all of them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    while "five agents" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    folder = Path(said.rpartition("kept: ")[2].strip())
    try:
        assert (folder / "orchestrator.log").exists()
        asyncio.run(eventually(lambda: not processes_in(folder)))
    finally:
        shutil.rmtree(folder)
