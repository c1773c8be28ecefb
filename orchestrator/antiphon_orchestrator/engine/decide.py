"""What should happen next, decided and never done.

Every function looks at a run and answers a list of events; nothing here changes state. The caller applies each event,
records it, and calls `advance` until it has no more to say. Time, jitter, expression results and placements come in as
arguments, so that the same inputs give the same decisions in tests, in simulation and live.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Protocol

from . import agreement, compensation, loops, quarantine, waits
from .escalation import DOUBTFUL, escalate, fail_task
from .events import (
    OUTPUT,
    AttemptEnded,
    AttemptOffered,
    AttemptStarted,
    CancelRequested,
    ContextRead,
    Event,
    Found,
    Placement,
    RunEnded,
    RunUnwinding,
    TaskAgreed,
    TaskCompleted,
    TaskEnded,
    TaskEscalated,
    TaskExpanded,
    TaskReady,
    TaskWaiting,
)
from .failure import Failure, FailureKind
from .plan import EvaluationFailed, RetryRule
from .run import Run, Task
from .states import TASK_ASKS, AttemptState, RunState, TaskState

MOST_MEMBERS = 100_000
"""Members of one fan-out: a list of a few kilobytes can mean more work than anybody wants, all of it on record."""

MOST_INPUT_BYTES = 256 * 1024 * 1024
"""Of all members of one fan-out together: a submission of a few kilobytes could fill a store."""

MEMBERS_PER_STEP = 100
"""Members a fan-out gets, or loses, in one step; a larger one takes several, so that no turn is held up by it."""

STEP_BYTES = 256 * 1024
"""Payload bytes of one step, unless a single payload is larger; keeps a turn within the store's limit."""


RETURNS_AT_ONCE = 3
"""Times in a row that a task whose offer came back is placed again at once; then a sidecar and we disagree on slots."""

RETURNED = RetryRule(frozenset(), 0, 100_000, 30_000_000, 2.0)
"""The waits after that; there is no number of times after which a task fails for it."""


_LATE = Failure(FailureKind.TIMEOUT, "the task's deadline passed", retryable=False)

NEVER = 1 << 62
"""In place of the deadline of what undoes a task: a time that does not come."""


class Ports(Protocol):
    """What decisions need from outside besides their arguments."""

    def jitter(self) -> float:
        """A number from 0 to 1, for the spread of retries."""
        ...


def attempt_id(run_id: str, task: Task, number: int) -> str:
    return f"{run_id}/{task.plan.id}/{task.member}/{number}"


def idempotency_key(run_id: str, task: Task) -> str:
    """The same for every attempt of a task, those of both members of a hedge included: its effect is wanted once."""
    return f"{run_id}/{task.plan.id}/{task.member if task.plan.hedge is None else 1}"


def advance(run: Run, now: int) -> list[Event]:
    """The next step that needs nothing but the run: a settled join, a finished fan-out, the end of the run.

    `now` is when a task that waits for a time begins to."""
    if run.state is not RunState.RUNNING:
        return []
    if run.cancel is not None:
        return _wind_up(run, run.cancel)
    if run.paused is not None:
        # What is to be cancelled is, all the same: an attempt of it may end meanwhile.
        unwanted = next((index for index in run.frontier if run.tasks[index].cancel_reason), None)
        return [] if unwanted is None else _cancel_node(run, run.tasks[unwanted])
    for index in run.frontier:
        task = run.tasks[index]
        if not task.plan.reads or not waits_to_read(task):
            return _open_task(run, task, now)
    if run.tasks_open == 0 and not _output_reads(run):
        if run.completed and compensation.failing(run) is not None:
            back = compensation.go_on(run)
            if back is not None:
                return back
        return [_end_of_run(run)]
    return []


def waits_to_read(task: Task) -> bool:
    """Whether a task on the frontier waits for what its expressions read of shared context. One whose join cannot be
    met reads nothing."""
    wanted = task.found is None and bool(task.plan.reads) and not task.cancel_reason
    return wanted and task.needs_done >= task.plan.join


def _output_reads(run: Run) -> bool:
    return run.found is None and bool(run.plan.output_reads) and compensation.failing(run) is None


def readers(run: Run) -> list[int]:
    """Tasks that wait for what their expressions read of shared context, and OUTPUT for the run's own output."""
    if run.state is not RunState.RUNNING or run.cancel is not None:
        return []
    if run.tasks_open == 0:
        return [OUTPUT] if _output_reads(run) else []
    return [index for index in run.plan.readers if _is_reader(run.tasks[index])]


def _is_reader(task: Task) -> bool:
    return task.state is TaskState.PENDING and waits_to_read(task)


def read(run: Run, task: int, found: tuple[Found, ...] | Failure) -> list[Event]:
    """What was found for one of the `readers`, or why it could not be read; nothing for one that no longer waits."""
    if run.state is not RunState.RUNNING or run.cancel is not None:
        return []
    if not (_output_reads(run) if task == OUTPUT else _is_reader(run.tasks[task])):
        return []
    if not isinstance(found, Failure):
        return [ContextRead(task, found)]
    if task == OUTPUT:
        return [_failed_run(run, found)]
    return fail_task(run.tasks[task], found)


def _open_task(run: Run, task: Task, now: int) -> list[Event]:
    plan = task.plan
    index = plan.index
    if task.cancel_reason:
        return _cancel_node(run, task)
    if plan.fan_out and task.state is TaskState.RUNNING:
        if task.failure is not None:
            return _fail_fan_out(run, task, task.failure, [TaskEnded(index, 0, TaskState.FAILED, task.failure)])
        if plan.most_iterations:
            events = loops.go_on(run, task)
            # Not one that the clock would end as soon as it has begun.
            late = type(events[0]) is TaskExpanded and plan.deadline is not None and now >= task_deadline(run, task)
            return fail_task(task, _LATE) if late else events
        if plan.agree:
            return _with_rest_cancelled(run, task, agreement.go_on(run, task))
        if len(task.members) == task.member_count:
            return [TaskEnded(index, 0, TaskState.SUCCEEDED)]
    if task.needs_done < plan.join:
        return [TaskEnded(index, 0, TaskState.SKIPPED, reason=_why_skipped(run, task))]
    evaluator, view = run.plan.evaluator, run.view(task)
    try:
        if plan.conditional and not task.members and not evaluator.when(index, view):
            return [TaskEnded(index, 0, TaskState.SKIPPED, reason="its condition is false")]
        if plan.most_iterations:
            return [TaskExpanded(index, 1, 1, [evaluator.iteration(index, view, 1, b"")])]
        if plan.fan_out:
            if plan.agree:
                return agreement.begin(run, task)
            first = len(task.members) + 1
            count, inputs = evaluator.members(index, view, first, MEMBERS_PER_STEP)
            if count > MOST_MEMBERS:
                raise EvaluationFailed("for_each", f"gives a list of {count} items; {MOST_MEMBERS} are the most")
            if first > 1 and count != task.member_count:
                message = (
                    f"gave a list of {task.member_count} items, then one of {count}, as more needs ended meanwhile"
                )
                raise EvaluationFailed("for_each", message)
            inputs = _within_step(inputs)
            if task.input_bytes + sum(map(len, inputs)) > MOST_INPUT_BYTES:
                message = f"the inputs of all members take more than {MOST_INPUT_BYTES} bytes; upload what is large"
                raise EvaluationFailed("input", message)
            return [TaskExpanded(index, count, first, inputs)]
        if plan.wait is not None:
            return waits.begin(run, task, plan.wait, now)
        return [TaskReady(index, 0, evaluator.input(index, view))]
    except EvaluationFailed as error:
        failure = Failure(FailureKind.INVALID_INPUT, error.message, retryable=False, field=error.field)
        return _fail_fan_out(run, task, failure, fail_task(task, failure))


def _within_step(inputs: list[bytes]) -> list[bytes]:
    size = 0
    for number, payload in enumerate(inputs):
        size += len(payload)
        if size > STEP_BYTES and number:
            return inputs[:number]
    return inputs


def _why_skipped(run: Run, task: Task) -> str:
    missing = [
        f"{run.tasks[i].plan.id} {run.tasks[i].state.name}"
        for i in task.plan.needs
        if not run.tasks[i].counts_as_done()
    ]
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return f"its join needs {task.plan.join} of {len(task.plan.needs)} done; not done: {shown}"


def _end_of_run(run: Run) -> Event:
    if run.first_failure is not None:
        task_id, failure = run.first_failure
        return RunEnded(RunState.FAILED, failure=failure.of(f"task {task_id}"))
    if run.unwinding is not None:
        return RunEnded(RunState.FAILED, failure=run.unwinding)
    try:
        output, warning = run.plan.evaluator.output(run.output_view())
        return RunEnded(RunState.SUCCEEDED, output, warning=warning)
    except EvaluationFailed as error:
        return _failed_run(run, Failure(FailureKind.INVALID_OUTPUT, error.message, field=error.field))


def _failed_run(run: Run, failure: Failure) -> Event:
    """The end of a run that fails although no task of it has, or first its way back."""
    return RunUnwinding(failure) if run.completed else RunEnded(RunState.FAILED, failure=failure)


def offer(run: Run, task: Task, placement: Placement, epoch: int) -> AttemptOffered:
    return AttemptOffered(task.plan.index, task.member, len(task.attempts) + 1, placement, epoch)


def started(run: Run, task: Task, number: int) -> list[Event]:
    """The agent has begun; nothing when the attempt is not out, or known to have begun."""
    live = task.live
    if live is None or live.number != number or live.state is AttemptState.RUNNING or run.state is not RunState.RUNNING:
        return []
    return [AttemptStarted(task.plan.index, task.member, number)]


@dataclass(slots=True)
class Outcome:
    """What a sidecar, or the absence of one, says of an attempt. `busy` in microseconds."""

    state: AttemptState
    output: bytes
    failure: Failure | None
    busy: int
    policy: bytes
    released: bytes | None

    def __init__(
        self,
        state: AttemptState,
        output: bytes = b"",
        failure: Failure | None = None,
        busy: int = 0,
        policy: bytes = b"",
        released: bytes | None = None,
    ) -> None:
        self.released = released
        self.state = state
        self.output = output
        self.failure = failure
        self.busy = busy
        self.policy = policy


class Verdict:
    """What became of a reported outcome; names of antiphon.mesh.v1.VerdictKind."""

    ACCEPTED: Final = "ACCEPTED"
    DUPLICATE: Final = "DUPLICATE"
    STALE: Final = "STALE"
    GONE: Final = "GONE"


def settle(run: Run, task: Task, number: int, outcome: Outcome, now: int, ports: Ports) -> tuple[str, list[Event]]:
    """The verdict on an outcome, and what follows from it."""
    if not 1 <= number <= len(task.attempts):
        return Verdict.GONE, []
    attempt = task.attempts[number - 1]
    index, member = task.plan.index, task.member
    if task.live is not attempt:
        # A repeated report of the outcome that ended the attempt, or one that came after it was given up.
        known = attempt.state in (AttemptState.SUCCEEDED, AttemptState.FAILED, outcome.state)
        if known or attempt.stale:
            return Verdict.DUPLICATE, []
        if run.state is not RunState.RUNNING or outcome.state is AttemptState.RETURNED:
            return Verdict.STALE, []
        late = AttemptEnded(index, member, number, outcome.state, failure=outcome.failure, stale=True)
        return Verdict.STALE, [late]
    if outcome.state is AttemptState.RUNNING or run.state is not RunState.RUNNING:
        raise ValueError("a run that has ended has no live attempts, and RUNNING is no outcome")
    if outcome.state is AttemptState.RETURNED and attempt.state is AttemptState.RUNNING:
        # Not for a sidecar of ours; whatever it was, the attempt may have done something.
        outcome = Outcome(AttemptState.LOST, failure=Failure(FailureKind.LOST, "it came back although it had begun"))
    ended = AttemptEnded(
        index,
        member,
        number,
        outcome.state,
        outcome.output,
        outcome.failure,
        outcome.busy,
        policy=outcome.policy,
        released=outcome.released,
    )
    if outcome.state is AttemptState.SUCCEEDED:
        return Verdict.ACCEPTED, [ended]
    if outcome.state is AttemptState.RETURNED:
        return Verdict.ACCEPTED, [ended, *_after_return(task, now, ports)]
    failure = outcome.failure or Failure(FailureKind.PERMANENT, "no reason was given")
    return Verdict.ACCEPTED, [ended, *_after_failure(run, task, failure, now, ports)]


def _after_return(task: Task, now: int, ports: Ports) -> list[Event]:
    """Nothing, since the task is READY again; or a wait, when its offers have come back too often in a row."""
    before = task.attempts[:-1]
    in_a_row = 1 + len([*takewhile(lambda attempt: attempt.state is AttemptState.RETURNED, reversed(before))])
    if in_a_row <= RETURNS_AT_ONCE:
        return []
    until = now + backoff(RETURNED, in_a_row - RETURNS_AT_ONCE, ports.jitter())
    return [TaskWaiting(task.plan.index, task.member, until, f"its offer came back {in_a_row} times in a row")]


def _after_failure(run: Run, task: Task, failure: Failure, now: int, ports: Ports) -> list[Event]:
    if task.plan.at_most_once and failure.kind in DOUBTFUL:
        return escalate(task, failure)
    rule = _rule_for(task, failure)
    tries = sum(1 for a in task.attempts if a.state is not AttemptState.RETURNED)
    most = rule.max_attempts if rule is not None else 0
    if quarantine.died(failure) and quarantine.alone(task, len(task.attempts)):
        most *= quarantine.PATIENCE
        if failure.code in quarantine.BEGUN or tries >= most:
            return quarantine.quarantine(task, failure)
    if rule is not None and failure.retryable and tries < most:
        until = now + backoff(rule, tries, ports.jitter())
        if until < task_deadline(run, task):
            reason = f"attempt {tries} of {most} failed ({failure.kind.name}: {failure.message[:200]})"
            return [TaskWaiting(task.plan.index, task.member, until, reason)]
    return fail_task(task, failure)


def _rule_for(task: Task, failure: Failure) -> RetryRule | None:
    # The second attempt of a hedge is spent for being quick; trying it again would double the load of a bad day.
    if task.plan.hedge is not None and task.member > 1:
        return None
    return next((rule for rule in task.plan.retry if failure.kind in rule.kinds), None)


def backoff(rule: RetryRule, tries: int, jitter: float) -> int:
    """Microseconds before the next attempt: half to all of the exponential wait (AWS's "equal jitter")."""
    # min() before the power is spent: 2.0**1000 would overflow long before 100 attempts could matter.
    wait = min(float(rule.max_backoff), rule.initial_backoff * rule.multiplier ** min(tries - 1, 64))
    return int(wait / 2 + wait / 2 * jitter)


def task_deadline(run: Run, task: Task) -> int:
    """When the task must have ended, in microseconds since 1970."""
    own = task.plan.deadline
    if task.plan.compensates >= 0:
        return NEVER
    if own is None:
        return run.submitted.deadline_time
    # Iterations, and the second attempt of a hedge, begin later than their task, and have no more time than it.
    later = task.member > 0 and (task.plan.most_iterations > 0 or task.plan.hedge is not None)
    since = run.tasks[task.plan.index].ready_time if later else task.ready_time
    return min(run.submitted.deadline_time, since + own)


def _fail_fan_out(run: Run, node: Task, failure: Failure, end: list[Event]) -> list[Event]:
    """The end of a task with members, some of them cancelled at a time, and before it all of them."""
    events = _cancel_members(run, node, f"another member failed: {failure.message[:200]}")
    return events if len(events) >= MEMBERS_PER_STEP else [*events, *end]


def _with_rest_cancelled(run: Run, node: Task, events: list[Event]) -> list[Event]:
    """What follows from the answers of several agents; once that is the end, whoever is still at it is told to stop."""
    last = events[-1]
    if type(last) is TaskAgreed:
        return [*_cancel_members(run, node, f"the answer of member {last.member} is used"), *events]
    if type(last) is TaskEnded or type(last) is TaskEscalated:
        return [*_cancel_members(run, node, "its agents can no longer agree"), *events]
    return events


def _cancel_node(run: Run, node: Task) -> list[Event]:
    """The end of a task that somebody cancelled, some members at a time, and before it all of them."""
    events = _cancel_members(run, node, node.cancel_reason)
    return events if len(events) >= MEMBERS_PER_STEP else [*events, *cancelled(node, node.cancel_reason)]


def _cancel_members(run: Run, node: Task, reason: str) -> list[Event]:
    events: list[Event] = []
    if not node.members_open:
        return events
    members = node.members
    for place in range(0 if run.passed is None else run.passed.get(node.plan.index, 0), len(members)):
        if not members[place].ended:
            events += cancelled(members[place], reason)
            if len(events) >= MEMBERS_PER_STEP:
                break
    return events


def cancelled(task: Task, reason: str) -> list[Event]:
    index, member = task.plan.index, task.member
    events: list[Event] = []
    live = task.live
    if live is not None:
        failure = Failure(FailureKind.CANCELLED, reason, retryable=False)
        events.append(AttemptEnded(index, member, live.number, AttemptState.CANCELLED, failure=failure))
    return [*events, TaskEnded(index, member, TaskState.CANCELLED, reason=reason)]


def cancel_run(run: Run, principal: str, reason: str) -> list[Event]:
    """A caller's wish to end a run, which `advance` then carries out; nothing when it has ended or was cancelled."""
    if run.state is not RunState.RUNNING or run.cancel is not None:
        return []
    return [CancelRequested(principal, reason)]


def _wind_up(run: Run, cancel: CancelRequested) -> list[Event]:
    """Ends the tasks of a run that is to end, some at a time, then the run. Without a principal it was the clock."""
    reason = f"cancelled by {cancel.principal}: {cancel.reason}" if cancel.principal else cancel.reason
    events: list[Event] = []
    for node in run.tasks[: len(run.tasks) - run.plan.compensations]:
        # Members first: a fan-out ends after what it consists of.
        events += _cancel_members(run, node, reason)
        if len(events) < MEMBERS_PER_STEP and not node.ended:
            events += cancelled(node, reason)
        if len(events) >= MEMBERS_PER_STEP:
            return events
    if run.plan.compensations:
        if events:
            return events
        back = compensation.go_on(run)
        if back is not None:
            return back
    if cancel.principal:
        return [*events, RunEnded(RunState.CANCELLED)]
    return [*events, RunEnded(RunState.FAILED, failure=Failure(FailureKind.TIMEOUT, reason, retryable=False))]


def on_time(run: Run, task: Task | None, now: int, passed_over: str = "") -> list[Event]:
    """What the clock brings for a task, or for the run when `task` is None; nothing when it is not yet due.

    `passed_over`: of a task that looks in vain, who was passed over for it, as placement says."""
    if run.state is not RunState.RUNNING:
        return []
    if task is None:
        due = now >= run.submitted.deadline_time and run.cancel is None and not compensation.begun(run)
        return [CancelRequested("", "the run's deadline passed")] if due else []
    if task.ended or task.state in TASK_ASKS or (task.plan.fan_out and not task.member):
        return []
    if task.state is not TaskState.PENDING and task.plan.deadline is not None and now >= task_deadline(run, task):
        events: list[Event] = []
        if (live := task.live) is not None:
            events.append(
                AttemptEnded(task.plan.index, task.member, live.number, AttemptState.CANCELLED, failure=_LATE)
            )
            if task.plan.at_most_once:
                return [*events, *escalate(task, _LATE)]
        return [*events, *fail_task(task, _LATE)]
    if run.paused is not None:
        return []
    if task.state is TaskState.WAITING and now >= task.wait_until:
        if (wait := task.plan.wait) is not None:
            return [] if wait.signal else [TaskCompleted(task.plan.index, 0, b"")]
        return [TaskReady(task.plan.index, task.member, b"")]
    if looks_in_vain(run, task, now):
        within = f"within {task.plan.schedule_timeout / 1e6:g} s"
        message = f"no agent took {task.plan.capability} {within}"
        if task.plan.graph is not None:
            message = f"the graph {task.plan.graph} could not be loaded {within}"
        failure = Failure(FailureKind.NO_AGENT, message, retryable=False, cause=passed_over)
        return _after_no_agent(run, task, failure, now)
    return []


def looks_in_vain(run: Run, task: Task, now: int) -> bool:
    """Whether it is time for a task to give up waiting for an agent."""
    return task.state is TaskState.READY and now >= schedule_deadline(run, task)


def _after_no_agent(run: Run, task: Task, failure: Failure, now: int) -> list[Event]:
    """It looks for an agent again when a rule says so; each time counts as an attempt does."""
    in_vain = task.in_vain + 1
    tries = in_vain + sum(1 for a in task.attempts if a.state is not AttemptState.RETURNED)
    rule = _rule_for(task, failure)
    if rule is not None and tries < rule.max_attempts:
        until = now + backoff(rule, tries, 1.0)  # whoever looks for what is not there needs no spread
        if until < task_deadline(run, task):
            reason = f"attempt {tries} of {rule.max_attempts} found no agent"
            return [TaskWaiting(task.plan.index, task.member, until, reason, in_vain)]
    return fail_task(task, failure)


def may_begin(run: Run, task: Task) -> bool:
    """Whether an attempt of a READY task may go out: not while its run is held, nor, but to undo another, once it is to
    end."""
    if run.state is not RunState.RUNNING or run.paused is not None:
        return False
    return run.cancel is None or task.plan.compensates >= 0


def schedule_deadline(run: Run, task: Task) -> int:
    """When a READY task gives up waiting for an agent, counted from its last step; a pause does not count."""
    ended = task.attempts[-1].end_time if task.attempts else 0
    since = max(task.ready_time, task.again_time, ended, run.resume_time)
    return since + task.plan.schedule_timeout


def next_due(run: Run, task: Task) -> int | None:
    """When `on_time` should next look at a task; None when the clock has no say in it."""
    if task.state in TASK_ASKS:
        return None  # a person answers when they do, or the run's deadline passes
    if task.plan.fan_out and not task.member:
        return None  # each of its members has its own deadline
    due = None
    if run.paused is not None:
        pass  # a deadline passes all the same
    elif task.state is TaskState.WAITING:
        due = task.wait_until or None  # a signal comes when it comes
    elif task.state is TaskState.READY:
        due = schedule_deadline(run, task)
    if task.plan.deadline is not None and not task.ended and task.state is not TaskState.PENDING:
        deadline = task_deadline(run, task)
        due = deadline if due is None else min(due, deadline)
    return due
