"""`antiphon policy`: trying, changing and explaining what is permitted.

Exit codes: 0 permitted or right, 1 denied or wrong, 2 as everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from .. import Client
from ..command import INSTALL_SERVER
from ..v1.policy_pb2 import DecisionRecord, PolicySet
from . import output
from .connection import first, with_client
from .options import AsJson, PageLimit, ProfileName
from .problems import FAILED, Problem
from .text import spell_moment

app = typer.Typer(help="Policies: try, change and explain what is permitted.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="A folder with *.cedar files and roles.toml.", metavar="DIR")]
Epoch = Annotated[int, typer.Argument(help="A policy epoch, as `policy list` shows it.", min=0, metavar="EPOCH")]

_FILES = (".cedar",)
_ROLES = "roles.toml"


@app.command()
def check(
    action: Annotated[str, typer.Argument(help="What somebody would do, such as submit or dispatch.")],
    resource: Annotated[str, typer.Argument(help="Name of the graph, capability or agent.")] = "",
    principal: Annotated[
        str, typer.Option("--principal", help="KIND/NAME of this namespace, or a SPIFFE id.", show_default="yourself")
    ] = "",
    fact: Annotated[
        list[str] | None, typer.Option("--fact", help="NAME=VALUE; a set takes VALUE,VALUE.", show_default=False)
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="Kind of the resource, such as Agent.", show_default="usual")
    ] = "",
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> int:
    """Tell what would be decided, by which rule, and from what."""
    facts = dict(_fact(text) for text in fact or ())
    record = with_client(
        profile,
        lambda client: client.check_policy(action, resource, principal=principal, resource_kind=kind, facts=facts),
    )
    output.show_json(record) if as_json else output.show(decision(record))
    return 0 if record.decision.permit else FAILED


@app.command()
def validate(folder: Folder, as_json: AsJson = False) -> int:
    """Report every mistake of a folder of policies, with its line. Offline; needs the server package."""
    try:
        from antiphon_orchestrator.policy import PolicyError, compile_bundle, load_folder
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("antiphon_orchestrator"):
            raise
        raise Problem("the server package is not installed here, which reads policies", INSTALL_SERVER) from error
    problems: tuple[str, ...] = ()
    count = 0
    try:
        bundle = load_folder(folder)
        try:
            count = len(compile_bundle(bundle).by_id)
        except PolicyError as error:
            problems = tuple(f"{folder}/{problem}" for problem in error.problems)
    except PolicyError as error:
        problems = error.problems
    if as_json:
        output.show_json({"mistakes": problems, "policies": count})
    else:
        for problem in problems:
            output.show_line(problem)
        if not problems:
            output.note(f"{folder}: right, {count} policies")
    return FAILED if problems else 0


@app.command()
def activate(
    folder: Folder,
    expected: Annotated[
        int | None, typer.Option("--expected-epoch", min=0, help="Change nothing if another epoch is in force.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Put the policies of a folder in force, whole, in place of those that are."""
    files = _read(folder)

    async def work(client: Client) -> PolicySet:
        known = await _epoch_in_force(client) if expected is None else expected
        return await client.activate_policies(files, expected_epoch=known)

    _show_change(with_client(profile, work), as_json)


@app.command()
def rollback(
    epoch: Epoch,
    expected: Annotated[
        int | None, typer.Option("--expected-epoch", min=0, help="Change nothing if another epoch is in force.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Put the policies of an earlier epoch in force again, under a new one."""

    async def work(client: Client) -> PolicySet:
        known = await _epoch_in_force(client) if expected is None else expected
        return await client.roll_back_policies(epoch, expected_epoch=known)

    _show_change(with_client(profile, work), as_json)


@app.command("list")
def list_policies(as_json: AsJson = False, profile: ProfileName = None, limit: PageLimit = 500) -> None:
    """List the epochs that are kept, the newest first."""
    found = with_client(profile, lambda client: first(limit, client.list_policies()))
    if as_json:
        output.show_json({"policies": found})
    elif found:
        output.show(output.table((">EPOCH", "", ">POLICIES", "SINCE", "BY", "DIGEST"), map(_row, found)))
    else:
        output.note(
            "No policy is in force, so everything is denied. Start with --policy-folder DIR or --policy-profile dev"
        )


@app.command()
def show(
    epoch: Annotated[int, typer.Argument(help="A policy epoch.", min=0, show_default="the one in force")] = 0,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Show the files of the policies in force, or of an earlier epoch."""
    found = with_client(profile, lambda client: client.get_policy(epoch))
    if as_json:
        output.show_json(found)
        return
    state = "in force" if found.active else "not in force"
    output.show(Text(f"epoch {found.epoch}", "bold").append(f"  {state}, by {_creator(found)}", "none"))
    for file in found.files:
        output.show(Text(f"\n{file.name}", "bold"))
        output.show(Text(file.text.rstrip("\n")))


@app.command()
def explain(
    decision_id: Annotated[
        str, typer.Argument(help="The decision, as errors and `run explain` name it.", metavar="DECISION")
    ] = "",
    principal: Annotated[str, typer.Option("--principal", help="Only those of KIND/NAME, or of a SPIFFE id.")] = "",
    action: Annotated[str, typer.Option("--action", help="Only those about an action.")] = "",
    denied: Annotated[bool, typer.Option("--denied", help="Only denials.")] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
    limit: PageLimit = 20,
) -> int:
    """Tell why a recent decision came out as it did; without one, list the recent ones."""
    found = with_client(
        profile,
        lambda client: first(
            limit,
            client.list_decisions(
                principal=principal, action=action, allowed=False if denied else None, decision_id=decision_id
            ),
        ),
    )
    if as_json:
        output.show_json({"decisions": found})
    elif decision_id:
        for record in found:
            output.show(decision(record))
    elif found:
        output.show(output.table(("DECISION", "TIME", "", "ACTION", "ABOUT", "PRINCIPAL", "WHY"), map(_brief, found)))
    elif not decision_id:
        output.note("No such decision among the recent ones of this orchestrator.")
    if decision_id and not found:
        raise Problem(
            f"decision {decision_id} is none of the recent ones",
            "those of a run are kept with it: antiphon run explain RUN TASK",
            exit_code=FAILED,
        )
    return 0


def decision(record: DecisionRecord) -> RenderableType:
    """One decision and every fact it rests on."""
    made = record.decision
    verdict = Text("ALLOW" if made.permit else "DENY", "green" if made.permit else "red")
    about = f"{record.resource_kind} {record.namespace}/{record.resource_id}"
    rules = [
        f"{policy}{f' ({place})' if place else ''}"
        for policy, place in zip(made.policies, record.places or [""] * len(made.policies), strict=False)
    ]
    facts = [
        ("reason", made.reason),
        ("rule", ", ".join(rules) or "none"),
        ("decision", f"{made.decision_id}, policy epoch {made.epoch}"),
        ("principal", record.principal),
        *(("obligation", obligation) for obligation in made.obligations),
        *((fact.name, ", ".join(fact.values) or "none") for fact in record.facts),
    ]
    return Group(verdict.append(f" {record.action} on {about}", "none"), output.facts(facts))


def _brief(record: DecisionRecord) -> list[RenderableType]:
    made = record.decision
    return [
        made.decision_id,
        spell_moment(record.create_time),
        Text("ALLOW" if made.permit else "DENY", "green" if made.permit else "red"),
        record.action,
        f"{record.resource_kind} {record.resource_id}",
        record.principal.rpartition("/ns/")[2],
        made.reason,
    ]


def _show_change(made: PolicySet, as_json: bool) -> None:
    if as_json:
        output.show_json(made)
    else:
        again = f", the content of epoch {made.rolled_back_to}" if made.rolled_back_to else ""
        output.show(f"policy epoch {made.epoch} is in force: {made.policy_count} policies{again}")


def _row(found: PolicySet) -> list[str]:
    state = "in force" if found.active else f"again {found.rolled_back_to}" if found.rolled_back_to else ""
    moment = spell_moment(found.create_time)
    return [str(found.epoch), state, str(found.policy_count), moment, _creator(found), found.digest[:12]]


def _creator(found: PolicySet) -> str:
    return found.creator.rpartition("/ns/")[2]


async def _epoch_in_force(client: Client) -> int:
    async for newest in client.list_policies(page_size=1):
        return newest.epoch
    return 0


def _read(folder: Path) -> dict[str, str]:
    """The files of a set. Raises `Problem`."""
    if not folder.is_dir():
        raise Problem(f"{folder} is not a folder", "give one with *.cedar files")
    paths = sorted(path for path in folder.iterdir() if path.suffix in _FILES or path.name == _ROLES)
    if not any(path.suffix in _FILES for path in paths):
        raise Problem(f"{folder} holds no *.cedar file", "an empty set would deny everything")
    try:
        return {path.name: path.read_text("utf-8") for path in paths}
    except UnicodeDecodeError as error:
        raise Problem(f"a file in {folder} is not UTF-8: {error.reason}") from error


def _fact(text: str) -> tuple[str, list[str]]:
    name, sign, values = text.partition("=")
    if not sign:
        raise Problem(f"--fact {text} has no value", "write NAME=VALUE")
    return name, [value for value in values.split(",") if value]
