"""What `antiphon new agent --lang go` writes builds without a network, passes its own test and `antiphon verify`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NO_NETWORK = {**os.environ, "GOPROXY": "off", "GOFLAGS": "-mod=readonly"}


def antiphon(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "antiphon.command", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def project(go_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, built; that of the SDK's programs has put every module into Go's cache."""
    folder = tmp_path_factory.mktemp("new")
    assert antiphon("new", "agent", "hello-go", "--lang", "go", folder=folder).returncode == 0
    subprocess.run(["go", "build"], cwd=folder / "hello-go", env=NO_NETWORK, check=True)
    return folder / "hello-go"


def test_it_is_as_go_would_write_it_and_passes_its_own_test(project: Path) -> None:
    tidy = ["go", "mod", "tidy", "-diff"]  # looks at tests of what is imported, too, whose modules nothing else needs
    for command, env in ((["go", "test"], NO_NETWORK), (["go", "vet"], NO_NETWORK), (tidy, None)):
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
        assert (command, done.returncode) == (command, 0), done.stdout + done.stderr
    assert subprocess.run(["gofmt", "-l", "."], cwd=project, capture_output=True, text=True).stdout == ""


def test_it_passes_verify_at_once(project: Path) -> None:
    done = antiphon("verify", "--", "./hello-go", folder=project)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_graph_is_right(project: Path) -> None:
    assert antiphon("graph", "validate", "graph.yaml", folder=project).returncode == 0


def test_the_ten_line_example_passes_verify(go_programs: Path) -> None:
    done = antiphon("verify", "--", str(go_programs / "hello"), folder=go_programs)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_agent_that_calls_and_shares_passes_verify_each_time(go_programs: Path) -> None:
    # What it asks for just as its time is up is not asked after its outcome, whichever comes first.
    races = [word for case in ("deadline", "cancel", "attempt-token") for word in ("--case", case)]
    for cases in ([], *[races] * 5):
        done = antiphon("verify", "--answer", "text.count=3", *cases, "--", "./reviewer", folder=go_programs)
        assert done.returncode == 0, done.stdout + done.stderr
