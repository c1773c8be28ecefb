"""Build hook of antiphon-server: wheels hold the hot path compiled by mypyc beside its source (DECISIONS.md, D13).

The source is the only truth. It is compiled in a copy, never in the checkout, where a library left behind would be
imported in place of the .py that was edited; an editable installation is therefore not touched at all. Without a C
compiler or Python's headers the wheel is pure and does the same, more slowly. Which modules are compiled is data in
pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Other distributions are left out of the types, so that a module compiles to the same code wherever it is built.
MYPY = """[mypy]
no_site_packages = true
ignore_missing_imports = true
follow_imports = silent
"""

SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup

modules = mypycify(["--config-file=mypy.ini", *sys.argv[2:]], group_name=sys.argv[1], debug_level="0")
for module in modules:  # else each call of a function goes through a table, as another library might replace it
    module.extra_compile_args.append("-fvisibility=hidden")
setup(name=sys.argv[1], ext_modules=modules, script_args=["-q", "build_ext", "--inplace"])
"""


def can_compile() -> bool:
    """Whether there are a C compiler and Python's headers."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


def compile_modules(source: Path, modules: list[str], scratch: Path) -> dict[str, str]:
    """Compiles modules of the package at `source` in a copy below `scratch`, a folder of its own.

    Returns each library with the place it has in the wheel. Raises RuntimeError with what the compilers printed.
    """
    package = scratch / source.name
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "demo"))
    (scratch / "mypy.ini").write_text(MYPY)
    paths = [f"{source.name}/{module}" for module in modules]
    done = subprocess.run(
        [sys.executable, "-c", SETUP, source.name, *paths],
        cwd=scratch,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        remedy = "HATCH_BUILD_NO_HOOKS=true builds a wheel without compiled code"
        raise RuntimeError(f"antiphon-server: the hot path does not compile; {remedy}\n{done.stdout[-8000:]}")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    libraries = [*scratch.glob(f"*{suffix}"), *package.rglob(f"*{suffix}")]
    return {str(library): library.relative_to(scratch).as_posix() for library in libraries}


class CompiledHotPath(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel. `modules` in its configuration: by package, paths below it."""

    def dependencies(self) -> list[str]:
        return ["mypy[mypyc]>=2.0"] if can_compile() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        if not can_compile():
            self.app.display_warning("antiphon-server: no C compiler or no Python headers; this wheel is not compiled")
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="antiphon-build-")
        with ThreadPoolExecutor() as packages:  # each package is a library of its own: nobody loads what is not his
            for libraries in packages.map(self._compile, self.config["modules"].items()):
                build_data["force_include"].update(libraries)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compile(self, part: tuple[str, list[str]]) -> dict[str, str]:
        package, modules = part
        source = Path(self.root, package.removeprefix("antiphon_"), package)
        return compile_modules(source, modules, Path(self._scratch.name, package))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if not build_data["pure_python"]:
            self._scratch.cleanup()
