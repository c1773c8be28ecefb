"""The package is what its `__all__` says, and stays a library: no gRPC, no other package of ours."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import antiphon_certs


def test_all_is_the_api() -> None:
    public = {
        name
        for name, value in vars(antiphon_certs).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(antiphon_certs.__all__)


def test_every_class_and_function_of_the_api_is_documented() -> None:
    api = {name: getattr(antiphon_certs, name) for name in antiphon_certs.__all__}
    parts = {name for name, value in api.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert not [name for name in parts if not api[name].__doc__]


def test_only_cryptography_and_the_standard_library_are_imported() -> None:
    assert antiphon_certs.__file__
    for path in Path(antiphon_certs.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                assert module.split(".")[0] in {*sys.stdlib_module_names, "cryptography"}, f"{path.name}: {module}"


def test_importing_it_loads_no_grpc() -> None:
    script = "import sys, antiphon_certs; sys.exit(any(name.split('.')[0] == 'grpc' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
