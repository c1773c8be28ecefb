"""The hot path as wheels hold it: compiled, and held to the same suites as its source.

mypyc compiles types as facts: a value that is not what an annotation says raises TypeError, where the source would go
on. The suites that know the most about the compiled modules therefore run once more against the wheel.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RequireTool
from tools.wheel import ROOT, Wheel, unpacked

ORCHESTRATOR = ("tests/unit/engine", "tests/unit/shards", "tests/unit/admission", "tests/simulation/test_simulation.py")
SIDECAR = tuple(
    f"tests/unit/sidecar/test_sidecar_{part}.py"
    for part in ("alone", "arbitrary", "asks", "checks", "inflight", "partials", "spool", "windows")
)
WAITS = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor)
# These put recording stand-ins in the place of a table and a method, which compiled code does not look up by name.
NOT_THESE = (
    "tests/unit/engine/test_engine_play.py::test_every_row_of_every_table_is_there_for_something",
    "tests/unit/shards/test_fleet.py::test_a_slot_that_comes_free_looks_only_at_those_it_can_serve",
    "tests/unit/sidecar/test_sidecar_inflight.py::test_every_row_of_the_table_is_visited_by_these_tests",
)


def modules() -> list[str]:
    """Their paths below the package that holds theirs."""
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    packages: dict[str, list[str]] = targets["wheel"]["hooks"]["custom"]["modules"]
    return [f"{package}/{name}" for package, names in packages.items() for name in names]


def tree_of(module: str) -> ast.Module:
    return ast.parse(next(ROOT.glob(f"*/{module}")).read_text())


@pytest.fixture(scope="module")
def wheel(require_tool: RequireTool) -> Wheel:
    require_tool("gcc", package="gcc")
    return unpacked()


def python(wheel: Wheel, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=wheel.environ(), capture_output=True, text=True, timeout=300
    )


def test_each_listed_module_is_imported_as_compiled_code(wheel: Wheel) -> None:
    names = [name.removesuffix(".py").replace("/", ".") for name in modules()]
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    printed = python(wheel, "-c", code, *names).stdout.split()
    assert len(printed) == len(names)
    assert [path for path in printed if path.endswith(".py") or not Path(path).is_relative_to(wheel.folder)] == []


@pytest.mark.parametrize("suites", [ORCHESTRATOR, SIDECAR], ids=["orchestrator", "sidecar"])
def test_the_suites_of_the_hot_path_pass_against_the_wheel(wheel: Wheel, suites: tuple[str, ...]) -> None:
    without = [word for name in NOT_THESE for word in ("--deselect", name)]
    done = python(wheel, "-m", "pytest", "-q", "-p", "no:cacheprovider", *without, *suites)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr


def test_the_wheel_leaves_nothing_in_the_checkout(wheel: Wheel) -> None:
    assert [path for part in ("orchestrator", "sidecar") for path in (ROOT / part).rglob("*.so")] == []


def caught(function: ast.AST) -> Iterator[str]:
    """Names that a function gives to exceptions it catches, once per kind of exception."""
    kinds = {(node.name, ast.dump(node.type)) for node in ast.walk(function) if _is_named(node)}  # type: ignore[attr-defined]
    yield from (name for name, _ in kinds)


def _is_named(node: ast.AST) -> bool:
    return isinstance(node, ast.ExceptHandler) and node.name is not None and node.type is not None


@pytest.mark.parametrize("module", modules())
def test_no_name_stands_for_exceptions_of_two_kinds(module: str) -> None:
    """In compiled code a name has one type per function: the second handler would raise TypeError."""
    for function in ast.walk(tree_of(module)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            names = list(caught(function))
            assert len(names) == len(set(names)), f"{module}: {function.name}"


def waits_at_an_exception(tree: ast.AST) -> Iterator[int]:
    """Lines at which a coroutine may wait while it handles an exception."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncWith):
            yield node.lineno
        elif isinstance(node, ast.Try):
            for handling in (*node.handlers, *node.finalbody):
                yield from (inner.lineno for inner in ast.walk(handling) if isinstance(inner, WAITS))


@pytest.mark.parametrize("module", modules())
def test_nothing_waits_while_it_handles_an_exception(module: str) -> None:
    """A compiled coroutine takes the exception that it handles for that of its thread, also while it waits: everybody
    else's would have it for its context, and with two that overlap it stays for good."""
    assert list(waits_at_an_exception(tree_of(module))) == []
