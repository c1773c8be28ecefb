"""`antiphon context`: read, write and follow what a team shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from rich.text import Text

from .. import Client
from .._entries import scope_of, scope_text
from ..v1.context_pb2 import Entry, EntryEvent, Provenance
from ..v1.context_service_pb2 import GetLineageResponse, LineageNode
from ..v1.payload_pb2 import Payload
from . import output
from .connection import first, with_client
from .options import AsJson, PageLimit, ProfileName
from .problems import Problem
from .text import parse_duration, read_input, spell_moment

app = typer.Typer(help="What agents and clients share: entries by key.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(help="Key of the entry.", metavar="KEY")]
Prefix = Annotated[str, typer.Argument(help="What keys begin with; all by default.", metavar="PREFIX")]
ScopeName = Annotated[
    str, typer.Option("--scope", help="namespace, run:ID or graph:NAME.", metavar="SCOPE", show_default=True)
]
Expected = Annotated[
    int | None, typer.Option("--expect", min=0, help="Only if it has this revision; 0: only if it is not there.")
]
_SHOWN = 80  # characters of a value in a table

Parsed = TypeVar("Parsed")


@app.command()
def get(key: Key, scope: ScopeName = "namespace", as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Print the value of an entry; with --json the entry."""
    _spelled(scope_of, scope)

    async def work(client: Client) -> tuple[Entry, bytes]:
        entry = await client.get_entry(key, scope=scope)
        return entry, b"" if as_json else await client.download_payload(entry.value)

    entry, content = with_client(profile, work)
    if as_json:
        output.show_json(entry)
    else:
        output.show_content(content + b"\n" if content else b"null\n")
        output.note(f"revision {entry.revision}, {_story(entry.provenance)} {spell_moment(entry.update_time)}")


@app.command()
def put(
    key: Key,
    value: Annotated[str, typer.Argument(help="JSON, @FILE with JSON, or - for stdin.", metavar="VALUE")],
    scope: ScopeName = "namespace",
    ttl: Annotated[str | None, typer.Option(help="How long it is there, such as 30s or 1h30m.")] = None,
    expect: Expected = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="May be repeated.", metavar="KEY[=VALUE]")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Makes it repeatable: the same id and content is written once.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Write an entry and print its revision."""
    _spelled(scope_of, scope)
    content = read_input(value, "VALUE")
    lifetime = parse_duration(ttl) if ttl is not None else None
    answer = with_client(
        profile,
        lambda client: client.put_entry(
            key,
            content,
            scope=scope,
            ttl=lifetime,
            expected_revision=expect,
            labels=label or (),
            request_id=request_id,
        ),
    )
    if as_json:
        output.show_json(answer)
    else:
        output.show(str(answer.revision))


@app.command()
def delete(
    key: Key,
    scope: ScopeName = "namespace",
    expect: Expected = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Remove an entry; that there is none is no error."""
    _spelled(scope_of, scope)
    revision = with_client(profile, lambda client: client.delete_entry(key, scope=scope, expected_revision=expect))
    if as_json:
        output.show_json({"revision": revision})
    elif not revision:
        output.note(f"There was no entry {key} in {scope}.")


@app.command("list")
def list_entries(
    prefix: Prefix = "",
    scope: ScopeName = "namespace",
    limit: PageLimit = 500,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """List the entries of a scope."""
    _spelled(scope_of, scope)
    entries = with_client(profile, lambda client: first(limit, client.list_entries(prefix, scope=scope)))
    if as_json:
        output.show_json({"entries": entries})
    elif entries:
        output.show(output.table(("KEY", ">REVISION", "VALUE", "LABELS", "BY", "SINCE"), map(_row, entries)))
    else:
        output.note("No such entries. Write one with: antiphon context put KEY VALUE")


@app.command()
def watch(
    prefix: Prefix = "",
    scope: ScopeName = "namespace",
    revision: Annotated[int, typer.Option("--from", min=0, help="First revision; from now on by default.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="End after so many changes; 0: go on.")] = 0,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Print each change as it happens, a line each, until interrupted."""
    _spelled(scope_of, scope)

    async def work(client: Client) -> None:
        count = 0
        async for event in client.watch_entries(prefix, scope=scope, from_revision=revision):
            if as_json:
                output.show_json_line(event)
            else:
                output.show_line(_line(event))
            count += 1
            if count == limit:
                return

    with_client(profile, work)


@app.command()
def lineage(key: Key, scope: ScopeName = "namespace", as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Show what an entry was made from, as far back as that is still there."""
    _spelled(scope_of, scope)
    found = with_client(profile, lambda client: client.lineage(key, scope=scope))
    if as_json:
        output.show_json(found)
    else:
        output.show(_tree(found))


def _spelled(read: Callable[[str], Parsed], text: str) -> Parsed:
    """Read before anybody is called. Raises `Problem`."""
    try:
        return read(text)
    except ValueError as error:
        raise Problem(str(error)) from None


def _row(entry: Entry) -> list[str]:
    labels = sorted({label.key for label in entry.value.labels})
    return [
        entry.key,
        str(entry.revision),
        _value(entry.value),
        ", ".join(labels),
        _writer(entry.provenance),
        spell_moment(entry.update_time),
    ]


def _line(event: EntryEvent) -> str:
    if event.HasField("put"):
        return f"{event.put.revision} put {event.put.key} {_value(event.put.value)}"
    return f"{event.deleted.revision} deleted {event.deleted.key}"


def _value(payload: Payload) -> str:
    if payload.HasField("blob"):
        return f"{payload.blob.size} bytes by reference"
    if payload.media_type not in ("", "application/json"):
        return f"{len(payload.inline)} bytes of {payload.media_type}"
    text = payload.inline.decode("utf-8", "replace") or "null"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _writer(provenance: Provenance) -> str:
    return provenance.attempt_id or provenance.principal.rpartition("/ns/")[2]


def _story(provenance: Provenance) -> str:
    agent = f" (agent {provenance.agent})" if provenance.agent else ""
    return f"written by {_writer(provenance)}{agent}"


def _tree(found: GetLineageResponse) -> Text:
    lines = [_node(node) for node in found.nodes]
    if found.cut:
        lines.append("… and more")
    return Text("\n".join(lines))


def _node(node: LineageNode) -> str:
    entry = node.entry
    where = f"{'  ' * node.distance}{scope_text(entry.scope)} {entry.key} at revision {entry.revision}"
    if not node.HasField("provenance"):
        return f"{where}, not there any more"
    more = f", and {node.provenance.more_sources} more sources" if node.provenance.more_sources else ""
    return f"{where}, {_story(node.provenance)}{more}"
