"""How runs begin beneath tasks, for all three of their kinds, and what their ends mean to the tasks.

    a call      an attempt asks for a capability; the agent waits for it, or does not
    a sub-run   the graph of the task's run names another graph (`opened`)
    an answer   an agent answers its attempt with a graph (`answered`)

Each is a run like any other, in the shard of its parent, with the principal of its parent and no more time than the
parent has. It begins in the turn that tells its parent so, and its end is followed in the turn that brings it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import beneath, decide
from ..engine import events as e
from ..engine.beneath import MOST_ABOVE, MOST_BENEATH
from ..engine.decide import Outcome, Verdict
from ..engine.escalation import fail_task
from ..engine.failure import Failure, FailureKind
from ..engine.plan import Plan
from ..engine.run import Attempt, Run, Task
from ..engine.states import AttemptState, ChildKind, RunState, TaskState
from . import inputs as i
from . import payloads
from .children import as_parent, task_of
from .judging import handed_on, judge_output
from .turn import Entry, Graphs, Turn, found_attempt, request_key

if TYPE_CHECKING:
    from .shard import Shard


class Beneath:
    """What a shard does about the runs beneath its tasks; a part of it, and like it plain functions of memory."""

    def __init__(self, shard: Shard, graphs: Graphs) -> None:
        self._shard = shard
        self._graphs = graphs

    def call(self, turn: Turn, item: i.Call) -> None:
        """A call of an attempt; that of another attempt of the task which succeeded, or is at work, is the same run."""
        shard = self._shard
        found = found_attempt(shard.runs, item.source, item.attempt_id)
        live = found[1].live if found is not None else None
        if found is None or live is None or live.number != found[2]:
            turn.replies.append((item.sink, lambda: i.CallRefused("the attempt is not running")))
            return
        entry, task, number = found
        item.clearance = shard._fleet.clearance(live.placement)
        event = self._called(entry, task, live, item, turn.now)
        if not isinstance(event, e.RunSubmitted):
            turn.replies.append((item.sink, lambda: event))
            return
        event.request_id = self._call_name(entry, task, number, item)
        key = request_key(event)
        if key not in shard.requests and key not in shard.kept:
            name = item.plan.tasks[0].capability
            work = _name_of(name)
            repeats = payloads.work_key(work, event.input) in event.chain
            refusal = _repeated(work) if repeats else self._too_much(entry.run)
            if refusal is not None:
                turn.replies.append((item.sink, lambda: i.CallRefused(refusal.message, refusal.code)))
                return
            self._grow(turn, entry, item.plan)
            begun = self._begun(task, ChildKind.CALL, item.run_id, item.plan, name, number, item.call_id)
            shard._record(turn, entry, begun)
        shard._submit(turn, i.Submit(item.run_id, item.plan, event, key, True, item.sink))

    def _called(
        self, entry: Entry, task: Task, attempt: Attempt, call: i.Call, now: int
    ) -> e.RunSubmitted | i.CallDenied | i.CallRefused:
        """The run that a call asks for, on behalf of its own run's principal."""
        run, submitted, fleet = entry.run, entry.run.submitted, self._shard._fleet
        deadline = min(decide.task_deadline(run, task), attempt.offer_time + task.plan.timeout)
        if call.timeout is not None:
            deadline = min(deadline, now + call.timeout)
        known = handed_on(task, attempt)  # what the caller knows it knows from its own input
        given = payloads.inherit_labels(known, call.input) if fleet.labels(known) else call.input
        event = self._child(run, task, attempt.number, ChildKind.CALL, call.plan.name, given, deadline)
        if len(event.delegation) > MOST_ABOVE:
            return i.CallRefused(f"calls nest deeper than {MOST_ABOVE}", beneath.TOO_DEEP)
        decision = fleet.may_call(
            submitted.principal,
            entry.principal_kind,
            submitted.namespace,
            call.plan.tasks[0].capability.partition("@")[0],
            attempt.placement.agent,
            fleet.labels(given),
        )
        if not decision.allowed:
            return i.CallDenied(decision.reason, decision.decision_id)
        event.request_digest = call.digest
        event.graph = call.graph
        event.policy = fleet.policy_message(decision)
        return event

    def _call_name(self, entry: Entry, task: Task, number: int, call: i.Call) -> str:
        """The request id of the run that answers a call: one that is there, or a new one.

        An attempt has one outcome for one call. What a former attempt called for under the same id is the same as long
        as it is at work, and once it has succeeded; not if it failed or was cancelled, nor if it was another thing.
        """
        run, shard = entry.run, self._shard
        first = f"{_place(run, task)}#{call.call_id}"
        if number == 1:
            return first
        made = [
            c.begun for c in task.children or () if c.begun.kind is ChildKind.CALL and c.begun.call_id == call.call_id
        ]
        if not made:
            return first
        last = made[-1]
        known = first if len(made) == 1 else f"{_place(run, task)}/{last.number}#{call.call_id}"
        if last.number == number:
            return known
        new = f"{_place(run, task)}/{number}#{call.call_id}"
        there = shard.runs.get(last.run_id)
        if there is None:
            kept = shard.kept.get(payloads.request_key(run.submitted.principal, known))
            return new if kept is None or kept[1] != call.digest or call.over == last.run_id else known
        child = there.run
        if child.submitted.request_digest == call.digest:
            over = child.state is not RunState.SUCCEEDED and (child.state is not RunState.RUNNING or child.cancel)
            return new if over else known
        if child.state is RunState.RUNNING:
            reason = f"attempt {number} of the task calls for another thing"
            shard.inbox.append(i.Cancel(child.run_id, run.submitted.principal, reason, _nobody))
        return new

    def opened(self, turn: Turn, item: i.Opened) -> None:
        """The graph of a task is here: its run begins, or the task fails."""
        shard = self._shard
        entry = shard.runs.get(item.parent_id)
        if entry is None:
            return
        run, task = entry.run, entry.run.task(item.task, item.member)
        if task.state is not TaskState.READY or not decide.may_begin(run, task):
            return  # it ended, is held, or was asked for twice
        plan = item.plan
        if isinstance(plan, Failure):
            shard._follow(turn, entry, fail_task(task, plan))
            return
        deadline = min(turn.now + plan.deadline, decide.task_deadline(run, task))
        event = self._child(run, task, 0, ChildKind.GRAPH, plan.name, task.input, deadline)
        event.graph_version = plan.version
        name = f"{plan.name}@{plan.version}"
        failure = self._admitted(run, task, event, item.run_id, item.input_schema)
        if failure is not None:
            shard._follow(turn, entry, fail_task(task, failure))
            return
        self._begin(turn, entry, task, ChildKind.GRAPH, item.run_id, plan, event, name)

    def answered(self, turn: Turn, item: i.Answered) -> None:
        """An agent has answered with a graph: its run begins and the attempt has succeeded; or it has failed."""
        shard = self._shard
        found = found_attempt(shard.runs, item.source, item.attempt_id)
        if found is None:
            turn.verdicts.append((item.reporter, item.attempt_id, Verdict.GONE))
            return
        entry, task, number = found
        run, live, plan = entry.run, task.live, item.plan
        if live is None or live.number != number:
            # As the outcome of an attempt that has ended: known, or too late.
            verdict, events = decide.settle(run, task, number, Outcome(AttemptState.SUCCEEDED), turn.now, shard)
            shard._follow(turn, entry, events)
            turn.verdicts.append((item.reporter, item.attempt_id, verdict))
            return
        failure, name, event, fleet = None, "", None, shard._fleet
        if isinstance(plan, Failure):
            failure = plan
        else:
            known = handed_on(task, live)
            given = payloads.inherit_labels(known, item.input) if fleet.labels(known) else item.input
            deadline = min(turn.now + plan.deadline, decide.task_deadline(run, task))
            # In the name of the graph that the task belongs to: an agent does not choose whose context it works in.
            event = self._child(run, task, number, ChildKind.ANSWER, run.submitted.graph_name, given, deadline)
            event.graph, name = item.graph, plan.name
            failure = self._admitted(run, task, event, item.run_id, item.graph.input_schema)
        if failure is not None or event is None or isinstance(plan, Failure):
            outcome = Outcome(AttemptState.FAILED, failure=failure, busy=item.busy)
            _, events = decide.settle(run, task, number, outcome, turn.now, shard)
            shard._follow(turn, entry, events)
        else:
            shard.out.remove(live.instance, task)
            if fleet.limits.active:
                fleet.limits.free(run.submitted.namespace, live.placement)
            fleet.give_back(live.instance, (turn.now - live.offer_time) / 1e6)
            self._begin(turn, entry, task, ChildKind.ANSWER, item.run_id, plan, event, name, number, item.busy)
        turn.verdicts.append((item.reporter, item.attempt_id, Verdict.ACCEPTED))

    def hold(self, turn: Turn, child: Run) -> None:
        """A sub-run that begins while the run above it is held, as an answer may, is held before it begins anything."""
        entry = self._shard.runs.get(child.submitted.parent_attempt_id.partition("/")[0])
        if entry is not None and entry.run.paused is not None:
            self._shard._steer(turn, as_parent(entry.run, child.run_id))

    def ended(self, turn: Turn, child: Run) -> None:
        """A run beneath a task has ended; a task that waits for it goes on in the same turn."""
        submitted = child.submitted
        self._shard._children.gone(child)
        if submitted.child_kind is ChildKind.CALL:
            return
        entry = self._shard.runs.get(submitted.parent_attempt_id.partition("/")[0])
        if entry is None:
            return
        run = entry.run
        task = task_of(run, child)
        events = beneath.outcome(run, task, child)
        if events and submitted.child_kind is ChildKind.ANSWER and isinstance(events[0], e.TaskCompleted):
            # What the agent promised of its output it promised of this one.
            given = Outcome(AttemptState.SUCCEEDED, child.output)
            judged = judge_output(self._shard._fleet, run, entry.principal_kind, task, given)
            if judged.failure is not None:
                events = fail_task(task, judged.failure)
            else:
                index, member = task.plan.index, task.member
                events = [e.TaskCompleted(index, member, judged.output, policy=judged.policy, released=judged.released)]
        self._shard._follow(turn, entry, events)

    def takes(self, turn: Turn, entry: Entry, task: Task) -> bool:
        """Whether a READY task asks for no agent: it runs a graph, which is looked up; or, in a run beneath others,
        what it asks for is at work on the same input above it, and it fails."""
        shard, name = self._shard, _work_of(task)
        if task.plan.compensates < 0 and payloads.work_key(name, task.input) in entry.run.submitted.chain:
            for event in fail_task(task, _repeated(name)):
                shard._record(turn, entry, event)
            shard._unfinished[entry.run.run_id] = None
            return True
        if task.plan.graph is None:
            return False
        turn.opens.append((entry, task))
        shard._set_timer(entry, task)
        return True

    def look_up(self, turn: Turn) -> None:
        """After the commit of a turn: has the graphs looked up that its tasks are to run."""
        for entry, task in turn.opens:
            turn.at = entry.run.run_id
            self._graphs.open(self._shard.index, entry.run, task)

    # What the three have in common.

    def _child(
        self, run: Run, task: Task, number: int, kind: ChildKind, graph: str, payload: bytes, deadline: int
    ) -> e.RunSubmitted:
        """The submission of a run beneath a task, but for what only its kind knows."""
        submitted = run.submitted
        above = f"{_place(run, task)}/{number}"
        return e.RunSubmitted(
            submitted.namespace,
            submitted.principal,
            "",
            b"",
            graph,
            "",
            None,
            payload,
            {},
            deadline,
            submitted.priority if kind is ChildKind.CALL else min(9, submitted.priority + task.plan.priority),
            submitted.traceparent,
            None,
            parent_attempt_id=above,
            delegation=(*submitted.delegation, above),
            child_kind=kind,
            chain=(*submitted.chain, payloads.work_key(_work_of(task), task.input)),
        )

    def _admitted(self, run: Run, task: Task, event: e.RunSubmitted, run_id: str, input_schema: str) -> Failure | None:
        """Completes the submission of a sub-run by what says that it may be; or why it may not."""
        if len(event.delegation) > MOST_ABOVE:
            message = f"runs nest deeper than {MOST_ABOVE}; end the recursion earlier"
            return Failure(FailureKind.PERMANENT, message, beneath.TOO_DEEP, retryable=False)
        if (too_much := self._too_much(run)) is not None:
            return too_much
        admitted = self._graphs.admit(run.submitted, event.graph_name, input_schema, event.input, event.priority)
        if isinstance(admitted, Failure):
            return admitted
        event.input, event.policy = admitted
        event.request_id = f"{_place(run, task)}~{run_id}"  # no client's, and no call's
        return None

    def _too_much(self, run: Run) -> Failure | None:
        """Why no more runs begin beneath a run."""
        if self._outermost(run).run.grown < MOST_BENEATH:
            return None
        message = f"calls and sub-runs beneath one run have at most {MOST_BENEATH} tasks in all"
        return Failure(FailureKind.PERMANENT, message, beneath.TOO_MUCH, retryable=False)

    def _outermost(self, run: Run) -> Entry:
        """The outermost run above that goes on, which counts what is beneath it; the run itself when there is none."""
        runs = self._shard.runs
        for above in run.submitted.delegation:
            entry = runs.get(above.partition("/")[0])
            if entry is not None and entry.run.state is RunState.RUNNING:
                return entry
        return runs[run.run_id]

    def _grow(self, turn: Turn, entry: Entry, plan: Plan) -> None:
        """Counts the tasks of a run that begins, where that is not the parent's own affair."""
        outermost = self._outermost(entry.run)
        if outermost is not entry:
            self._shard._record(turn, outermost, e.RunGrown(_tasks_of(plan)))

    def _begun(
        self,
        task: Task,
        kind: ChildKind,
        run_id: str,
        plan: Plan,
        name: str,
        number: int,
        call_id: str = "",
        busy: int = 0,
    ) -> e.ChildBegun:
        index, member = task.plan.index, task.member
        return e.ChildBegun(index, member, run_id, kind, name, number, call_id, _tasks_of(plan), busy)

    def _begin(
        self,
        turn: Turn,
        entry: Entry,
        task: Task,
        kind: ChildKind,
        run_id: str,
        plan: Plan,
        event: e.RunSubmitted,
        name: str,
        number: int = 0,
        busy: int = 0,
    ) -> None:
        """Begins a run that its task waits for. Record and submission fit one segment: a turn leaves that much room."""
        shard = self._shard
        self._grow(turn, entry, plan)
        shard._record(turn, entry, self._begun(task, kind, run_id, plan, name, number, busy=busy))
        shard._submit(turn, i.Submit(run_id, plan, event, request_key(event), False, _nobody))
        if not task.ended:
            shard._set_timer(entry, task)


def _place(run: Run, task: Task) -> str:
    """RUN/TASK/MEMBER, also where members share an idempotency key."""
    return f"{run.run_id}/{task.plan.id}/{task.member}"


def _tasks_of(plan: Plan) -> int:
    return len(plan.tasks) - plan.compensations


def _name_of(capability: str) -> str:
    """Without what is said of versions: another one of the same would go round as well."""
    return capability.partition("@")[0]


def _work_of(task: Task) -> str:
    """What a task asks for, as it stands in chains; a graph's name is told from a capability's."""
    graph = task.plan.graph
    return _name_of(task.plan.capability) if graph is None else f"graph {graph.name}"


def _repeated(name: str) -> Failure:
    message = f"{name} is at work on the same input further up; that would go round for ever"
    return Failure(FailureKind.PERMANENT, message, beneath.REPEATED, retryable=False)


def _nobody(answer: object) -> None:
    """Nobody waits for a sub-run but its task."""
