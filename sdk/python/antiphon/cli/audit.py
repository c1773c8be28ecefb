"""`antiphon audit`: read the audit records, verify that nothing was changed, take them elsewhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from .. import Client
from ..v1.audit_pb2 import AuditOutcome, AuditRecord
from . import output
from .audit_check import (
    Report,
    exported,
    read_checkpoint,
    shown,
    trusted,
    verify_file,
    verify_online,
)
from .connection import first, with_client
from .identity import require_certs
from .options import AsJson, PageLimit, ProfileName
from .problems import FAILED, Problem
from .text import parse_duration, spell_moment, spell_state

app = typer.Typer(
    help="Audit records: list, verify, export. For operators.", no_args_is_help=True, callback=require_certs
)

_PREFIX = "AUDIT_OUTCOME_"
TrustBundle = Annotated[
    Path | None, typer.Option(help="Roots to check the signature with, PEM.", show_default="the profile's")
]


@app.command("list")
def list_records(
    action: Annotated[str, typer.Option(help="Such as submit, end, cancel, join, drain.")] = "",
    outcome: Annotated[str, typer.Option(help="done, denied, succeeded, failed or cancelled.")] = "",
    principal: Annotated[str, typer.Option(help="SPIFFE id of who acted.")] = "",
    namespace: Annotated[str, typer.Option(help="Tenant.", show_default="all that may be read")] = "",
    since: Annotated[str | None, typer.Option(help="No older than this, such as 30s or 1h30m.")] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
    limit: PageLimit = 50,
) -> None:
    """List audit records, the newest first."""
    wanted = _parse_outcome(outcome)
    start_time = None if since is None else datetime.now(UTC) - parse_duration(since)

    async def work(client: Client) -> list[AuditRecord]:
        found: list[AuditRecord] = []
        for head in (await client.get_audit_checkpoint()).heads:
            found += await first(
                limit,
                client.list_audit_records(
                    head.chain,
                    newest_first=True,
                    start_time=start_time,
                    principal=principal,
                    action=action,
                    outcome=wanted,
                    namespace=namespace,
                    page_size=min(limit, 500),
                ),
            )
        return sorted(found, key=lambda record: record.time.ToNanoseconds(), reverse=True)[:limit]

    records = with_client(profile, work)
    if as_json:
        output.show_json({"records": records})
    elif records:
        output.show(output.table(("TIME", "ACTION", "OUTCOME", "RESOURCE", "PRINCIPAL", "REASON"), map(_row, records)))
    else:
        output.note("No audit record matches.")


@app.command()
def verify(
    file: Annotated[Path | None, typer.Argument(help="An export; without one, what the service has now.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="An earlier checkpoint or export that nothing may contradict.")
    ] = None,
    save_checkpoint: Annotated[
        Path | None, typer.Option(help="Where to keep the present checkpoint, when all is well.")
    ] = None,
    with_runs: Annotated[
        bool, typer.Option("--runs/--no-runs", help="Compare the histories of ended runs as well.")
    ] = True,
    trust_bundle: TrustBundle = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> int:
    """Verify every record and say what was tampered with and where; exit code 1 when anything was."""
    former = None if checkpoint is None else read_checkpoint(checkpoint)
    bundle = trusted(trust_bundle, profile)
    if file is not None:
        report = verify_file(file, former, bundle)
    else:
        report = with_client(profile, lambda client: verify_online(client, former, bundle, with_runs=with_runs))
    if save_checkpoint is not None and not report.findings:
        save_checkpoint.write_text(json.dumps(output.to_json({"checkpoint": report.checkpoint})) + "\n")
    if as_json:
        output.show_json(shown(report))
    else:
        _show(report)
    return FAILED if report.findings else 0


@app.command()
def export(profile: ProfileName = None) -> None:
    """Write every record to stdout, a JSON line each, behind a signed checkpoint."""

    async def work(client: Client) -> tuple[int, int]:
        count = chains = 0
        async for message in exported(client):
            if isinstance(message, AuditRecord):
                output.show_json_line({"record": message})
                count += 1
            else:
                output.show_json_line({"checkpoint": message})
                chains = len(message.heads)
        return count, chains

    count, chains = with_client(profile, work)
    output.note(f"{count} records of {chains} chains. Verify them with: antiphon audit verify FILE")


def _show(report: Report) -> None:
    for finding in report.findings:
        output.show(str(finding))
    for removed in report.removed.values():
        between = f"between {spell_moment(removed.after)} and {spell_moment(removed.before)}"
        numbers = f"{removed.count} records, {removed.first_seq} to {removed.last_seq}"
        output.show(f"{removed.chain}: {numbers}, were removed by age {between}")
    gone = sum(removed.count for removed in report.removed.values())
    runs = f", {report.runs} ended runs" if report.runs else ""
    count = len(report.findings)
    said = f"{count} finding{'s' if count > 1 else ''}" if count else "whole"
    if gone:
        said += f", and {gone} records removed by age" if count else f" but for {gone} records removed by age"
    output.show(f"{said}: {report.records} records in {len(report.checkpoint.heads)} chains{runs}")
    if report.signed_by:
        output.note(f"The checkpoint of {spell_moment(report.checkpoint.time)} is signed by {report.signed_by}.")


def _row(record: AuditRecord) -> list[RenderableType]:
    outcome = spell_state(AuditOutcome, record.outcome, _PREFIX)
    return [
        spell_moment(record.time),
        record.action,
        output.state(outcome),
        record.resource,
        record.principal,
        record.reason,
    ]


def _parse_outcome(text: str) -> AuditOutcome.ValueType:
    if not text:
        return AuditOutcome.AUDIT_OUTCOME_UNSPECIFIED
    try:
        return AuditOutcome.Value(_PREFIX + text.upper())
    except ValueError:
        names = ", ".join(name.removeprefix(_PREFIX).lower() for name in AuditOutcome.keys()[1:])
        raise Problem(f"no outcome is called {text!r}", f"write one of {names}") from None
