"""The archiver: what the archive did not take is sent again, what it took is answered, and it says how it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from antiphon_orchestrator.archive import Archive, ArchivedRun, ArchiveUnavailable, EventChunk
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.shards.archiver import Archiver
from antiphon_orchestrator.shards.inputs import Archived
from shard_rig import Rig

from tests.fakes.plans import Node, plan
from tests.harness import eventually


@dataclass
class SometimesAway:
    """An archive that keeps lists, and takes nothing while it is away."""

    away: bool = True
    refused: int = 0
    taken: list[str] = field(default_factory=list)

    async def write(self, runs: Sequence[ArchivedRun], chunks: Sequence[EventChunk]) -> None:
        if self.away:
            self.refused += 1
            raise ArchiveUnavailable("away")
        self.taken += [run.run_id for run in runs]


def runs(count: int) -> list[Run]:
    rig = Rig()
    for n in range(count):
        rig.tell(rig.submit(f"r{n:03}", plan(Node())))
    return [rig.run(f"r{n:03}") for n in range(count)]


async def test_an_archive_that_was_away_gets_everything_once_it_is_back() -> None:
    archive = SometimesAway()
    archiver = Archiver(cast(Archive, archive))
    answers: list[tuple[int, Any]] = []
    archiver.answer = lambda shard, item: answers.append((shard, item))
    running = asyncio.create_task(archiver.run())
    try:
        made = runs(100)
        for run in made:
            archiver.put(3, run, b"key", 1, [b"record"])
        await eventually(lambda: archive.refused >= 2)
        assert (archiver.available, archiver.lag, answers) == (False, 100, [])
        archive.away = False
        await eventually(lambda: archiver.lag == 0)
        assert archiver.available
        assert archive.taken == [run.run_id for run in made]
        await eventually(lambda: len(answers) == 2)
        told = [item for _, item in answers if isinstance(item, Archived)]
        assert {shard for shard, _ in answers} == {3} and len(told) == 2
    finally:
        running.cancel()
        await asyncio.wait({running})
