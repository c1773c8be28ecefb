"""The TypeScript SDK, installed and built; asked for by tests, which are not run without Node, and in CI fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_MISSING = 3


@pytest.fixture(scope="session")
def typescript() -> Path:
    """The folder of the SDK, built."""
    command = [sys.executable, str(ROOT / "tools/node.py"), "--build"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == _MISSING and os.environ.get("CI") != "true":
        pytest.skip(done.stdout.strip())
    if done.returncode:
        pytest.fail(done.stdout, pytrace=False)
    return ROOT / "sdk/typescript"
