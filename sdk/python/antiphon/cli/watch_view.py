"""A run while it runs: counts events and shows a line a task, or a line an event where there is no terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..v1.run_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_SKIPPED,
    TASK_STATE_SUCCEEDED,
    PartialOutput,
    RunEvent,
    RunState,
    TaskState,
)
from . import output
from .run_view import failure_line
from .text import attempt_state, run_state, spell_key, spell_moment, task_state

_TAIL = 60
"""Characters shown of what a task is making."""

_ENDED = frozenset((TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_SKIPPED, TASK_STATE_CANCELLED))


class TaskProgress:
    """One task of the graph: its own state, and its members' when it is a for_each."""

    def __init__(self) -> None:
        self.state: TaskState.ValueType = TaskState.TASK_STATE_PENDING
        self.members: dict[int, TaskState.ValueType] = {}
        self.counts: Counter[TaskState.ValueType] = Counter()
        """Members by state, kept with every event: a run may have many, and is shown several times a second."""
        self.member_count = 0
        self.says = ""
        self._made = (0, 0)  # member and attempt whose pieces are shown

    def makes(self, member: int, piece: PartialOutput) -> None:
        """Shows the end of what is being made, as much as fits a line."""
        if piece.withheld or piece.HasField("json") or (member, piece.attempt) != self._made:
            self._made, self.says = (member, piece.attempt), ""
        self.says = " ".join((self.says + piece_text(piece)).splitlines())[-_TAIL:]

    def enter(self, member: int, state: TaskState.ValueType) -> None:
        if member == 0:
            self.state = state
            return
        if member in self.members:
            self.counts[self.members[member]] -= 1
        self.members[member] = state
        self.counts[state] += 1

    @property
    def total(self) -> int:
        """Members, as far as known; a plain task counts as one."""
        return max(self.member_count, len(self.members), 1)

    @property
    def done(self) -> int:
        if self.state in _ENDED:
            return self.total
        return sum(self.counts[state] for state in _ENDED)

    def row(self, task_id: str) -> list[RenderableType]:
        fan_out = self.total > 1 or bool(self.members)
        counts = +self.counts if fan_out and self.counts else Counter({self.state: 1})
        states = Text("  ").join(
            output.state(task_state(state)).append(f" {count}" if fan_out else "")
            for state, count in counts.most_common()
        )
        bar = ProgressBar(total=self.total, completed=self.done, width=24)
        return [task_id, bar, f"{self.done}/{self.total}" if fan_out else "", states, Text(self.says, "dim")]


class RunProgress:
    """What the events of a run add up to. `apply` each once, in order; then `render`."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.run_state: RunState.ValueType = RunState.RUN_STATE_RUNNING
        self.tasks: dict[str, TaskProgress] = {}

    def apply(self, event: RunEvent) -> None:
        if event.run_state:
            self.run_state = event.run_state
        if not event.HasField("key"):
            return
        task = self.tasks.setdefault(event.key.task_id, TaskProgress())
        if event.task_state:
            task.enter(event.key.member, event.task_state)
        if event.member_count:
            task.member_count = event.member_count
        if event.HasField("progress"):
            task.says = event.progress.message
        if event.HasField("partial"):
            task.makes(event.key.member, event.partial)

    def render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        for task_id, task in self.tasks.items():
            grid.add_row(*task.row(task_id))
        title = Text(self.run_id, "bold").append("  ").append_text(output.state(run_state(self.run_state)))
        return Group(title, grid)


def piece_text(piece: PartialOutput) -> str:
    """A piece of output for people."""
    if piece.withheld:
        return f"(partial output is withheld: {piece.withheld})"
    return piece.text if piece.HasField("text") else piece.json.decode("utf-8", "replace")


def event_line(event: RunEvent) -> Text:
    """One event on one line, for logs and pipes: what is not kept has no number, a piece of output is behind a >."""
    line = Text(f"{event.event_seq or '':>5}  {spell_moment(event.event_time)}")
    if event.HasField("key"):
        line.append(f"  {spell_key(event.key)}")
    if event.run_state:
        line.append("  run ").append_text(output.state(run_state(event.run_state)))
    if event.task_state:
        line.append("  ").append_text(output.state(task_state(event.task_state)))
    if event.HasField("attempt"):
        line.append(f"  #{event.attempt.number} ").append_text(output.state(attempt_state(event.attempt.state)))
        line.append(f" on {event.attempt.agent}" if event.attempt.agent else "")
        line.append("  (too late: recorded, not used)" if event.attempt.stale else "", "dim")
    if event.member_count:
        line.append(f"  {event.member_count} members")
    if event.HasField("progress"):
        line.append(f"  {event.progress.fraction:.0%} {event.progress.message}", "dim")
    if event.HasField("child"):
        line.append(f"  began {event.child.run_id}  {event.child.name}")
    if event.HasField("partial"):
        text = piece_text(event.partial)
        line.append(" > ", "dim").append(text, "dim" if event.partial.withheld else "")
    if event.signal:
        line.append(f"  signal {event.signal}")
    if event.reason:
        line.append(f"  {event.reason}", "dim")
    if event.HasField("failure"):
        line.append("  ").append_text(failure_line(event.failure))
    return output.one_line(line)
