"""Tasks that several agents are asked to do: a quorum, whose answers are compared; a hedge, whose first one is used.

Both are fan-outs whose members share one input. Everything else is a fan-out's: each member has attempts and retries of
its own. A hedge begins with one member and may get a second; a quorum begins with all. What an answer agrees with is
recorded, so that recovery compares nothing, and so that who disagreed can be told for as long as the run is kept.
"""

from __future__ import annotations

from .escalation import fail_task
from .events import AnswerCompared, Event, TaskAgreed, TaskExpanded
from .failure import Failure, FailureKind
from .plan import EvaluationFailed
from .run import Attempt, Run, Task, votes
from .states import RunState, TaskState


def begin(run: Run, node: Task) -> list[Event]:
    """The first members. Raises EvaluationFailed."""
    index = node.plan.index
    payload = run.plan.evaluator.input(index, run.view(node))
    if node.plan.hedge is not None:
        return [TaskExpanded(index, 1, 1, [payload])]
    return [TaskExpanded(index, node.plan.of, 1, [payload])]


def go_on(run: Run, node: Task) -> list[Event]:
    """What follows from what the members have answered so far: one more member, a comparison, or the end."""
    index, agree = node.plan.index, node.plan.agree
    if len(node.members) < node.member_count:
        # One by one, since each is as large as an input may be.
        return [TaskExpanded(index, node.member_count, len(node.members) + 1, [node.members[0].input])]
    answers = sorted((m for m in node.members if m.state is TaskState.SUCCEEDED), key=_came)
    if node.plan.hedge is not None:
        return [TaskAgreed(index, answers[0].member)] if answers else fail_task(node, _failure_of_hedge(node))
    for answer in answers:
        if not answer.answer:
            return [_compare(run, node, answer, [other for other in answers if other.answer == other.member])]
    counts = votes(node)
    most = max(counts)
    if most >= agree:
        return [TaskAgreed(index, counts.index(most))]
    return fail_task(node, Failure(FailureKind.NO_QUORUM, _no_quorum(node, counts), retryable=False))


def second(node: Task) -> TaskExpanded:
    """The second member of a hedge."""
    return TaskExpanded(node.plan.index, 2, 2, [node.members[0].input])


def alone(run: Run, node: Task) -> Attempt | None:
    """The attempt of a hedge that is out and beside which there may be a second one; None when there may not."""
    held = run.state is not RunState.RUNNING or run.cancel is not None or run.paused is not None
    if held or node.state is not TaskState.RUNNING or len(node.members) != 1:
        return None
    return node.members[0].live


def taken(node: Task, member: int) -> frozenset[str]:
    """Agents, or instances, by `apart` of the plan, that the members besides one are at or have had an answer from, be
    it a graph that runs."""
    names: set[str] = set()
    for other in node.members:
        if other.member == member or not other.attempts:
            continue
        if other.live is not None or other.sub_run or other.state is TaskState.SUCCEEDED:
            placement = other.attempts[-1].placement
            names.add(placement.agent if node.plan.apart == "agent" else placement.instance)
    return frozenset(names)


def _came(member: Task) -> tuple[int, int]:
    return member.end_time, member.member


def _compare(run: Run, node: Task, answer: Task, firsts: list[Task]) -> AnswerCompared:
    """One that cannot be compared agrees with none: a bad answer must not keep good ones from agreeing."""
    index, reason = node.plan.index, ""
    for first in firsts:
        try:
            if run.plan.evaluator.agrees(index, run.view(node), answer.output or b"", first.output or b""):
                return AnswerCompared(index, answer.member, first.member, reason)
        except EvaluationFailed as error:
            reason = reason or f"cannot be compared with member {first.member}: {error.message[:500]}"
    return AnswerCompared(index, answer.member, answer.member, reason)


def _no_quorum(node: Task, counts: list[int]) -> str:
    groups = sorted((count for count in counts[1:] if count), reverse=True)
    told = f"{node.plan.agree} of {node.plan.of} must agree; "
    told += f"answers that agree: {', '.join(map(str, groups))}" if groups else "none answered"
    failed = [member for member in node.members if member.state is TaskState.FAILED]
    if failed:
        first = failed[0].failure
        told += f"; {len(failed)} failed" + (f" ({first.kind.name}: {first.message[:200]})" if first else "")
    cancelled = sum(1 for member in node.members if member.state is TaskState.CANCELLED)
    return told + (f"; {cancelled} cancelled" if cancelled else "")


def _failure_of_hedge(node: Task) -> Failure:
    for member in node.members:
        if (failure := member.failure) is not None:
            return failure.of(f"member {member.member}")
    return Failure(FailureKind.CANCELLED, "all of its members were cancelled", retryable=False)
