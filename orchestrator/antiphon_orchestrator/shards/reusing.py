"""Results of pure capabilities, used again instead of asking an agent: what may be used, and what is worth keeping.

Policy is asked as if an agent were asked: to dispatch to an instance that could have the task, and to release the
output. Where it says no, or nothing is kept, the task takes the usual way, and fails there if it has to.
"""

from __future__ import annotations

from ..engine import decide
from ..engine.decide import Outcome
from ..engine.events import ResultReused, Reused
from ..engine.run import Attempt, Run, Task
from ..engine.states import AttemptState, TaskState
from ..placement.fleet import Fleet, Need
from ..placement.results import Kept, key_of
from .judging import handed_on, release
from .turn import Entry, Turn


def reuse(fleet: Fleet, turn: Turn, entry: Entry, task: Task, need: Need, payload: bytes) -> ResultReused | None:
    """The end of a task with a result that is kept; None when an agent has to do it."""
    run, index, member = entry.run, task.plan.index, task.member
    kind, number = entry.principal_kind, len(task.attempts) + 1
    for offered, place in fleet.rehearse(need, run.submitted.principal, kind, payload, number):
        given = payload if place.reduced_input is None else place.reduced_input
        schema = fleet.output_schema(need.namespace, offered.label)
        key = key_of(need.namespace, offered, schema, given)
        kept = turn.results.get(key) or fleet.results.get(key, turn.now, task.plan.cache_ttl)
        if kept is None:
            continue
        outcome = release(fleet, run, kind, offered.label, kept.output, fleet.labels(kept.output), 0)
        if outcome.state is AttemptState.SUCCEEDED:
            fleet.results.hits += 1
            origin = Reused(kept.origin_attempt_id, kept.keep_time, place.decision, outcome.policy)
            given_now = payload if task.state is TaskState.PENDING else None
            return ResultReused(index, member, kept.output, origin, given_now, outcome.released)
    fleet.results.misses += 1
    return None


def worth_keeping(
    fleet: Fleet, run: Run, task: Task, attempt: Attempt, outcome: Outcome, now: int
) -> tuple[bytes, Kept] | None:
    """An accepted output with its key. None for one that is kept by reference, which may be collected with its run, and
    when what made it has gone, so that nobody can say any more which schema it had."""
    namespace, label = run.submitted.namespace, attempt.placement.capability
    instance = fleet.instance(attempt.instance)
    if instance is None or fleet.values.known(outcome.output).by_reference:
        return None
    for offered in instance.offers:
        if offered.label == label:
            key = key_of(namespace, offered, fleet.output_schema(namespace, label), handed_on(task, attempt))
            attempt_id = decide.attempt_id(run.run_id, task, attempt.number)
            return key, Kept(outcome.output, attempt_id, now, now + task.plan.cache_ttl)
    return None
