"""W4: resident memory of each process, idle before any load and at its peak after all of it."""

from __future__ import annotations

from .mesh import Mesh
from .process import memory


def idle(mesh: Mesh) -> dict[str, float]:
    """Keys <process>_idle_mb. Call it before the first load."""
    return {f"{name}_idle_mb": memory(child.pid)[0] for name, child in mesh.children.items()}


def peak(mesh: Mesh) -> dict[str, float]:
    """Keys <process>_peak_mb, over the life of each process."""
    return {f"{name}_peak_mb": memory(child.pid)[1] for name, child in mesh.children.items()}
