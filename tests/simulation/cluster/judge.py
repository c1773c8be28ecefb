"""The verdict on a world that has come to rest: what was seen from outside, against what is on record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from antiphon.store.v1 import journal_pb2 as journal
from antiphon.v1.agent_service_pb2 import CallResponse
from antiphon_orchestrator.engine.run import Run, apply, start
from antiphon_orchestrator.engine.states import AttemptState, ChildKind, RunState
from antiphon_orchestrator.runs import views
from antiphon_orchestrator.shards import codec

from tests.simulation.cluster.graphs import plan_of
from tests.simulation.cluster.semantics import Rules, calls_of, content, failed_as

if TYPE_CHECKING:
    from tests.simulation.cluster.world import World

IN_FORCE = 5.0
"""Seconds within which a revocation that somebody was told of is in force everywhere."""

AWAY = "its sidecar went away without an outcome"
GONE = "ATTEMPT_NOT_FOUND"
"""Code of the refusal of a call whose attempt was given up meanwhile."""


def judge(world: World) -> None:
    """Every run that was asked for is there once, whole, and as everybody was told."""
    history, archive = world.history, world.archive
    require = history.require
    runs = list(history.runs.values())
    require(len(history.runs) == len(world.errands), "a submission was never answered")
    require(len(set(runs)) == len(runs), "two requests became one run")
    ended = {run_id for run_id, run in archive.runs.items() if run.end_time is not None}
    wanted = {*runs, *history.children}
    require(ended == wanted, f"lost: {wanted - ended}; nobody asked for: {ended - wanted}")
    found = {run_id: _run(world, run_id) for run_id in sorted(ended)}
    _beneath(world, found)
    offered = {attempt_id for rules in found.values() for attempt_id in rules.offered}
    unknown = sorted(set(history.executions) - offered)
    require(not unknown, f"executed, and not on record: {unknown}")
    _left(world, found)
    in_force = {serial for serial, told in history.revoked.items() if world.loop.now - told >= IN_FORCE}
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
        assert replica.sessions is not None
        for serial in sorted(in_force):
            require(replica.refuses(serial), f"{replica.replica_id} does not know that {serial} is revoked")
        for incarnation in replica.sessions._sessions:
            serial = world.incarnations[incarnation].serial
            require(serial not in in_force, f"{replica.replica_id} has a stream of {serial}, which is revoked")
        for key, counter in replica.fleet.limits._counters.items():
            idle = (counter.out, counter.called, counter.parked.size - counter.left) == (0, 0, 0)
            require(idle, f"{replica.replica_id} counts {counter.out} out and {counter.called} called up for {key}")
    for sidecar in world.sidecars.values():
        held = list(sidecar.node.inflight.held) if sidecar.node is not None else []
        require(not held, f"{sidecar.name} still holds {held}")
        assert sidecar.node is not None and sidecar.spool is not None
        mine = f"{sidecar.node.incarnation}-"
        left = [path.name for path in sidecar.folder.glob("*.spool") if not path.name.startswith(mine)]
        require(not left, f"{sidecar.name} has outcomes of former lives on its disk: {sorted(left)}")
        require(
            not sidecar.spool.left, f"{sidecar.name} has {sidecar.spool.left} outcomes on its disk, all with verdict"
        )


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


def _run(world: World, run_id: str) -> Rules:
    history, require = world.history, world.history.require
    records = _records(world, run_id)
    first = journal.Record.FromString(records[0])
    submitted = codec.get_submitted(first.run_submitted)
    run = start(run_id, plan_of(submitted), submitted, first.time)
    rules = Rules(run, history)
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
            event = codec.decode(record)
            rules.event(event, record.time)
            apply(run, event, record.time)
    require(
        run.state.name == history.ends[run_id], f"{run_id} ended {run.state.name} and was told {history.ends[run_id]}"
    )
    require(run.state.name == world.archive.runs[run_id].state, f"{run_id} is archived with another end")
    _attempts(world, rules)
    return rules


def _beneath(world: World, found: dict[str, Rules]) -> None:
    """Each run beneath a task is there once, and its end is what the task, or the caller, was told."""
    require = world.history.require
    begun = [run_id for rules in found.values() for run_id in rules.children]
    require(len(begun) == len(set(begun)), "a run is beneath two tasks")
    require(set(begun) == world.history.children, "what is beneath tasks on record is not what was told")
    for run_id, rules in found.items():
        for child_id, output in rules.given:
            child = found[child_id].run
            same = child.state is RunState.SUCCEEDED and content(child.output) == output
            require(same, f"{run_id} was given {output!r} by {child_id}, which ended {child.state.name}")
        for child_id in rules.failed:
            state = found[child_id].run.state
            require(state is not RunState.SUCCEEDED, f"{run_id} has a task that failed for {child_id}, which succeeded")
        calls = calls_of(rules)
        for made in calls.values():
            for _, child_id in made[:-1]:
                anew = found[child_id].run.state is not RunState.SUCCEEDED
                require(anew, f"{child_id} succeeded, and what it was called for was called for again")
        for attempt_id, responses in world.history.calls.items():
            place, _, number = attempt_id.rpartition("/")
            made_until = [run_id for begun, run_id in calls.get(place, ()) if begun <= int(number)]
            for response in responses if made_until else ():
                if response.HasField("failure") and response.failure.code == GONE:
                    continue
                # An attempt waits for what a former one has called for, and calls anew if that fails in a pause.
                same = any(_told(response, found[run_id].run) for run_id in made_until[-2:])
                require(same, f"{attempt_id} was told of {made_until}: {response}")


def _told(response: CallResponse, child: Run) -> bool:
    """Whether the end of a run is what a call was told."""
    if response.HasField("output"):
        return child.state is RunState.SUCCEEDED and content(child.output) == response.output.inline
    return response.failure.retryable or failed_as(response.failure, child)


def _left(world: World, found: dict[str, Rules]) -> None:
    """What a sidecar that was killed had on its disk counts, if its next life is there in time."""
    for name, attempt_ids in world.history.left:
        for attempt_id in sorted(attempt_ids) if world.fair else ():
            run_id, task_id, member, number = attempt_id.split("/")
            run = found[run_id].run
            attempt = run.task(run.plan.index_of[task_id], int(member)).attempts[int(number) - 1]
            lost = attempt.state is AttemptState.LOST
            world.history.require(not lost, f"{attempt_id} was lost, and its outcome was on the disk of {name}")


def _attempts(world: World, rules: Rules) -> None:
    history, require, run = world.history, world.history.require, rules.run
    for task in run.all_tasks():
        graphs = {child.begun.number for child in task.children or () if child.begun.kind is ChildKind.ANSWER}
        succeeded = [
            attempt.number
            for attempt in task.attempts
            if attempt.state is AttemptState.SUCCEEDED and attempt.number not in graphs
        ]
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
