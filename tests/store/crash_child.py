"""The process that the crash tests kill: many writers on one store, each acknowledged commit told on stdout.

Every transaction appends one journal key and moves that writer's watched counter to the same number.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

from antiphon_orchestrator.store import Compare, Put, SqliteStore, Target, Txn, keys

WRITERS = 8


def counter(writer: int) -> bytes:
    return b"context/%02d" % writer


async def write(store: SqliteStore, writer: int, first: int) -> None:
    for seq in count(first):
        key = keys.log(writer, seq)
        ops = Put(key, b"x" * (seq % 7 * 900)), Put(counter(writer), b"%d" % seq)
        result = await store.commit(Txn((Compare(key, Target.VERSION, 0),), ops))
        assert result.succeeded
        print(writer, seq, result.revision, flush=True)


async def main() -> None:
    async with SqliteStore(Path(sys.argv[1])) as store, asyncio.TaskGroup() as group:
        lease = await store.grant(1000)
        await store.commit(Txn(ops=(Put(keys.replica("child"), b"", lease),)))
        print("ready", flush=True)
        if len(sys.argv) > 2:
            for writer in range(WRITERS):
                group.create_task(write(store, writer, int(sys.argv[2])))
        await store.run()


if __name__ == "__main__":
    asyncio.run(main())
