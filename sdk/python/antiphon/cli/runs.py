"""`antiphon run`: submit, follow, read and explain runs; `steering` has the rest."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from .. import Client
from .._submission import SubmitOptions
from ..v1.graph_pb2 import Graph
from ..v1.payload_pb2 import Payload
from ..v1.run_pb2 import RUN_STATE_FAILED, RUN_STATE_SUCCEEDED, TASK_STATE_FAILED, Run, RunEvent, Task
from . import output, steering
from .connection import first, gather, with_client
from .explain_view import explanation
from .following import follow
from .graphs import read_graph
from .options import AsJson, PageLimit, ProfileName, profile_option
from .problems import FAILED, Problem
from .run_view import Attempts, failure_kind, failure_line, key_of, output_line, run_line, run_tree, shown_tasks
from .text import (
    parse_duration,
    parse_labels,
    parse_run_states,
    parse_task,
    read_input,
    run_state,
    spell_between,
    spell_key,
    spell_moment,
    task_state,
)
from .watch_view import event_line

app = typer.Typer(help="Runs: submit, follow, read, steer, explain.", no_args_is_help=True)
app.registered_commands += steering.app.registered_commands

RunId = Annotated[str, typer.Argument(help="Id of the run.", metavar="RUN")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="May be repeated.", metavar="KEY=VALUE")]
_ATTEMPTS = 100
_LARGEST_TREE = 10_000  # tasks; what is beyond is for `--json` and paging
_SIGNALS = 3  # names in a row of a list


class _For(StrEnum):
    """What a task can wait for from outside."""

    PERSON = "person"
    SIGNAL = "signal"


@app.command()
def submit(
    graph: Annotated[str, typer.Argument(help="A registered NAME or NAME@VERSION, or a FILE.", metavar="NAME|FILE")],
    input_text: Annotated[
        str | None, typer.Option("--input", help="JSON, @FILE with JSON, or - for stdin.", metavar="JSON")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end, and print its output.")] = False,
    label: Labels = None,
    deadline: Annotated[str | None, typer.Option(help="Longest duration, such as 30s or 1h30m.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="Added to the priority of each task.")] = 0,
    request_id: Annotated[
        str | None, typer.Option(help="Makes the submission repeatable: the same id and content is the same run.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> int:
    """Submit a run and print its id; with --wait print its output, and fail if the run fails."""
    source = _source(graph)
    value = read_input(input_text, "--input")
    options = SubmitOptions(labels=parse_labels(label or ()), priority=priority)
    if deadline is not None:
        options["deadline"] = parse_duration(deadline)
    if request_id is not None:
        options["request_id"] = request_id

    async def work(client: Client) -> tuple[Run, bytes, Task | None]:
        run = await client.submit(source, value, **options)
        for warning in run.warnings:
            output.note(f"warning: {warning}")
        if not wait:
            return run, b"", None
        console = output.notes()
        if not console.is_terminal:  # on one its progress begins with it
            output.note(f"run {run.run_id}")
        run = await follow(client, run.run_id, console, None)
        wanted = run.state == RUN_STATE_SUCCEEDED and not as_json
        content = await client.download_payload(run.output) if wanted else b""
        return run, content, await _failed_task(client, run)

    run, content, failed = with_client(profile, work)
    if as_json:
        output.show_json(run)
    elif wait:
        _show_end(run, content)
        if failed is not None:
            key = shlex.quote(spell_key(failed.key))
            output.note(f"See why: antiphon run explain {run.run_id} {key}{profile_option(profile or 'default')}")
    else:
        output.show_line(run.run_id)
        output.note(f"Follow it with: antiphon run watch {run.run_id}{profile_option(profile or 'default')}")
    return _exit_code(run) if wait else 0


@app.command()
def get(
    run_id: RunId,
    whole: Annotated[bool, typer.Option("--all", help="Show every member of a for_each.")] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Show a run as a tree, with attempts and timings, and its output if that is short."""
    if as_json:
        output.show_json(with_client(profile, lambda client: client.get_run(run_id)))
        return

    async def work(client: Client) -> tuple[Run, list[Task], Attempts]:
        run = await client.get_run(run_id)
        tasks = await first(_LARGEST_TREE, client.list_tasks(run_id))
        keys = [key_of(task) for task in shown_tasks(tasks, whole=whole) if task.attempt_count]
        lists = await gather([first(_ATTEMPTS, client.list_attempts(run_id, *key)) for key in keys])
        return run, tasks, dict(zip(keys, lists, strict=True))

    run, tasks, attempts = with_client(profile, work)
    output.show(run_tree(run, tasks, attempts, whole=whole))
    if run.HasField("output"):
        output.show(output_line(run.output))
    if len(tasks) == _LARGEST_TREE:
        output.note(f"Only the first {_LARGEST_TREE} tasks are shown.")


@app.command("output")
def print_output(
    run_id: RunId,
    task: Annotated[
        str | None, typer.Argument(help="TASK, or TASK[17] for the 17th member of a for_each.", metavar="TASK")
    ] = None,
    profile: ProfileName = None,
) -> None:
    """Print the output of a run, or of one of its tasks, as it is: JSON, or what its media type says."""

    async def work(client: Client) -> tuple[Payload, bytes]:
        found: Run | Task
        if task is None:
            found = await client.get_run(run_id)
            what, state = f"run {run_id}", run_state(found.state)
            remedy = f"see how it stands with: antiphon run get {run_id}"
        else:
            key = parse_task(task)
            found = await client.get_task(run_id, key.task_id, key.member)
            what, state = f"task {task}", task_state(found.state)
            remedy = f"see what there is with: antiphon run get {run_id} --all"
        if not found.HasField("output"):
            raise Problem(f"{what} is {state} and has no output", remedy, exit_code=FAILED)
        return found.output, await client.download_payload(found.output)

    payload, content = with_client(profile, work)
    _show_payload(payload, content)


@app.command("list")
def list_runs(
    state: Annotated[list[str] | None, typer.Option("--state", help="running, failed …; may be repeated.")] = None,
    graph: Annotated[
        str, typer.Option(help="Only runs of this graph, or of one version of it.", metavar="NAME|NAME@VERSION")
    ] = "",
    label: Labels = None,
    since: Annotated[str | None, typer.Option(help="No older than this, such as 30s or 1h30m.")] = None,
    until: Annotated[str | None, typer.Option(help="No younger than this.")] = None,
    parent: Annotated[
        str,
        typer.Option(help="Only runs that agents called for in this run or attempt.", metavar="RUN|ATTEMPT"),
    ] = "",
    failure: Annotated[str, typer.Option(help="Only runs whose failure says this.", metavar="TEXT")] = "",
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only runs in which a task waits for a person or a signal.")
    ] = False,
    waiting_for: Annotated[_For | None, typer.Option(help="Only runs in which a task waits for that.")] = None,
    limit: PageLimit = 50,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """List runs, live and archived, newest first; options restrict it together."""
    states, labels = parse_run_states(state or ()), parse_labels(label or ())
    now = datetime.now(UTC)
    after = None if since is None else now - parse_duration(since)
    before = None if until is None else now - parse_duration(until)

    def found(client: Client) -> AsyncIterator[Run]:
        return client.list_runs(
            states=states,
            graph=graph,
            created_after=after,
            created_before=before,
            labels=labels,
            parent=parent,
            failure=failure,
            waiting_for_person=waiting or waiting_for is _For.PERSON,
            waiting_for_signal=waiting or waiting_for is _For.SIGNAL,
        )

    runs = with_client(profile, lambda client: first(limit, found(client)))
    if as_json:
        output.show_json({"runs": runs})
    elif runs:
        output.show(output.table(("RUN", "GRAPH", "STATE", ">TASKS", "CREATED", ">DURATION"), map(run_row, runs)))
    else:
        submit = "" if waiting or waiting_for else " Submit one with: antiphon run submit FILE"
        output.note(f"No such runs.{submit}")


@app.command()
def watch(run_id: RunId, as_json: AsJson = False, profile: ProfileName = None) -> int:
    """Follow a run to its end; fails if the run fails. --json prints a line an event, and the run last."""

    def line(event: RunEvent) -> None:
        if as_json:
            output.show_json_line({"event": event})
        else:
            output.show(event_line(event))

    async def work(client: Client) -> Run:
        console = output.silent() if as_json else output.data()
        return await follow(client, run_id, console, line)

    run = with_client(profile, work)
    if as_json:
        output.show_json_line({"run": run})
    else:
        output.show(run_line(run))
        if run.HasField("failure"):
            output.show(failure_line(run.failure))
    return _exit_code(run)


@app.command()
def explain(
    run_id: RunId,
    task: Annotated[str, typer.Argument(help="TASK, or TASK[17] for the 17th member of a for_each.", metavar="TASK")],
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Tell why a task is where it is: needs, placements with their reasons, policy."""
    key = parse_task(task)
    told = with_client(profile, lambda client: client.explain(run_id, key.task_id, key.member))
    if as_json:
        output.show_json(told)
    else:
        output.show(explanation(told))


def _source(text: str) -> Graph | str:
    """A graph to send along, or what names a registered one. A file is what looks like one, or is one."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        return read_graph(path)
    return text


async def _failed_task(client: Client, run: Run) -> Task | None:
    """The first task that failed, of a run that did; rather one with attempts, which have the words of agents."""
    if run.state != RUN_STATE_FAILED:
        return None
    failed = await first(_ATTEMPTS, client.list_tasks(run.run_id, states=[TASK_STATE_FAILED]))
    return min(failed, key=lambda task: not task.attempt_count, default=None)


def _show_end(run: Run, content: bytes) -> None:
    """The output of a run as data; how it ended as a note."""
    output.notes().print(run_line(run))
    if run.HasField("failure"):
        output.notes().print(failure_line(run.failure))
    if run.state == RUN_STATE_SUCCEEDED:
        _show_payload(run.output, content)


def _show_payload(payload: Payload, content: bytes) -> None:
    """Its content as data."""
    if payload.media_type in ("", "application/json"):
        output.show_json(json.loads(content or b"null"))
    else:
        output.show_content(content)


def _exit_code(run: Run) -> int:
    return 0 if run.state == RUN_STATE_SUCCEEDED else FAILED


def run_row(run: Run) -> list[RenderableType]:
    ended = run.totals.succeeded + run.totals.failed + run.totals.skipped + run.totals.cancelled
    state = output.state(run_state(run.state))
    if asking := run.totals.escalated + run.totals.quarantined:
        state.append(f", {asking} for a person", "bold")
    if run.state == RUN_STATE_FAILED and run.failure.kind:
        state.append(f", {failure_kind(run.failure)}")
    if signals := run.awaited_signals:
        more = ", …" if len(signals) > _SIGNALS else ""
        state.append(f", signal {', '.join(signals[:_SIGNALS])}{more}", "bold")
    return [
        run.run_id,
        f"{run.graph_name}@{run.graph_version}" if run.graph_version else run.graph_name,
        state,
        f"{ended}/{run.totals.total}" if run.totals.total else "-",  # lists of archived runs hold no totals
        spell_moment(run.create_time),
        spell_between(run.create_time, run.end_time),
    ]
