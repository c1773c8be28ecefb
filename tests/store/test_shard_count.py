"""How many shards a store is divided into: settled once, for all its life."""

from __future__ import annotations

import pytest
from antiphon_orchestrator.shards.log import ShardsFixed, shard_count
from backends import Backend


async def test_a_new_store_gets_the_number_that_is_asked_for_and_keeps_it(backend: Backend) -> None:
    async with backend.open() as store:
        assert await shard_count(store, 7) == 7
    async with backend.open() as store:
        assert await shard_count(store, None) == await shard_count(store, 7) == 7


async def test_without_a_number_one_shard_is_enough(backend: Backend) -> None:
    async with backend.open() as store:
        assert await shard_count(store, None) == 1


async def test_another_number_is_refused_with_the_one_that_holds(backend: Backend) -> None:
    async with backend.open() as store:
        await shard_count(store, 4)
        with pytest.raises(ShardsFixed, match="--shards 4"):
            await shard_count(store, 32)
