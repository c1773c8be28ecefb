"""Plants one fault in a server: Python loads this module at the start of a process that has this folder on its path.

The fault that the environment names is planted in a module of ours right after that was imported, before anybody uses
it. A process that never imports the module is left as it is, so a fault of the orchestrator spares the sidecars.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from planted import FAULTS, Fault


class _Planter(MetaPathFinder, Loader):
    """Finds the module of the fault as usual, and changes it once it is there."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._spec: ModuleSpec | None = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._fault.module or self._spec is not None:
            return None
        self._spec = PathFinder.find_spec(name, path, target)
        if self._spec is None or self._spec.loader is None:
            return None
        spec = ModuleSpec(name, self, origin=self._spec.origin)
        spec.has_location = True
        spec.submodule_search_locations = self._spec.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        assert self._spec is not None and self._spec.loader is not None
        self._spec.loader.exec_module(module)
        self._fault.plant(module)


if wanted := os.environ.get("ANTIPHON_PLANTED_FAULT"):
    sys.meta_path.insert(0, _Planter(next(fault for fault in FAULTS if fault.name == wanted)))
