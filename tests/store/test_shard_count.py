"""How many shards a store is divided into: settled once, for all its life."""

from __future__ import annotations

from pathlib import Path

import pytest
from antiphon_orchestrator.shards.log import ShardsFixed, shard_count
from antiphon_orchestrator.store import SqliteStore


async def test_a_new_store_gets_the_number_that_is_asked_for_and_keeps_it(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "store.db") as store:
        assert await shard_count(store, 7) == 7
    async with SqliteStore(tmp_path / "store.db") as store:
        assert await shard_count(store, None) == await shard_count(store, 7) == 7


async def test_one_process_writes_all_of_an_embedded_store_so_one_shard_is_enough(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "store.db") as store:
        assert await shard_count(store, None) == 1


async def test_another_number_is_refused_with_the_one_that_holds(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "store.db") as store:
        await shard_count(store, 4)
        with pytest.raises(ShardsFixed, match="--shards 4"):
            await shard_count(store, 32)
