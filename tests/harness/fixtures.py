"""Fixtures for the tests of a mesh: one orchestrator with one agent for all tests of a module, or a mesh of one's own.

pytest_plugins = ("tests.harness.fixtures",)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from antiphon import Client

from .mesh import Mesh


@pytest.fixture(scope="module")
def module_mesh() -> Iterator[Mesh]:
    """A mesh that the tests of a module share, with the agent `worker`."""
    with Mesh() as mesh:
        mesh.sidecar()
        yield mesh


@pytest.fixture
def mesh(module_mesh: Mesh) -> Iterator[Mesh]:
    """The module's mesh; what its processes say during the test is shown when it fails, and its own sidecars go."""
    kept = len(module_mesh.sidecars)
    yield module_mesh
    module_mesh.show()
    module_mesh.dismiss(*module_mesh.sidecars[kept:])


@pytest.fixture
def bare() -> Iterator[Mesh]:
    """A mesh for one test alone, without agents."""
    with Mesh() as mesh:
        yield mesh
        mesh.show()


@pytest_asyncio.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    """A client of the module's mesh, once its worker is there."""
    async with mesh.client() as client:
        await mesh.attached(client)
        yield client
