"""`antiphon run signal`, `pause`, `resume`, `cancel`, `retry`, `resolve`: what is asked of a run that is under way."""

from __future__ import annotations

from typing import Annotated

import typer

from ..v1.run_pb2 import Run, Task
from . import output
from .connection import with_client
from .options import AsJson, ProfileName
from .problems import Problem
from .run_view import run_line, task_line
from .text import parse_task, read_input, spell_key

app = typer.Typer()

RunId = Annotated[str, typer.Argument(help="Id of the run.", metavar="RUN")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]
TaskName = Annotated[str, typer.Argument(help="TASK, or TASK[17] for the 17th member of a for_each.", metavar="TASK")]


@app.command()
def signal(
    run_id: RunId,
    name: Annotated[str, typer.Argument(help="Name of the signal.", metavar="NAME")],
    data: Annotated[
        str | None, typer.Option("--data", help="JSON, @FILE with JSON, or - for stdin.", metavar="JSON")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Makes the signal repeatable: the same id is one signal.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Send a signal to a run; the task that waits for it, now or later, has the data as its output."""
    value = read_input(data, "--data")
    answer = with_client(profile, lambda client: client.signal(run_id, name, value, request_id=request_id))
    if as_json:
        output.show_json(answer)
    elif answer.HasField("key"):
        output.show_line(f"{spell_key(answer.key)} had waited for it")
    else:
        print("kept for the task that will wait for it")


@app.command()
def pause(run_id: RunId, reason: Reason = "", as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Hold a run: attempts that are out go on, nothing else begins. Deadlines go on, too."""
    _show_run(with_client(profile, lambda client: client.pause(run_id, reason)), as_json)


@app.command()
def resume(run_id: RunId, reason: Reason = "", as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Let a paused run go on."""
    _show_run(with_client(profile, lambda client: client.resume(run_id, reason)), as_json)


@app.command()
def cancel(
    run_id: RunId,
    task: Annotated[
        str | None,
        typer.Argument(help="End this task alone: TASK, or TASK[17] for a member of a for_each.", metavar="[TASK]"),
    ] = None,
    dependents: Annotated[
        bool, typer.Option("--dependents", help="With a task: end all that need it as well.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Ask a run to end, or one of its tasks. What has ended stays as it is."""
    if task is None:
        if dependents:
            raise Problem("--dependents is about a task", "name one, or leave it out to end the whole run")
        _show_run(with_client(profile, lambda client: client.cancel(run_id, reason=reason)), as_json)
        return
    key = parse_task(task)
    ended = with_client(
        profile,
        lambda client: client.cancel_task(run_id, key.task_id, key.member, dependents=dependents, reason=reason),
    )
    _show_task(ended, as_json)


@app.command()
def retry(
    run_id: RunId, task: TaskName, reason: Reason = "", as_json: AsJson = False, profile: ProfileName = None
) -> None:
    """Take up a failed task of a run that has not ended, and with it what was skipped because of it."""
    key = parse_task(task)
    _show_task(
        with_client(profile, lambda client: client.retry(run_id, key.task_id, key.member, reason=reason)), as_json
    )


@app.command()
def resolve(
    run_id: RunId,
    task: TaskName,
    given: Annotated[
        str | None, typer.Option("--output", help="It succeeds with this: JSON, @FILE, or -.", metavar="JSON")
    ] = None,
    failure: Annotated[str | None, typer.Option("--fail", help="It fails, for this reason.", metavar="WHY")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Say what becomes of a task that is ESCALATED or QUARANTINED. To have it tried again: antiphon run retry."""
    if (given is None) == (failure is None):
        raise Problem("an answer is an output or a failure", "give one of --output and --fail")
    key, value = parse_task(task), read_input(given, "--output")
    ended = with_client(
        profile,
        lambda client: client.resolve(run_id, key.task_id, key.member, output=value, failure=failure, reason=reason),
    )
    _show_task(ended, as_json)


def _show_run(run: Run, as_json: bool) -> None:
    if as_json:
        output.show_json(run)
    else:
        output.show(run_line(run))


def _show_task(task: Task, as_json: bool) -> None:
    if as_json:
        output.show_json(task)
    else:
        output.show(task_line(task, spell_key(task.key)))
