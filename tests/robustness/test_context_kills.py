"""kill -9 of the orchestrator between puts: what was answered is there, and a watch goes on without gap or repeat."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest
from antiphon import Client, RetryableError, entry_value

from tests.harness import Mesh, eventually

pytest_plugins = ("tests.harness.fixtures",)

KILLS = 3
WRITERS = 4
PATIENCE = timedelta(seconds=60)


@pytest.mark.proves("shared context, whatever breaks")
async def test_no_acknowledged_put_is_lost_and_no_change_is_missed_or_told_twice(bare: Mesh) -> None:
    acknowledged: dict[str, dict[int, int]] = {f"k{writer}": {} for writer in range(WRITERS)}
    seen: list[tuple[int, str, int]] = []
    stop = asyncio.Event()

    async def write(client: Client, key: str) -> None:
        """Counts up, each number put once, whatever is killed meanwhile."""
        number = 0
        while not stop.is_set():
            number += 1
            request_id = f"{key}-{number}"

            async def put() -> int:
                with suppress(RetryableError):  # it may have been written: the same request again finds out
                    return (await client.put_entry(key, number, request_id=request_id)).revision  # noqa: B023
                return 0

            acknowledged[key][number] = await eventually(put, limit=60)

    async def watch(client: Client, first: int) -> None:
        async for event in client.watch_entries("k", from_revision=first):
            if event.put.key == "k-last":  # put when all others had their answers
                return
            seen.append((event.put.revision, event.put.key, entry_value(event.put)))

    async with bare.client(timeout=PATIENCE, patience=PATIENCE) as client:
        _, first = await client.snapshot_entries()
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            group.create_task(watch(client, first))
            writers = [group.create_task(write(client, key)) for key in acknowledged]
            for _ in range(KILLS):
                reached = {key: len(numbers) + 5 for key, numbers in acknowledged.items()}
                await eventually(lambda wanted=reached: all(len(acknowledged[k]) >= n for k, n in wanted.items()))
                await asyncio.to_thread(bare.orchestrator.restart)
            stop.set()
            await asyncio.gather(*writers)
            await client.put_entry("k-last", 0)
        for key, numbers in acknowledged.items():
            assert entry_value(await client.get_entry(key)) == max(numbers)

    assert [revision for revision, _, _ in seen] == sorted({revision for revision, _, _ in seen}), "in order, each once"
    for key, numbers in acknowledged.items():
        told = {value: revision for revision, name, value in seen if name == key}
        assert [value for _, name, value in seen if name == key] == sorted(numbers), "without gap or repeat"
        assert told == numbers, "in the revision that was answered"
