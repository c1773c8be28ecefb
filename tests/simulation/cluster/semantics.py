"""What has to hold of each word that graphs know, read off the record of a run, event by event.

Nothing is asked of the engine but the run as it was before each event. What a rule counts, it counts by itself; what
agents, clients and callers saw comes from the history.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from antiphon.v1 import failure_pb2, payload_pb2
from antiphon_orchestrator.engine import decide
from antiphon_orchestrator.engine import events as e
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.run import Run, Task
from antiphon_orchestrator.engine.states import AttemptState, ChildKind, RunState, TaskState

from tests.simulation.cluster.agents import CALL_ID
from tests.simulation.cluster.graphs import KEPT_FOR, LAPS

if TYPE_CHECKING:
    from tests.simulation.cluster.history import History

MOST_DEATHS = 3
"""Deaths of agents that had begun a task before it waits for a person: two by which it is suspected, and one alone."""

_ENDED = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SKIPPED, TaskState.CANCELLED)
_DIED = ("AGENT_DIED", "SIDECAR_DIED")
_DOUBTFUL = (FailureKind.LOST, FailureKind.TIMEOUT)
Place = tuple[int, int]
"""Task and member."""


def content(payload: bytes | None) -> bytes:
    """What a payload says; null for none."""
    return payload_pb2.Payload.FromString(payload or b"").inline or b"null"


class Rules:
    """The rules of one run. `event` looks at each event before the run is changed by it."""

    def __init__(self, run: Run, history: History) -> None:
        self.run = run
        self.offered: set[str] = set()
        """Attempts that are on record."""
        self.children: dict[str, e.ChildBegun] = {}
        """By run: how it began beneath a task of this one."""
        self.given: list[tuple[str, bytes]] = []
        """Runs beneath this one whose output a task was given, with what it was given."""
        self.failed: list[str] = []
        """Runs beneath this one for whose failure a task failed."""
        self._history = history
        self._held = False
        self._cancelled = False
        self._asking: set[Place] = set()
        self._doubts: set[Place] = set()
        self._deaths: Counter[Place] = Counter()
        self._reopened: Counter[Place] = Counter()
        self._agreed: set[int] = set()
        self._signals: set[str] = set()
        self._beneath: dict[Place, str] = {}
        self._done: list[int] = []
        self._undone: list[int] = []

    def event(self, event: e.Event, now: int) -> None:
        rule = _RULES.get(type(event))
        if rule is not None:
            rule(self, event, now)

    def _require(self, holds: bool, what: str) -> None:
        self._history.require(holds, f"{self.run.run_id}: {what}")

    def _name(self, event: Any) -> str:
        return f"{self.run.plan.tasks[event.task].id}/{event.member}"

    # Attempts.

    def _attempt_offered(self, event: e.AttemptOffered, now: int) -> None:
        run, place = self.run, (event.task, event.member)
        task, name = run.task(*place), self._name(event)
        self.offered.add(decide.attempt_id(run.run_id, task, event.number))
        self._begins(event, task)
        self._require(place not in self._doubts, f"{name} may have been done, and is to be done at most once")
        if task.plan.agree and event.member:
            others = [other for other in run.tasks[event.task].members if other is not task and other.attempts]
            taken = {other.attempts[-1].instance for other in others if other.live or other.output is not None}
            there = event.placement.instance
            self._require(there not in taken, f"{name} is at {there}, which has another member of the same task")

    def _begins(self, event: Any, task: Task) -> None:
        name = self._name(event)
        self._require(not self._held, f"{name} began while its run was held")
        undoes = task.plan.compensates >= 0
        self._require(undoes or not self._cancelled, f"{name} began after its run was cancelled")
        self._require((event.task, event.member) not in self._asking, f"{name} began while it waited for a person")

    def _attempt_ended(self, event: e.AttemptEnded, now: int) -> None:
        place = event.task, event.member
        task, name = self.run.task(*place), self._name(event)
        if event.stale:
            return
        failure = event.failure
        if event.state is AttemptState.SUCCEEDED:
            answer = self._history.answers.get(decide.attempt_id(self.run.run_id, task, event.number))
            said = answer is not None and content(event.output) == answer.output.inline
            self._require(said, f"{name} is said to have answered {content(event.output)!r}, its agent said {answer}")
            self._succeeded(task)
        elif failure is not None and failure.kind is FailureKind.LOST and failure.code in _DIED:
            self._deaths[place] += 1
            self._require(self._deaths[place] <= MOST_DEATHS, f"{name} took {self._deaths[place]} agents with it")
        if task.plan.at_most_once and failure is not None and failure.kind in _DOUBTFUL:
            self._doubts.add(place)

    def _succeeded(self, task: Task) -> None:
        if task.plan.compensation >= 0:
            self._done.append(task.plan.index)
        elif task.plan.compensates >= 0:
            self._undo(task)

    # What people ask.

    def _undo(self, task: Task) -> None:
        """An undoing is over. One that a person had given up and has done after all keeps its place."""
        if task.plan.compensates not in self._undone:
            self._undone.append(task.plan.compensates)

    def _task_asks(self, event: e.TaskEscalated | e.TaskQuarantined, now: int) -> None:
        self._asking.add((event.task, event.member))

    def _task_reopened(self, event: e.TaskReopened, now: int) -> None:
        place, name = (event.task, event.member), self._name(event)
        self._reopened[place] += 1
        asked = self._history.asked[self.run.run_id, self.run.plan.tasks[event.task].id, event.member, "retry"]
        self._require(
            self._reopened[place] <= asked, f"{name} was tried again {self._reopened[place]} times of {asked}"
        )
        for members in (self._asking, self._doubts):
            members -= {other for other in members if other == place or (other[0] == event.task and not event.member)}
        for other in self._deaths:
            if other == place or (other[0] == event.task and not event.member):
                self._deaths[other] = 0
        self._agreed.discard(event.task)

    def _run_paused(self, event: e.RunPaused, now: int) -> None:
        self._held = True

    def _run_resumed(self, event: e.RunResumed, now: int) -> None:
        self._held = False

    def _cancel_requested(self, event: e.CancelRequested, now: int) -> None:
        self._cancelled = True
        self._held = False  # what is to be undone is not held

    def _signal_received(self, event: e.SignalReceived, now: int) -> None:
        again = event.request_id in self._signals
        self._require(not again, f"signal {event.request_id} was counted twice")
        self._signals.add(event.request_id)

    def _task_completed(self, event: e.TaskCompleted, now: int) -> None:
        place, name = (event.task, event.member), self._name(event)
        task, said = self.run.task(*place), content(event.output)
        self._succeeded(task)
        if event.principal:
            asked = self._history.asked[self.run.run_id, task.plan.id, event.member, "resolve"]
            self._require(asked > 0 and said == b'"given"', f"nobody gave {said!r} as the output of {name}")
            self._asking.discard(place)
        elif (child := self._beneath.get(place)) is not None:
            self.given.append((child, said))
        elif task.plan.wait is not None and task.plan.wait.signal:
            sent = [f'"{name}"'.encode() for name in self._signals]
            self._require(said in sent, f"{name} was given {said!r}, which nobody sent")
        else:
            self._require(task.plan.wait is not None, f"{name} has an output that nobody gave")

    def _task_ended(self, event: e.TaskEnded, now: int) -> None:
        place, name = (event.task, event.member), self._name(event)
        task, child = self.run.task(*place), self._beneath.get(place)
        if place in self._asking and event.state is TaskState.FAILED:
            asked = self._history.asked[self.run.run_id, task.plan.id, event.member, "resolve"]
            self._require(asked > 0, f"{name} waited for a person, and failed although nobody said so")
            if task.plan.compensates >= 0:
                self._undo(task)
        self._asking.discard(place)
        if child is not None and event.failure is not None and event.failure.message.startswith(f"run {child}"):
            self.failed.append(child)
        if event.state is TaskState.SUCCEEDED and task.plan.most_iterations:
            self._require(len(task.members) == LAPS, f"{name} was done after {len(task.members)} iterations")

    # Members.

    def _task_expanded(self, event: e.TaskExpanded, now: int) -> None:
        node = self.run.tasks[event.task]
        if node.plan.most_iterations and node.members:
            last = node.members[-1]
            self._require(last.state is TaskState.SUCCEEDED, f"{node.plan.id}: an iteration began beside the last one")

    def _task_agreed(self, event: e.TaskAgreed, now: int) -> None:
        node = self.run.tasks[event.task]
        name, chosen = node.plan.id, node.members[event.member - 1]
        self._require(event.task not in self._agreed, f"{name} has two winners")
        self._agreed.add(event.task)
        self._require(chosen.state is TaskState.SUCCEEDED, f"{name} goes on with a member that has no answer")
        alike = [
            member
            for member in node.members
            if member.state is TaskState.SUCCEEDED and content(member.output) == content(chosen.output)
        ]
        self._require(len(alike) >= node.plan.agree, f"{name}: {len(alike)} of {node.plan.agree} agree")
        instances = {member.attempts[-1].instance for member in alike}
        self._require(len(instances) == len(alike), f"{name}: one instance has answered for several members")
        open_ = [member.member for member in node.members if member.state not in _ENDED]
        self._require(not open_, f"{name} is done, and members {open_} go on")

    def _result_reused(self, event: e.ResultReused, now: int) -> None:
        task, name, reused = self.run.task(event.task, event.member), self._name(event), event.reused
        given = task.input if event.input is None else event.input
        answer = self._history.answers.get(reused.origin_attempt_id)
        origin = answer is not None and answer.output.inline == content(event.output)
        self._require(origin, f"{name} got what {reused.origin_attempt_id} has never answered")
        of = json.loads(content(event.output))["of"]
        self._require(of == json.loads(content(given)), f"{name}: the result for {of} was used for {content(given)!r}")
        age = (now - reused.keep_time) / 1e6
        self._require(0 <= age < KEPT_FOR, f"{name}: a result {age} s old was used again")

    # Runs beneath.

    def _child_begun(self, event: e.ChildBegun, now: int) -> None:
        place, name = (event.task, event.member), self._name(event)
        self._require(event.run_id not in self.children, f"{event.run_id} began twice beneath {name}")
        again = any(
            (other.task, other.member, other.call_id, other.number) == (*place, event.call_id, event.number)
            for other in self.children.values()
            if other.kind is ChildKind.CALL
        )
        self._require(event.kind is not ChildKind.CALL or not again, f"call {event.call_id} of {name} became two runs")
        self.children[event.run_id] = event
        if event.kind is not ChildKind.CALL:
            self._begins_unless_answered(event)
            self._beneath[place] = event.run_id

    def _begins_unless_answered(self, event: e.ChildBegun) -> None:
        if event.kind is ChildKind.GRAPH:
            self._begins(event, self.run.task(event.task, event.member))

    # The end.

    def _run_ended(self, event: e.RunEnded, now: int) -> None:
        run = self.run
        own = run.tasks[: len(run.tasks) - run.plan.compensations]
        left = [task.plan.id for task in own if task.state not in _ENDED]
        self._require(not left, f"it ended with {left} under way")
        undone = [run.plan.tasks[index].id for index in self._undone]
        if event.state is RunState.SUCCEEDED:
            self._require(not undone, f"it succeeded, and {undone} were undone")
        else:
            done = [run.plan.tasks[index].id for index in reversed(self._done)]
            self._require(undone == done, f"what was done is to be undone as {done}, and was as {undone}")


def failed_as(call: failure_pb2.Failure, child: Run) -> bool:
    """Whether what a caller was told of its call can be the end of that run."""
    failure: Failure | None = child.failure
    return child.state is not RunState.SUCCEEDED and (failure is None or call.kind == failure.kind.value)


def calls_of(rules: Rules) -> dict[str, list[tuple[int, str]]]:
    """By task and member, the runs that the call of its attempts became, with the attempts that made them, in order."""
    run, calls = rules.run, defaultdict[str, list[tuple[int, str]]](list)
    for run_id, begun in rules.children.items():
        if begun.kind is ChildKind.CALL and begun.call_id == CALL_ID:
            place = f"{run.run_id}/{run.plan.tasks[begun.task].id}/{begun.member}"
            calls[place].append((begun.number, run_id))
    return calls


_RULES: dict[type[Any], Any] = {
    e.AttemptOffered: Rules._attempt_offered,
    e.AttemptEnded: Rules._attempt_ended,
    e.TaskEscalated: Rules._task_asks,
    e.TaskQuarantined: Rules._task_asks,
    e.TaskReopened: Rules._task_reopened,
    e.RunPaused: Rules._run_paused,
    e.RunResumed: Rules._run_resumed,
    e.CancelRequested: Rules._cancel_requested,
    e.SignalReceived: Rules._signal_received,
    e.TaskCompleted: Rules._task_completed,
    e.TaskEnded: Rules._task_ended,
    e.TaskExpanded: Rules._task_expanded,
    e.TaskAgreed: Rules._task_agreed,
    e.ResultReused: Rules._result_reused,
    e.ChildBegun: Rules._child_begun,
    e.RunEnded: Rules._run_ended,
}
