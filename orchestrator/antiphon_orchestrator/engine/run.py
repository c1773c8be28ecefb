"""The state of a run, and `apply`, the only code that changes it.

`apply(run, event, now)` is used for live changes and for recovery alike, so what was recorded and what is in memory
cannot differ. It evaluates nothing, decides nothing and touches nothing outside the run.

Readiness is counted, not searched: each task knows how many of its needs are done and how many have ended, and a task
whose join is settled, or whose members have all ended, goes to `frontier`, from where `decide.advance` takes it. A
settled join stays settled, so the cost of a run is linear in its tasks and edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .events import (
    OUTPUT,
    AnswerCompared,
    AttemptEnded,
    AttemptOffered,
    AttemptStarted,
    CancelRequested,
    ChildBegun,
    ContextRead,
    Event,
    Found,
    ResultReused,
    RunEnded,
    RunGrown,
    RunPaused,
    RunResumed,
    RunSubmitted,
    RunUnwinding,
    SignalReceived,
    TaskAgreed,
    TaskCancelRequested,
    TaskCompleted,
    TaskEnded,
    TaskEscalated,
    TaskExpanded,
    TaskQuarantined,
    TaskReady,
    TaskReopened,
    TaskWaiting,
)
from .failure import Failure, FailureKind
from .plan import OnFailure, Plan
from .states import (
    ATTEMPT_TRANSITIONS,
    RUN_TRANSITIONS,
    TASK_ASKS,
    TASK_TRANSITIONS,
    AttemptState,
    ChildKind,
    IllegalTransition,
    RunState,
    TaskState,
    TaskTrigger,
)
from .task import Attempt as Attempt
from .task import Child as Child
from .task import Signal as Signal
from .task import Task as Task
from .view import ReleasedView, RunView


class Run:
    """One run. Nothing in it refers back to it, so that one which is done leaves memory without the collector.

    `redacted`: some output of it is not all for its principal, nor is what was made of that output. `found`: what the
    expressions of its output see of shared context, None until that was read. `signals`: all it was sent, in order.
    `paused`: since somebody holds it; `pause_time`, `resume_time`: when it was last held, and let go on.
    `cancel_time`: when its end was asked for, or 0. `completed`: tasks that can be undone, in the order in which they
    succeeded; `unwinding`: why they are undone, when no task's failure is the reason.
    `warning`: what is missing in the output of one that has SUCCEEDED.
    `grown`: tasks of all the runs beneath it, as far as this one counts them. `kept`: see plan.View.
    `asking`: tasks that wait for a person. `aside`: why nothing of it goes on in this process, if so.
    `passed`: of a fan-out whose members are cancelled, how many from the first on have ended; else it has no entry."""

    __slots__ = (
        "aside",
        "asking",
        "cancel",
        "cancel_time",
        "completed",
        "create_time",
        "end_time",
        "event_seq",
        "failure",
        "first_failure",
        "found",
        "frontier",
        "grown",
        "kept",
        "output",
        "passed",
        "pause_time",
        "paused",
        "plan",
        "redacted",
        "resume_time",
        "run_id",
        "signals",
        "state",
        "submitted",
        "tasks",
        "tasks_open",
        "unwinding",
        "warning",
    )

    def __init__(self, run_id: str, plan: Plan, submitted: RunSubmitted, now: int) -> None:
        self.run_id = run_id
        self.plan = plan
        self.submitted = submitted
        self.create_time = now
        self.end_time = 0
        self.event_seq = 1
        self.state = RunState.RUNNING
        self.output = b""
        self.warning = ""
        self.failure: Failure | None = None
        self.first_failure: tuple[str, Failure] | None = None
        self.cancel: CancelRequested | None = None
        self.tasks = [Task(p) for p in plan.tasks]
        self.tasks_open = len(self.tasks) - plan.compensations
        self.asking = 0
        self.aside = ""
        self.completed: list[int] = []
        self.unwinding: Failure | None = None
        self.redacted = False
        self.found: tuple[Found, ...] | None = None
        self.frontier: list[int] = list(plan.roots)
        self.signals: tuple[Signal, ...] = ()
        self.paused: RunPaused | None = None
        self.pause_time = 0
        self.cancel_time = 0
        self.resume_time = 0
        self.grown = 0
        self.kept: dict[int, object] | None = None
        self.passed: dict[int, int] | None = None

    def view(self, task: Task) -> RunView:
        """What the expressions of a task see."""
        return RunView(self, task.found)

    def output_view(self) -> RunView:
        """What the expressions see that make the run's own output."""
        return ReleasedView(self, self.found) if self.redacted else RunView(self, self.found)

    def task(self, index: int, member: int) -> Task:
        """The node, or a member of it; IndexError when there is none."""
        node = self.tasks[index]
        return node if member == 0 else node.members[member - 1]

    def tasks_behind(self, index: int, member: int) -> Iterator[Task]:
        """Those that come behind a place in the order of `all_tasks`; (-1, 0) is before the first."""
        if 0 <= index < len(self.tasks):
            yield from self.tasks[index].members[max(0, member) :]
        for node in self.tasks[max(0, index + 1) :]:
            yield node
            yield from node.members

    def all_tasks(self) -> Iterator[Task]:
        """Every node followed by its members."""
        for node in self.tasks:
            yield node
            yield from node.members


def start(run_id: str, plan: Plan, event: RunSubmitted, now: int) -> Run:
    """The state after RunSubmitted, which is the first event of every run."""
    return Run(run_id, plan, event, now)


def apply(run: Run, event: Event, now: int) -> None:
    """Changes `run` by one event decided at `now` (microseconds). Raises IllegalTransition."""
    run.event_seq += 1
    _APPLY[type(event)](run, event, now)


def _move(run: Run, task: Task, trigger: TaskTrigger) -> None:
    before = task.state
    try:
        task.state = TASK_TRANSITIONS[before, trigger]
    except KeyError:
        raise IllegalTransition(f"task {task.plan.id}[{task.member}]: {before.name} + {trigger.name}") from None
    if before is TaskState.ESCALATED or before is TaskState.QUARANTINED:
        run.asking -= 1


def _end_task(run: Run, task: Task, now: int) -> None:
    """Counts an ended task where it matters: its fan-out, or its dependents."""
    task.end_time = now
    if task.member:
        node = run.tasks[task.plan.index]
        node.members_open -= 1
        loop = task.plan.most_iterations > 0
        fatal = (task.plan.on_failure in FATAL or loop) and not task.plan.agree
        if task.state is TaskState.FAILED and fatal and node.failure is None:
            f = task.failure or Failure(FailureKind.PERMANENT, "")
            node.failure = f.of(f"{'iteration' if loop else 'member'} {task.member}")
        if not node.ended and node.plan.index not in run.frontier and fan_out_settled(node):
            run.frontier.append(node.plan.index)
        return
    if task.cancel_reason:
        # It has ended by itself, before it came to be cancelled.
        task.cancel_reason = ""
        if task.plan.index in run.frontier:
            run.frontier.remove(task.plan.index)
    if task.plan.compensates >= 0:
        return
    run.tasks_open -= 1
    if task.plan.compensation >= 0 and task.state is TaskState.SUCCEEDED:
        run.completed.append(task.plan.index)
    if (
        task.state is TaskState.FAILED
        and task.plan.on_failure in FATAL
        and run.first_failure is None
        and task.failure is not None
    ):
        run.first_failure = (task.plan.id, task.failure)
    done = task.counts_as_done()
    for index in task.plan.dependents:
        dependent = run.tasks[index]
        dependent.needs_ended += 1
        dependent.needs_done += done
        if dependent.state is TaskState.PENDING and index not in run.frontier and join_settled(dependent):
            run.frontier.append(index)


FATAL = frozenset({OnFailure.FAIL, OnFailure.ESCALATE})
"""Where a failure is one of the run: with ESCALATE, once a person has said that it is one."""


def join_settled(task: Task) -> bool:
    """True when the join is met, or can no longer be met."""
    plan = task.plan
    open_needs = len(plan.needs) - task.needs_ended
    return task.needs_done >= plan.join or task.needs_done + open_needs < plan.join


def fan_out_settled(node: Task) -> bool:
    """True when a fan-out has something to do: more members to get, a failure to spread, an answer to compare, or its
    end."""
    if node.plan.agree:
        return len(node.members) < node.member_count or _agreement_settled(node)
    return node.failure is not None or len(node.members) < node.member_count or node.members_open == 0


def votes(node: Task) -> list[int]:
    """Of a quorum or hedge: by member, how many answers agree with its own, which came first; an answer that was not
    compared yet counts at 0."""
    counts = [0] * (len(node.members) + 1)
    for member in node.members:
        if member.state is TaskState.SUCCEEDED:
            counts[member.answer] += 1
    return counts


def _agreement_settled(node: Task) -> bool:
    counts = votes(node)
    most = max(counts)
    return counts[0] > 0 or most >= node.plan.agree or most + node.members_open < node.plan.agree


def _task_ready(run: Run, event: TaskReady, now: int) -> None:
    task = run.task(event.task, event.member)
    if task.state is TaskState.WAITING:
        _move(run, task, TaskTrigger.DUE)
        task.wait_until = 0
        task.again_time = now
    else:
        _needs_met(run, task, event.input, now)
    task.reason = ""


def _needs_met(run: Run, task: Task, payload: bytes, now: int) -> None:
    _move(run, task, TaskTrigger.NEEDS_MET)
    task.input = payload
    task.ready_time = now
    if task.plan.compensates < 0:
        run.frontier.remove(task.plan.index)


def _attempt_offered(run: Run, event: AttemptOffered, now: int) -> None:
    task = run.task(event.task, event.member)
    if event.input is not None:
        _needs_met(run, task, event.input, now)
    _move(run, task, TaskTrigger.OFFERED)
    task.attempts.append(Attempt(event.number, event.placement, event.epoch, now))


def _attempt_started(run: Run, event: AttemptStarted, now: int) -> None:
    attempt = run.task(event.task, event.member).attempts[event.number - 1]
    _move_attempt(attempt, AttemptState.RUNNING)


def _move_attempt(attempt: Attempt, state: AttemptState) -> None:
    if (attempt.state, state) not in ATTEMPT_TRANSITIONS:
        raise IllegalTransition(f"attempt {attempt.number}: {attempt.state.name} → {state.name}")
    attempt.state = state


def _attempt_ended(run: Run, event: AttemptEnded, now: int) -> None:
    task = run.task(event.task, event.member)
    attempt = task.attempts[event.number - 1]
    if event.stale:
        attempt.stale = True
        return
    _move_attempt(attempt, event.state)
    attempt.failure = event.failure
    attempt.end_time = now
    attempt.busy = event.busy
    attempt.policy = event.policy
    if event.state is AttemptState.SUCCEEDED:
        task.output = event.output
        if event.released is not None:
            task.released = event.released
            run.redacted = True
        _move(run, task, TaskTrigger.SUCCEEDED)
        _end_task(run, task, now)
    elif event.state is AttemptState.RETURNED:
        _move(run, task, TaskTrigger.RETURNED)


def _task_waiting(run: Run, event: TaskWaiting, now: int) -> None:
    task = run.task(event.task, event.member)
    if task.state is TaskState.PENDING:
        _move(run, task, TaskTrigger.WAITED)
        task.ready_time = now
        run.frontier.remove(event.task)
    else:
        _move(run, task, TaskTrigger.BACKED_OFF)
    task.wait_until = event.until
    task.in_vain = event.in_vain or task.in_vain
    task.reason = event.reason


_TRIGGER_OF = {
    TaskState.SUCCEEDED: TaskTrigger.SUCCEEDED,
    TaskState.FAILED: TaskTrigger.FAILED,
    TaskState.SKIPPED: TaskTrigger.SKIPPED,
    TaskState.CANCELLED: TaskTrigger.CANCELLED,
}


def _task_ended(run: Run, event: TaskEnded, now: int) -> None:
    task = run.task(event.task, event.member)
    if not event.member and event.task in run.frontier:
        run.frontier.remove(event.task)
    _move(run, task, _TRIGGER_OF[event.state])
    task.failure = event.failure
    task.reason = event.reason
    task.wait_until = 0
    task.cancel_reason = ""
    _end_task(run, task, now)
    if event.member and event.state is TaskState.CANCELLED:
        _pass(run, event.task)


def _pass(run: Run, index: int) -> None:
    """Members are cancelled some at a time, and whoever looks for the next ones need not look at all before them."""
    passed = run.passed = {} if run.passed is None else run.passed
    members, place = run.tasks[index].members, passed.get(index, 0)
    while place < len(members) and members[place].ended:
        place += 1
    passed[index] = place


def _task_completed(run: Run, event: TaskCompleted, now: int) -> None:
    task = run.task(event.task, event.member)
    _move(run, task, TaskTrigger.SUCCEEDED)
    task.output = event.output
    if event.released is not None:
        task.released = event.released
        run.redacted = True
    if event.policy and task.attempts:
        task.attempts[-1].policy = event.policy
    task.reason = f"its output was given by {event.principal}" if event.principal else ""
    if event.principal and event.member:
        _give_time(run, event.task, now)
    task.failure = None
    task.wait_until = 0
    if event.signal:
        signal = run.signals[event.signal - 1]
        signal.task = event.task
        sent = signal.received  # whose payload the task has now
        signal.received = SignalReceived(sent.signal, b"", sent.principal, sent.request_id, sent.request_digest)
    _end_task(run, task, now)


def _task_escalated(run: Run, event: TaskEscalated, now: int) -> None:
    task = run.task(event.task, event.member)
    if not event.member and not task.cancel_reason and event.task in run.frontier:
        run.frontier.remove(event.task)
    _move(run, task, TaskTrigger.ESCALATED)
    _ask(run, task, event.failure, now)


def _task_quarantined(run: Run, event: TaskQuarantined, now: int) -> None:
    task = run.task(event.task, event.member)
    _move(run, task, TaskTrigger.QUARANTINED)
    _ask(run, task, event.failure, now)


def _ask(run: Run, task: Task, failure: Failure, now: int) -> None:
    run.asking += 1
    task.failure = failure
    task.end_time = now
    task.wait_until = 0


def _child_begun(run: Run, event: ChildBegun, now: int) -> None:
    task = run.task(event.task, event.member)
    if event.kind is not ChildKind.CALL:
        _move(run, task, TaskTrigger.DELEGATED)
    if event.kind is ChildKind.ANSWER:
        attempt = task.attempts[event.number - 1]
        _move_attempt(attempt, AttemptState.SUCCEEDED)
        attempt.end_time = now
        attempt.busy = event.busy
    if task.children is None:
        task.children = []
    task.children.append(Child(event, now))
    run.grown += event.tasks


def _run_grown(run: Run, event: RunGrown, now: int) -> None:
    run.grown += event.tasks


def _run_unwinding(run: Run, event: RunUnwinding, now: int) -> None:
    run.unwinding = event.failure


def _signal_received(run: Run, event: SignalReceived, now: int) -> None:
    run.signals = (*run.signals, Signal(event))


def _task_expanded(run: Run, event: TaskExpanded, now: int) -> None:
    node = run.tasks[event.task]
    if event.first_member != len(node.members) + 1:
        raise IllegalTransition(f"task {node.plan.id}: member {event.first_member} after {len(node.members)}")
    _move(run, node, TaskTrigger.EXPANDED)
    node.member_count = event.member_count
    for payload in event.inputs:
        member = Task(node.plan, len(node.members) + 1, input=payload, ready_time=now)
        _move(run, member, TaskTrigger.NEEDS_MET)
        node.members.append(member)
        node.input_bytes += len(payload)
    node.members_open += len(event.inputs)
    node.ready_time = node.ready_time or now
    if event.task in run.frontier and not node.cancel_reason and not fan_out_settled(node):
        run.frontier.remove(event.task)


def _answer_compared(run: Run, event: AnswerCompared, now: int) -> None:
    node, member = run.tasks[event.task], run.task(event.task, event.member)
    member.answer = event.agrees_with
    member.reason = event.reason
    if not fan_out_settled(node):
        run.frontier.remove(event.task)


def _task_agreed(run: Run, event: TaskAgreed, now: int) -> None:
    node = run.tasks[event.task]
    run.frontier.remove(event.task)
    _move(run, node, TaskTrigger.SUCCEEDED)
    node.answer = event.member
    node.cancel_reason = ""
    _end_task(run, node, now)


def _result_reused(run: Run, event: ResultReused, now: int) -> None:
    task = run.task(event.task, event.member)
    if event.input is not None:
        _needs_met(run, task, event.input, now)
    _move(run, task, TaskTrigger.SUCCEEDED)
    task.output = event.output
    task.reused = event.reused
    if event.released is not None:
        task.released = event.released
        run.redacted = True
    _end_task(run, task, now)


def _context_read(run: Run, event: ContextRead, now: int) -> None:
    reader = run if event.task == OUTPUT else run.tasks[event.task]
    if reader.found is not None:
        raise IllegalTransition(f"shared context was read before for {event.task}")
    reader.found = event.found


def _cancel_requested(run: Run, event: CancelRequested, now: int) -> None:
    run.cancel = event
    run.cancel_time = now
    run.paused = None


def _run_paused(run: Run, event: RunPaused, now: int) -> None:
    run.paused = event
    run.pause_time = now


def _run_resumed(run: Run, event: RunResumed, now: int) -> None:
    run.paused = None
    run.resume_time = now


def _task_cancel_requested(run: Run, event: TaskCancelRequested, now: int) -> None:
    node = run.tasks[event.task]
    node.cancel_reason = f"cancelled by {event.principal}: {event.reason}"
    if event.task not in run.frontier:
        run.frontier.append(event.task)


def _task_reopened(run: Run, event: TaskReopened, now: int) -> None:
    task = run.task(event.task, event.member)
    if task.member:
        _take_up(run, task, now)
        _give_time(run, event.task, now)
    elif task.members:
        _move(run, task, TaskTrigger.CONTINUED)
        _forget_end(task)
        _give_time(run, event.task, now)
        for member in task.members:
            if member.state is TaskState.FAILED or member.state is TaskState.CANCELLED:
                _take_up(run, member, now)
    else:
        _reopen(run, task, event.reads_anew)
    waiting = [] if task.member else [task]
    while waiting:
        for index in waiting.pop().plan.dependents:
            dependent = run.tasks[index]
            if dependent.state is TaskState.SKIPPED:
                _reopen(run, dependent, event.reads_anew)
                waiting.append(dependent)
    recount(run)


def _reopen(run: Run, node: Task, reads_anew: bool) -> None:
    """Back to where its needs are looked at."""
    _move(run, node, TaskTrigger.REOPENED)
    _forget_end(node)
    node.ready_time = 0
    node.input = b""
    node.member_count = -1
    if reads_anew:
        node.found = None


def _take_up(run: Run, member: Task, now: int) -> None:
    _move(run, member, TaskTrigger.TAKEN_UP)
    _forget_end(member)
    member.ready_time = now


def _give_time(run: Run, index: int, now: int) -> None:
    """A task that a person lets go on has its deadline anew, which its members share."""
    run.tasks[index].ready_time = now


def _forget_end(task: Task) -> None:
    task.failure = None
    task.reason = ""
    task.end_time = 0


def recount(run: Run) -> None:
    """Derives all counters, the frontier, and whose failure the run ends with, from the states of the tasks."""
    run.passed = None
    run.asking = 0
    for node in run.tasks:
        run.asking += sum(1 for task in (node, *node.members) if task.state in TASK_ASKS)
        node.members_open = sum(1 for member in node.members if not member.ended)
        node.input_bytes = sum(len(member.input) for member in node.members)
        needs = [run.tasks[i] for i in node.plan.needs]
        node.needs_ended = sum(1 for need in needs if need.ended)
        node.needs_done = sum(1 for need in needs if need.ended and need.counts_as_done())
    run.tasks_open = sum(1 for node in run.tasks if not node.ended and node.plan.compensates < 0)
    run.frontier = [node.plan.index for node in run.tasks if _on_frontier(node)]
    first = None if run.first_failure is None else run.tasks[run.plan.index_of[run.first_failure[0]]]
    if first is not None and first.state is not TaskState.FAILED:
        fatal = [
            task
            for task in run.tasks
            if task.state is TaskState.FAILED and task.plan.on_failure in FATAL and task.plan.compensates < 0
        ]
        first = min(fatal, key=lambda task: task.end_time, default=None)
    failure = None if first is None else first.failure
    run.first_failure = None if first is None or failure is None else (first.plan.id, failure)


def _on_frontier(node: Task) -> bool:
    if node.cancel_reason and not node.ended:
        return True
    if node.plan.compensates >= 0 or node.state in TASK_ASKS:
        return False
    if node.state is TaskState.PENDING:
        return join_settled(node)
    return node.plan.fan_out and not node.ended and fan_out_settled(node)


def _run_ended(run: Run, event: RunEnded, now: int) -> None:
    if (run.state, event.state) not in RUN_TRANSITIONS:
        raise IllegalTransition(f"run {run.run_id}: {run.state.name} → {event.state.name}")
    run.state = event.state
    run.output = event.output
    run.warning = event.warning
    run.failure = event.failure
    run.end_time = now


_APPLY: dict[type[Any], Any] = {
    TaskReady: _task_ready,
    AttemptOffered: _attempt_offered,
    AttemptStarted: _attempt_started,
    AttemptEnded: _attempt_ended,
    TaskWaiting: _task_waiting,
    TaskEnded: _task_ended,
    TaskCompleted: _task_completed,
    TaskExpanded: _task_expanded,
    AnswerCompared: _answer_compared,
    TaskAgreed: _task_agreed,
    ResultReused: _result_reused,
    SignalReceived: _signal_received,
    ContextRead: _context_read,
    CancelRequested: _cancel_requested,
    RunPaused: _run_paused,
    RunResumed: _run_resumed,
    TaskCancelRequested: _task_cancel_requested,
    TaskReopened: _task_reopened,
    TaskEscalated: _task_escalated,
    ChildBegun: _child_begun,
    RunGrown: _run_grown,
    TaskQuarantined: _task_quarantined,
    RunUnwinding: _run_unwinding,
    RunEnded: _run_ended,
}
