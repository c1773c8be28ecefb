"""Tasks that several agents are asked to do, as a shard sees them: when and where a hedge asks a second agent, what an
attempt teaches, and who may have an agent that another member has left."""

from __future__ import annotations

from ..engine import agreement
from ..engine.events import AttemptEnded, Placement, TaskExpanded
from ..engine.plan import HedgePlan
from ..engine.run import Run, Task
from ..engine.states import AttemptState, TaskState
from ..placement.fleet import Fleet, Need
from .needs import Needs
from .turn import Entry

AGAIN = 1_000_000
"""Microseconds at least until a second attempt that could not be made is looked at again, however short the delay."""


def need_of(needs: Needs, run: Run, task: Task, payload: bytes) -> Need:
    """What a task asks of an agent; a member of a quorum or hedge besides, that it is no other member's."""
    need = needs.of(run.submitted.namespace, task.plan, payload)
    if task.member and task.plan.agree:
        return need._replace(taken=agreement.taken(run.tasks[task.plan.index], task.member))
    return need


def began(fleet: Fleet, run: Run, member: Task, hedge: HedgePlan) -> None:
    """The first member of a hedge is offered; not every time that it is tried again is a task more."""
    if len(member.attempts) == 1:
        fleet.hedging.began(run.submitted.namespace, member.plan, hedge)


def due(fleet: Fleet, run: Run, node: Task, hedge: HedgePlan) -> int | None:
    """When a second attempt is to be made beside the one that is out, if there may be one; microseconds since 1970."""
    first = agreement.alone(run, node)
    if first is None:
        return None
    return first.offer_time + fleet.hedging.delay(run.submitted.namespace, node.plan, hedge)


def second(fleet: Fleet, needs: Needs, entry: Entry, node: Task) -> tuple[TaskExpanded, Placement] | None:
    """The second member of a hedge with its reserved place, if it has been earned and another instance has a free slot
    now. It never waits in a queue: whoever is late because everybody is busy is not helped by more work."""
    run, namespace = entry.run, entry.run.submitted.namespace
    if not fleet.hedging.earned(namespace, node.plan):
        return None
    event = agreement.second(node)
    payload = event.inputs[0]
    need = needs.of(namespace, node.plan, payload)._replace(taken=agreement.taken(node, event.first_member))
    place = fleet.place(need, run.submitted.principal, entry.principal_kind, payload, 1)
    if not isinstance(place, Placement):
        return None
    fleet.hedging.spend(namespace, node.plan)
    return event, place


def ended(fleet: Fleet, run: Run, task: Task, event: AttemptEnded, now: int) -> list[Task]:
    """An attempt of a member has ended. Answers the other members that are to be placed anew, because there may be an
    agent for them now that was taken."""
    if event.state is AttemptState.SUCCEEDED:
        if task.plan.hedge is not None:
            offered = task.attempts[event.number - 1].offer_time
            fleet.hedging.took(run.submitted.namespace, task.plan, now - offered)
            fleet.hedging.used += event.member > 1
        return []
    return left(fleet, run, task)


def left(fleet: Fleet, run: Run, task: Task) -> list[Task]:
    """The other members that are to be placed anew, because the agent that this one was at may be free for them."""
    others = [m for m in run.tasks[task.plan.index].members if m is not task and m.state is TaskState.READY]
    for other in others:
        fleet.leave(run.run_id, task.plan.index, other.member)
    return others
