"""What whoever holds an export may do to it: records that are gone are missed, whatever checkpoints are added."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from antiphon import Tampering
from antiphon._audit import START, signed_content
from antiphon.cli.audit_check import EXPORT, Report, exported, shown, verify_file
from antiphon.cli.problems import Problem
from antiphon.v1.audit_pb2 import AuditCheckpoint, AuditHead, AuditRecord
from antiphon_certs import Authority, Credential, Grants, Identity, Kind, new_key_and_csr, sign
from antiphon_orchestrator.audit import Chain, Fact, reading
from google.protobuf.json_format import MessageToDict

COUNT = 60
Lines = Sequence[AuditCheckpoint | AuditRecord]


def chain(name: str) -> list[AuditRecord]:
    made = Chain(name)
    raw = [made.add(Fact("cancel", "team-a", "p", f"Run::team-a/{n}"), n) for n in range(1, COUNT + 1)]
    return [reading.record(name, seq, one) for seq, one in enumerate(raw, 1)]


CALLS, SHARD = chain("calls"), chain("shard-0000")


class Signer:
    """An orchestrator, which says where the chains begin."""

    def __init__(self, folder: Path) -> None:
        self.began = datetime.now(UTC).replace(microsecond=0)
        self._authority = Authority.init(folder / "ca", "mesh.test")
        self.bundle = self._authority.bundle_pem

    def checkpoint(self, first: int = 1, after: timedelta = timedelta(0), calls: int = 1) -> AuditCheckpoint:
        """A checkpoint by which age has removed what comes before record `first` of the shard's chain."""
        identity = Identity("mesh.test", "system", Kind.ORCHESTRATOR, "one")
        key, csr = new_key_and_csr(identity)
        certificates = self._authority.issue(csr, identity, timedelta(hours=24), Grants(), now=self.began + after)
        heads = [head(CALLS, calls), head(SHARD, first)]
        made = AuditCheckpoint(heads=heads, certificates=certificates.decode())
        made.time.FromDatetime(self.began + after)
        made.signature = sign(Credential.from_pem(key, certificates, self.bundle), signed_content(made))
        return made


def head(records: list[AuditRecord], first: int) -> AuditHead:
    if first > COUNT + 1:  # the chain went on, and all that is known here has gone
        return AuditHead(
            chain=records[0].chain, first_seq=first, first_prev_hash="ab" * 32, last_seq=900, last_hash="cd" * 32
        )
    before = records[first - 2].hash if first > 1 else START
    last = records[-1]
    return AuditHead(chain=last.chain, first_seq=first, first_prev_hash=before, last_seq=last.seq, last_hash=last.hash)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("signer"))


def verified(folder: Path, signer: Signer, lines: Lines) -> Report:
    path = folder / "export.jsonl"
    kinds = {AuditCheckpoint: "checkpoint", AuditRecord: "record"}
    said = [{kinds[type(one)]: MessageToDict(one, preserving_proto_field_name=True)} for one in lines]
    path.write_text("".join(json.dumps(one) + "\n" for one in said))
    return verify_file(path, None, signer.bundle)


def found(report: Report) -> list[tuple[str, str, int]]:
    return [(one.kind, one.chain, one.seq) for one in report.findings]


SOON = timedelta(minutes=10)
LATE = EXPORT + timedelta(seconds=1)
DELETED, TRUNCATED = Tampering.DELETED, Tampering.TRUNCATED


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (lambda to: [*CALLS, *SHARD], []),
        (lambda to: [*CALLS, *SHARD[:30], *SHARD[31:]], [(DELETED, "shard-0000", 31)]),
        (lambda to: [*CALLS, *SHARD[:30], *SHARD[31:], to(501, SOON)], [(DELETED, "shard-0000", 31)]),
        (lambda to: [*CALLS, *SHARD[:30], to(32, SOON), *SHARD[31:]], Problem),
        (lambda to: [*CALLS, *SHARD[:30], to(501, SOON)], [(TRUNCATED, "shard-0000", 31)]),
        (lambda to: [*CALLS, *SHARD[30:], to(31, SOON)], [(DELETED, "shard-0000", 1)]),
        (lambda to: [*CALLS, to(31, SOON), *SHARD[31:]], [(DELETED, "shard-0000", 31)]),
        (lambda to: [*CALLS, to(31, LATE), *SHARD[30:]], Problem),
        (lambda to: [*CALLS, to(501, SOON)], [(TRUNCATED, "shard-0000", 1)]),
        (lambda to: [*CALLS, to(COUNT + 1, SOON)], [(TRUNCATED, "shard-0000", 1)]),
        (lambda to: [*CALLS, to(501, LATE)], [(TRUNCATED, "shard-0000", 1)]),
        (lambda to: [*CALLS, *SHARD, to(501, SOON)], []),
        (lambda to: [*CALLS, *SHARD, to(1), *CALLS, *SHARD], Problem),
    ],
    ids=[
        "whole",
        "one deleted",
        "one deleted and a later checkpoint at the end",
        "one deleted and a later checkpoint in its place",
        "the last deleted and a later checkpoint in their place",
        "the first deleted and a later checkpoint at the end",
        "one more deleted than age removed",
        "the first deleted and a checkpoint of much later",
        "all deleted and a later checkpoint in their place",
        "all deleted and a checkpoint that ends there",
        "all deleted and a checkpoint of much later",
        "whole and a later checkpoint at the end",
        "two exports in one",
    ],
)
def test_records_that_are_gone_are_missed_whatever_checkpoints_are_added(
    lines: Callable[[Any], Lines], expected: Any, signer: Signer, tmp_path: Path
) -> None:
    written = [signer.checkpoint(), *lines(signer.checkpoint)]
    if expected is Problem:
        with pytest.raises(Problem, match="another export"):
            verified(tmp_path, signer, written)
    else:
        assert found(verified(tmp_path, signer, written)) == expected


def test_the_report_says_what_was_removed_by_age_and_between_which_moments(signer: Signer, tmp_path: Path) -> None:
    lines = [signer.checkpoint(), *CALLS, signer.checkpoint(31, SOON), *SHARD[30:]]
    report = verified(tmp_path, signer, lines)
    assert found(report) == []
    assert shown(report)["removed_by_age"] == [
        {
            "chain": "shard-0000",
            "first_seq": 1,
            "last_seq": 30,
            "count": 30,
            "after": f"{signer.began:%Y-%m-%dT%H:%M:%SZ}",
            "before": f"{signer.began + SOON:%Y-%m-%dT%H:%M:%SZ}",
        }
    ]
    all_gone = verified(tmp_path, signer, [signer.checkpoint(), *CALLS, signer.checkpoint(501, SOON)])
    assert [one["count"] for one in shown(all_gone)["removed_by_age"]] == [COUNT]
    assert "a later checkpoint says by age" in all_gone.findings[0].message


class Service:
    """What of a service an export asks for. Age removes records at the moments that a test says."""

    def __init__(self, signer: Signer, takes: timedelta = SOON) -> None:
        self._signer = signer
        self._first, self._after, self._takes = 1, timedelta(0), takes
        self.calls = self._calls = self.before_shard = 1
        self.behind: dict[int, int] = {}
        """Where the shard's chain begins once a record of it was read."""
        self.deleted: set[int] = set()

    async def get_audit_checkpoint(self) -> AuditCheckpoint:
        made = self._signer.checkpoint(self._first, self._after, self._calls)
        self._after += self._takes
        return made

    async def list_audit_records(self, name: str, **_: object) -> AsyncIterator[AuditRecord]:
        self._calls, self._first = self.calls, max(self._first, self.before_shard)
        if name == "calls":
            for record in CALLS[self._calls - 1 :]:
                yield record
            return
        for record in SHARD:
            if record.seq >= self._first and record.seq not in self.deleted:
                # What was read before goes on being given: a page is read at once.
                self._first = max(self._first, self.behind.get(record.seq, 1))
                yield record


async def export(service: Service) -> list[AuditCheckpoint | AuditRecord]:
    return [one async for one in exported(service)]  # type: ignore[arg-type]


async def test_an_export_of_what_age_removes_meanwhile_is_verified(signer: Signer, tmp_path: Path) -> None:
    service = Service(signer)
    service.before_shard = 21
    lines = await export(service)
    report = verified(tmp_path, signer, lines)
    assert found(report) == [] and report.removed["shard-0000"].count == 20
    assert report.records == 2 * COUNT - 20

    removed_again = Service(signer)
    removed_again.before_shard, removed_again.behind = 21, {21: 26}
    report = verified(tmp_path, signer, await export(removed_again))
    assert found(report) == [] and report.removed["shard-0000"].count == 25

    both = Service(signer)
    both.calls, both.before_shard = 11, 21
    report = verified(tmp_path, signer, await export(both))
    assert found(report) == [] and [one.count for one in report.removed.values()] == [10, 20]

    tampered = Service(signer)
    tampered.before_shard, tampered.deleted = 21, {21, 40}
    assert found(verified(tmp_path, signer, await export(tampered))) == [
        (DELETED, "shard-0000", 21),
        (DELETED, "shard-0000", 40),
    ]


@pytest.mark.parametrize(
    ("calls", "before", "behind", "takes"),
    [(1, 1, {10: 21}, SOON), (1, 1, {10: 501}, SOON), (1, 501, {}, SOON), (11, 501, {}, SOON), (1, 21, {}, LATE)],
    ids=["in the middle", "all that was left", "a whole chain", "one more chain", "long after it began"],
)
async def test_an_export_that_age_overtakes_fails_and_asks_to_be_run_again(
    calls: int, before: int, behind: dict[int, int], takes: timedelta, signer: Signer
) -> None:
    service = Service(signer, takes)
    service.calls, service.before_shard, service.behind = calls, before, behind
    with pytest.raises(Problem) as problem:
        await export(service)
    assert "age removed records" in problem.value.message and problem.value.remedy == "run the command again"
    assert problem.value.exit_code == 1
