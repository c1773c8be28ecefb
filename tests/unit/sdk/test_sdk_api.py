"""The package is what its `__all__` says, and costs a process only what it uses."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import antiphon
import pytest
from antiphon._version import VERSION

PACKAGE = Path(antiphon.__file__ or "").parent
OTHERS = {"cli", "command.py"}


def declared() -> set[str]:
    """The names that type checkers see."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_all_is_what_there_is_and_what_type_checkers_see() -> None:
    assert set(antiphon.__all__) == declared()
    assert all(getattr(antiphon, name) is not None for name in antiphon.__all__)
    assert set(antiphon.__all__) <= set(dir(antiphon))
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        _ = antiphon.Agnet


def test_every_class_and_function_of_the_api_is_documented() -> None:
    api = {name: getattr(antiphon, name) for name in antiphon.__all__ if name != "Payload"}
    parts = {name: value for name, value in api.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert not [name for name, value in parts.items() if not value.__doc__]
    methods = [
        f"{name}.{method}"
        for name, value in parts.items()
        if inspect.isclass(value)
        for method, function in vars(value).items()
        if inspect.isfunction(function) and not method.startswith("_") and not function.__doc__
    ]
    assert not methods


def test_the_sdk_needs_grpc_and_protobuf_only() -> None:
    allowed = {*sys.stdlib_module_names, "antiphon", "grpc", "google"}
    for path in PACKAGE.glob("*.py"):
        if path.name in OTHERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                # PyYAML is imported where a graph file is read, and said to be missing where it is; pydantic by one
                # module, itself imported when a user's class is pydantic's.
                others = {"pydantic", "pydantic_core"} if path.name == "_pydantic.py" else {"yaml"}
                assert module.split(".")[0] in allowed | others, f"{path.name}: {module}"


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import antiphon", {"grpc", "google.protobuf", "asyncio"}),
        ("from antiphon import Agent, TaskContext", {"yaml", "antiphon._client", "antiphon._graph", "email"}),
        ("from antiphon import Client", {"yaml", "antiphon._agent", "antiphon._work"}),
        ("from antiphon import sync", {"yaml", "antiphon._agent", "antiphon._graph"}),
        ("from antiphon.testing import Mesh", {"antiphon_orchestrator", "antiphon_sidecar", "pytest", "pydantic"}),
    ],
)
def test_a_process_loads_what_it_uses(statement: str, unwanted: set[str]) -> None:
    script = f"{statement}\nimport sys\nsys.exit(', '.join({unwanted!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_the_distribution_s() -> None:
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert settings["project"]["version"] == VERSION
