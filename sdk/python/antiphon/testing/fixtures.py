"""The fixture `mesh` for pytest with pytest-asyncio: a mesh for one test, without agents.

pytest_plugins = ("antiphon.testing.fixtures",)
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from ._mesh import Mesh


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    """A mesh that lives as long as the test."""
    async with Mesh() as mesh:
        yield mesh
