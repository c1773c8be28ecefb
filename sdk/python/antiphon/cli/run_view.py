"""A run as a tree: its tasks, what their attempts did and how long it all took. Pure functions from records.

A for_each has up to a million members, so only those with a story are shown one by one: not finished, failed, or tried
more than once. `shown_tasks` says which, so that no caller fetches the attempts of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text
from rich.tree import Tree

from ..v1.failure_pb2 import Failure, FailureKind
from ..v1.payload_pb2 import Payload
from ..v1.run_pb2 import (
    ATTEMPT_STATE_SUCCEEDED,
    CHILD_KIND_ANSWER,
    CHILD_KIND_CALL,
    CHILD_KIND_GRAPH,
    CHILD_KIND_UNSPECIFIED,
    TASK_STATE_SUCCEEDED,
    Attempt,
    Run,
    Task,
    Wish,
)
from . import output
from .text import attempt_state, run_state, spell_between, spell_moment, spell_proto_duration, spell_state, task_state

MEMBERS_SHOWN = 20
OUTPUT_SHOWN = 400
"""Bytes of an output that are shown on a line."""
_CAME: Mapping[int, str] = {
    CHILD_KIND_UNSPECIFIED: "beneath",
    CHILD_KIND_CALL: "called for by",
    CHILD_KIND_GRAPH: "sub-run of",
    CHILD_KIND_ANSWER: "answer of",
}
_BENEATH: Mapping[int, str] = {CHILD_KIND_CALL: "call", CHILD_KIND_GRAPH: "sub-run", CHILD_KIND_ANSWER: "answer"}
Attempts = Mapping[tuple[str, int], Sequence[Attempt]]
"""Attempts by task id and member."""


def key_of(task: Task) -> tuple[str, int]:
    return task.key.task_id, task.key.member


def shown_tasks(tasks: Sequence[Task], *, whole: bool = False) -> list[Task]:
    """The tasks that the tree has a line for; `whole` shows every member."""
    shown: list[Task] = []
    members: Counter[str] = Counter()
    for task in tasks:
        if task.key.member and not whole:
            plain = task.state == TASK_STATE_SUCCEEDED and task.attempt_count <= 1
            if plain or members[task.key.task_id] == MEMBERS_SHOWN:
                continue
            members[task.key.task_id] += 1
        shown.append(task)
    return shown


def run_tree(run: Run, tasks: Sequence[Task], attempts: Attempts, *, whole: bool = False) -> Tree:
    """The run with all its tasks, and the attempts of those that are shown."""
    tree = Tree(run_line(run))
    if run.parent_attempt_id:
        tree.add(Text(f"{_CAME[run.child_kind]} {run.parent_attempt_id}", "dim"))
    if run.HasField("paused"):
        tree.add(_wish_line("held", run.paused))
    if run.HasField("cancelled"):
        tree.add(_wish_line("cancelled", run.cancelled))
    for warning in run.warnings:
        tree.add(Text(f"warning: {warning}", "yellow"))
    branches: dict[str, Tree] = {}
    hidden = {key_of(task): task for task in tasks}
    for task in shown_tasks(tasks, whole=whole):
        del hidden[key_of(task)]
        if task.key.member:
            branch = branches.get(task.key.task_id, tree).add(task_line(task, f"[{task.key.member}]"))
        else:
            branch = branches[task.key.task_id] = tree.add(task_line(task, task.key.task_id))
        for attempt in attempts.get(key_of(task), ()):
            branch.add(attempt_line(attempt))
        for line in child_lines(task):
            branch.add(line)
        if task.HasField("failure"):
            branch.add(failure_line(task.failure))
    for task_id, branch in branches.items():
        rest = Counter(task_state(task.state) for (name, _), task in hidden.items() if name == task_id)
        if rest:
            counts = ", ".join(f"{count} {state}" for state, count in rest.most_common())
            branch.add(Text(f"and {rest.total()} more members: {counts}", "dim"))
    if run.HasField("failure"):
        tree.add(failure_line(run.failure))
    return tree


def run_line(run: Run) -> Text:
    """Id, graph, state and duration."""
    graph = f"{run.graph_name}@{run.graph_version}" if run.graph_version else run.graph_name
    return _line(
        Text(run.run_id, "bold"),
        graph,
        output.state(run_state(run.state)),
        spell_between(run.create_time, run.end_time),
    )


def _wish_line(what: str, wish: Wish) -> Text:
    """What was asked of a run, by whom, why and when."""
    line = Text(f"{what} by {wish.principal}", "yellow")
    if wish.reason:
        line.append(f": {' '.join(wish.reason.split())}")
    return line.append(f"  {spell_moment(wish.create_time)}", "dim") if wish.HasField("create_time") else line


def child_lines(task: Task) -> Iterator[Text]:
    """The runs beneath a task, the last ones last."""
    if task.child_count > len(task.children):
        yield Text(f"{task.child_count - len(task.children)} earlier runs beneath it", "dim")
    for child in task.children:
        by = f"#{child.attempt}" if child.attempt else ""
        yield _line(_BENEATH.get(child.kind, "beneath"), Text(child.run_id, "bold"), child.name, Text(by, "dim"))


def attempt_line(attempt: Attempt) -> Text:
    """Number, state, agent, duration, and why it did not succeed."""
    duration = spell_proto_duration(attempt.busy_duration) if attempt.HasField("busy_duration") else ""
    line = _line(
        f"#{attempt.number}",
        output.state(attempt_state(attempt.state)),
        f"on {attempt.agent}" if attempt.agent else "",
        duration or spell_between(attempt.offer_time, attempt.end_time),
    )
    if attempt.HasField("failure") and attempt.state != ATTEMPT_STATE_SUCCEEDED:
        line.append("  ").append_text(failure_line(attempt.failure))
    return line


def failure_line(failure: Failure) -> Text:
    """Kind, code, place and message, on one line; where no agent was found, who was passed over."""
    field = f" at {failure.field}" if failure.field else ""
    message = " ".join(failure.message.split())
    passed_over = f" ({failure.cause})" if failure.cause and failure.kind == FailureKind.FAILURE_KIND_NO_AGENT else ""
    return Text(f"{failure_kind(failure)}{field}: {message}{passed_over}", "red")


def failure_kind(failure: Failure) -> str:
    """Kind and code."""
    kind = spell_state(FailureKind, failure.kind, "FAILURE_KIND_")
    return f"{kind} {failure.code}" if failure.code else kind


def output_line(payload: Payload) -> Text:
    """What a run answered, if it is a short text; of anything else the size and type."""
    line = Text("output  ", "bold")
    size = payload.blob.size if payload.HasField("blob") else len(payload.inline)
    media_type = payload.media_type or "application/json"
    if size <= OUTPUT_SHOWN and media_type == "application/json":
        return line.append(" ".join(payload.inline.decode("utf-8", "replace").split()))
    return line.append(f"{size} bytes of {media_type}", "dim")


def task_line(task: Task, name: str) -> Text:
    """Name, capability, state, members, duration, and why it is there."""
    members = f"{task.member_count} members" if task.member_count else ""
    telling = task.state != TASK_STATE_SUCCEEDED or task.HasField("reused")
    reason = Text(task.reason, "dim") if task.reason and telling else ""
    return _line(
        Text(name, "bold"),
        "" if task.key.member else task.capability or task.graph,
        output.state(task_state(task.state)),
        members,
        spell_between(task.ready_time, task.end_time),
        reason,
    )


def _line(*parts: str | Text) -> Text:
    return Text("  ").join(output.one_line(part) for part in parts if part)
