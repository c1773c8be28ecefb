"""Antiphon for Python: write agents, submit runs.

What `__all__` lists is the API; the modules behind it are private. Names are loaded when first used, so that an agent
process does not pay for the client, nor a server that only wants the generated messages for either.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._agent import Agent
    from ._context import TaskContext, current_task

__all__ = ["Agent", "TaskContext", "current_task"]

_HOMES = {
    "_agent": ("Agent",),
    "_context": ("TaskContext", "current_task"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'antiphon' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
