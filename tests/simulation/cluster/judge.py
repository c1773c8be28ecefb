"""The verdict on a world that has come to rest: what was seen from outside, against what is on record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from antiphon.store.v1 import journal_pb2 as journal
from antiphon_orchestrator.engine.run import Run, apply, start
from antiphon_orchestrator.engine.states import AttemptState, RunState
from antiphon_orchestrator.runs import views
from antiphon_orchestrator.shards import codec

from tests.simulation.cluster.graphs import plan_of

if TYPE_CHECKING:
    from tests.simulation.cluster.world import World

AWAY = "its sidecar went away without an outcome"


def judge(world: World) -> None:
    """Every run that was asked for is there once, whole, and as everybody was told."""
    history, archive = world.history, world.archive
    require = history.require
    runs = list(history.runs.values())
    require(len(history.runs) == len(world.errands), "a submission was never answered")
    require(len(set(runs)) == len(runs), "two requests became one run")
    ended = {run_id for run_id, run in archive.runs.items() if run.end_time is not None}
    require(ended == set(runs), f"lost: {set(runs) - ended}; nobody asked for: {ended - set(runs)}")
    for run_id in sorted(ended):
        _run(world, run_id)
    for replica in world.running():
        assert replica.host is not None and replica.fleet is not None
        live = [
            run_id
            for shard in replica.host.shards
            for run_id, entry in shard.runs.items()
            if entry.run.end_time is None
        ]
        require(not live, f"{replica.replica_id} goes on with {live}, which have ended")
        for instance in replica.fleet.instances():
            used = f"{instance.instance_id} has {instance.in_use} slots in use at {replica.replica_id}, for nothing"
            require(instance.in_use == 0, used)
    for sidecar in world.sidecars.values():
        held = list(sidecar.node.inflight.held) if sidecar.node is not None else []
        require(not held, f"{sidecar.name} still holds {held}")


def _records(world: World, run_id: str) -> list[bytes]:
    found: list[bytes] = []
    chunks = sorted(world.archive.chunks[run_id].values(), key=lambda chunk: chunk.first_seq)
    require = world.history.require
    for chunk in chunks:
        require(chunk.first_seq <= len(found) + 1, f"the record of {run_id} has a hole before {chunk.first_seq}")
        for seq, raw in enumerate(journal.LogSegment.FromString(chunk.data).records, chunk.first_seq):
            if seq <= len(found):
                require(found[seq - 1] == raw, f"the archive was told two histories of {run_id} at {seq}")
            else:
                found.append(raw)
    return found


def _run(world: World, run_id: str) -> None:
    history, require = world.history, world.history.require
    records = _records(world, run_id)
    first = journal.Record.FromString(records[0])
    submitted = codec.get_submitted(first.run_submitted)
    run = start(run_id, plan_of(submitted.graph_name), submitted, first.time)
    told = history.watched.get(run_id, {})
    require(set(told) == set(range(1, len(records) + 1)), f"nobody was told all of {run_id}")
    for number, raw in enumerate(records, 1):
        require(
            told.get(number) == views.event_message(run, raw).SerializeToString(),
            f"{run_id} {number} was told otherwise",
        )
        if number > 1:
            record = journal.Record.FromString(raw)
            require(run.state is RunState.RUNNING, f"something was recorded of {run_id} after its end")
            apply(run, codec.decode(record), record.time)
    require(
        run.state.name == history.ends[run_id], f"{run_id} ended {run.state.name} and was told {history.ends[run_id]}"
    )
    require(run.state.name == world.archive.runs[run_id].state, f"{run_id} is archived with another end")
    _attempts(world, run)


def _attempts(world: World, run: Run) -> None:
    history, require = world.history, world.history.require
    for task in run.all_tasks():
        succeeded = [attempt.number for attempt in task.attempts if attempt.state is AttemptState.SUCCEEDED]
        name = f"{run.run_id}/{task.plan.id}/{task.member}"
        require(len(succeeded) <= 1, f"{name} has {len(succeeded)} accepted outcomes")
        done = history.done.get(name)
        require(done is None or succeeded == [int(done)], f"{name}/{done} was accepted and is not on record")
        for attempt in task.attempts:
            lost = (
                attempt.state is AttemptState.LOST and attempt.failure is not None and attempt.failure.message == AWAY
            )
            sidecar = world.incarnations.get(attempt.instance.split("/")[1])
            here = lost and sidecar is not None and not world.disturbed[sidecar.name]
            require(not here, f"{name}/{attempt.number} was given up, and its sidecar was there all the time")
