"""Verifying audit chains, from the service or from an exported file; what comes out is one `Report`.

Of each chain only what a later question needs is kept: hashes at the places of an earlier checkpoint, and the parts of
runs that have not ended yet. So a chain of any length is verified in the memory of a page.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.timestamp_pb2 import Timestamp

from .. import Client
from .._audit import (
    AuditFinding,
    ChainVerifier,
    Tampering,
    compare_checkpoints,
    signed_content,
)
from .._credentials import load_profile
from .._errors import SetupError
from ..v1.audit_pb2 import AuditCheckpoint, AuditRecord, RunDigest
from . import output
from .problems import FAILED, Problem

_RUNS = 100
_TRIES = 10
_PAUSE = 0.5

EXPORT = timedelta(hours=1)
"""From the first checkpoint of an export to its last, at most: one that was made later is none of it. Any operator can
ask for one at any time, and by a late one all would have been removed by age."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Records of a chain that were removed by age between two checkpoints, by the word of the second."""

    chain: str
    first_seq: int
    last_seq: int
    after: Timestamp
    before: Timestamp

    @property
    def count(self) -> int:
        """How many."""
        return self.last_seq - self.first_seq + 1


@dataclass
class Report:
    """What was looked at and what was found."""

    checkpoint: AuditCheckpoint
    signed_by: str = ""
    records: int = 0
    runs: int = 0
    findings: list[AuditFinding] = field(default_factory=list)
    removed: dict[str, Removed] = field(default_factory=dict)
    """What was removed by age while the records were read, by chain."""


class Chains:
    """All chains of a checkpoint under verification; `former` is an earlier one to compare with, `bundle` the roots."""

    def __init__(self, checkpoint: AuditCheckpoint, former: AuditCheckpoint | None, bundle: bytes) -> None:
        self.report = Report(checkpoint)
        self._bundle = bundle
        for one in (checkpoint, former):
            if one is not None:
                self._check_signature(one, bundle)
        self.runs = Runs()
        self._former = former
        self._verifiers = {head.chain: ChainVerifier(head) for head in checkpoint.heads}
        self._places = {(head.chain, head.last_seq) for head in former.heads} if former is not None else set()
        self._hashes: dict[tuple[str, int], str] = {}

    def _check_signature(self, checkpoint: AuditCheckpoint, bundle: bytes) -> bool:
        from antiphon_certs import Kind, StatementError, verify_statement

        chain, moment = checkpoint.certificates.encode(), checkpoint.time.ToDatetime(UTC)
        try:
            who = verify_statement(signed_content(checkpoint), checkpoint.signature, chain, bundle, moment)
            if who.kind is not Kind.ORCHESTRATOR:
                raise StatementError(f"{who.uri}, who signed it, is no orchestrator")
        except StatementError as error:
            text = f"the checkpoint of {moment:%Y-%m-%d %H:%M:%S} UTC does not hold: {error}"
            self.report.findings.append(AuditFinding(Tampering.FORGED, "checkpoint", 0, text))
            return False
        if checkpoint is self.report.checkpoint:
            self.report.signed_by = who.uri
        return True

    def begin_later(self, later: AuditCheckpoint) -> bool:
        """Takes the word of a checkpoint that was made since, on chains of which no record is here yet; whether it says
        anything. One that is not signed as it must be is a finding."""
        if not self._check_signature(later, self._bundle):
            return True
        moved = False
        for head in later.heads:
            verifier = self._verifiers.get(head.chain)
            if verifier is not None and verifier.begin_later(head) and verifier.removed is not None:
                times = self.report.checkpoint.time, later.time
                self.report.removed[head.chain] = Removed(head.chain, *verifier.removed, *times)
                moved = True
        return moved

    def take(self, record: AuditRecord) -> None:
        """The next record of its chain."""
        self.report.records += 1
        verifier = self._verifiers.get(record.chain)
        if verifier is None:
            text = "a record of a chain that the checkpoint does not name"
            self.report.findings.append(AuditFinding(Tampering.INSERTED, record.chain, record.seq, text))
            return
        verifier.take(record)
        if (record.chain, record.seq) in self._places:
            self._hashes[record.chain, record.seq] = record.hash
        self.runs.take(record)

    def end(self) -> Report:
        """The report, once every record was taken."""
        for verifier in self._verifiers.values():
            self.report.findings += verifier.end()
        if self._former is not None:
            self.report.findings += compare_checkpoints(self._former, self.report.checkpoint, self._hashes)
        return self.report


class Runs:
    """What audit records say of the histories of runs that have ended."""

    def __init__(self) -> None:
        self._open: defaultdict[str, list[tuple[AuditRecord, RunDigest]]] = defaultdict(list)
        self.ended: list[tuple[AuditRecord, RunDigest]] = []

    def take(self, record: AuditRecord) -> None:
        """Looks for a digest of a run in a record."""
        if record.action not in ("submit", "archive", "end") or "events" not in record.details:
            return
        run_id = record.resource.rpartition("/")[2]
        first, _, last = record.details["events"].partition("-")
        try:
            part = RunDigest(run_id=run_id, first_event_seq=int(first), last_event_seq=int(last))
        except ValueError:
            return  # not what a writer writes; the chain's own verifier says so
        self._open[run_id].append((record, part))
        if record.action == "end":
            self.ended += self._open.pop(run_id)


async def verify_online(client: Client, former: AuditCheckpoint | None, bundle: bytes, *, with_runs: bool) -> Report:
    """Verifies everything that the service has now, and the histories of ended runs."""
    checkpoint = await client.get_audit_checkpoint()
    chains = Chains(checkpoint, former, bundle)
    async for message in read(client, checkpoint):
        if isinstance(message, AuditCheckpoint):
            chains.begin_later(message)
            continue
        chains.take(message)
        if with_runs and len(chains.runs.ended) >= _RUNS:
            await _compare_runs(client, chains)
    if with_runs:
        await _compare_runs(client, chains)
    return chains.end()


async def exported(client: Client) -> AsyncIterator[AuditCheckpoint | AuditRecord]:
    """A checkpoint and what `read` gives. Raises `Problem` where a file of it could not be verified."""
    checkpoint = await client.get_audit_checkpoint()
    yield checkpoint
    async for message in read(client, checkpoint):
        if isinstance(message, AuditCheckpoint) and _too_late(checkpoint.time, message):
            text = f"age removed records more than {EXPORT} after the export began, which no file proves"
            raise Problem(text, "run the command again", exit_code=FAILED)
        yield message


async def read(client: Client, checkpoint: AuditCheckpoint) -> AsyncIterator[AuditCheckpoint | AuditRecord]:
    """Every record up to a checkpoint, chain by chain; what the caller may not read is hidden.

    Before a chain whose first records were removed by age meanwhile stands another checkpoint, which says where it
    begins now. Raises `Problem` when age overtook the reading, or took the whole of a chain: what is left then follows
    from nothing that was read.
    """
    firsts = _firsts(checkpoint)
    for head in checkpoint.heads:
        chain, reached, lost = head.chain, head.first_seq - 1, 0
        begun = False
        async for record in client.list_audit_records(chain, complete=True, page_size=500):
            if record.seq > head.last_seq:
                break  # it was written since
            if not begun and record.seq > firsts[chain]:
                later = await client.get_audit_checkpoint()
                if _firsts(later)[chain] > firsts[chain]:
                    yield later
                    firsts = _firsts(later)
            if not begun and record.seq < firsts[chain]:
                continue  # it was removed since
            if begun and record.seq > reached + 1:
                lost = lost or record.seq - 1
            begun, reached = True, max(reached, record.seq)
            yield record
        if reached < head.last_seq:
            lost = lost or head.last_seq
        if lost and _firsts(await client.get_audit_checkpoint())[chain] > lost:
            text = f"age removed records up to {lost} of chain {chain} while they were read"
            raise Problem(text, "run the command again", exit_code=FAILED)


def _firsts(checkpoint: AuditCheckpoint) -> dict[str, int]:
    return {head.chain: head.first_seq for head in checkpoint.heads}


def _too_late(began: Timestamp, checkpoint: AuditCheckpoint) -> bool:
    return checkpoint.time.ToDatetime() - began.ToDatetime() > EXPORT


async def _compare_runs(client: Client, chains: Chains) -> None:
    waiting, chains.runs.ended = chains.runs.ended, []
    chains.report.runs += sum(record.action == "end" for record, _ in waiting)
    for start in range(0, len(waiting), _RUNS):
        chains.report.findings += await _compare(client, waiting[start : start + _RUNS])


async def _compare(client: Client, parts: list[tuple[AuditRecord, RunDigest]]) -> list[AuditFinding]:
    for last in range(_TRIES, 0, -1):
        found = await client.digest_runs([part for _, part in parts])
        wrong = [
            (record, there)
            for (record, _), there in zip(parts, found, strict=True)
            if there.digest != record.details["digest"]
        ]
        # A run that has just ended is on its way to the archive.
        if last == 1 or not any(not there.digest for _, there in wrong):
            break
        await asyncio.sleep(_PAUSE)
    return [
        AuditFinding(
            Tampering.RUN_CHANGED,
            record.chain,
            record.seq,
            f"the history of run {there.run_id}, events {there.first_event_seq} to {there.last_event_seq}, "
            + ("is not what it was" if there.digest else "is gone"),
        )
        for record, there in wrong
    ]


def verify_file(path: Path, former: AuditCheckpoint | None, bundle: bytes) -> Report:
    """Verifies an exported file. Raises `Problem` for one that is no export at all."""
    lines = _lines(path)
    checkpoint = _checkpoint(path, lines)
    chains = Chains(checkpoint, former, bundle)
    of_another = False
    for kind, message in lines:
        if kind == "checkpoint":
            of_another |= _too_late(checkpoint.time, message) or not chains.begin_later(message)
        elif of_another:
            raise Problem(f"{path} goes on behind the checkpoint of another export; verify each for itself")
        else:
            chains.take(message)
    report = chains.end()
    last = {head.chain: head.last_seq for head in checkpoint.heads}
    for removed in report.removed.values():
        if removed.last_seq == last[removed.chain]:
            text = f"all {removed.count} records are missing; a later checkpoint says by age, which no file proves"
            report.findings.append(AuditFinding(Tampering.TRUNCATED, removed.chain, removed.first_seq, text))
    return report


def read_checkpoint(path: Path) -> AuditCheckpoint:
    """A checkpoint that was kept, or that of an export. Raises `Problem`."""
    return _checkpoint(path, _lines(path))


def _checkpoint(path: Path, lines: Iterator[tuple[str, Any]]) -> AuditCheckpoint:
    for _, message in lines:
        if isinstance(message, AuditCheckpoint):
            return message
        break
    raise Problem(f"{path} does not begin with a checkpoint", "was it written by: antiphon audit export")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                ((kind, value),) = json.loads(line.decode()).items()
                message = {"checkpoint": AuditCheckpoint, "record": AuditRecord}[kind]()
                yield kind, ParseDict(value, message)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ParseError) as error:
                remedy = "give a file that was written by: antiphon audit export"
                raise Problem(f"{path}:{number}: is not a line of an export: {error}", remedy) from error


def trusted(bundle: Path | None, profile: str | None) -> bytes:
    """The roots that signatures are checked with: a file, or those of the profile. Raises `Problem`."""
    if bundle is not None:
        content = bundle.read_bytes()
        if b"-----BEGIN CERTIFICATE-----" not in content:
            raise Problem(f"{bundle} holds no certificates", "give the authority's bundle.pem")
        return content
    try:
        return load_profile(profile).credentials.read().bundle
    except SetupError as error:
        remedy = "give --trust-bundle with the authority's bundle.pem"
        raise Problem(f"there is nothing to check the signature with: {error}", remedy) from error


def shown(report: Report) -> dict[str, Any]:
    """The report for programs."""
    heads = [output.to_json(head) for head in report.checkpoint.heads]
    return {
        "whole": not report.findings,
        "signed_by": report.signed_by,
        "records": report.records,
        "runs": report.runs,
        "removed_by_age": [
            {
                "chain": removed.chain,
                "first_seq": removed.first_seq,
                "last_seq": removed.last_seq,
                "count": removed.count,
                "after": removed.after.ToJsonString(),
                "before": removed.before.ToJsonString(),
            }
            for removed in report.removed.values()
        ],
        "heads": heads,
        "findings": [
            {"kind": found.kind, "chain": found.chain, "seq": found.seq, "message": found.message}
            for found in report.findings
        ],
    }
