"""What policy and shared context did in the demo, read from the record and from the programs' own journal.

Parts of values are named by their place and the reason why somebody did not get them; never the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from antiphon import Client, Graph, Payload, ref
from antiphon.cli.problems import FAILED, Problem
from antiphon.v1 import failure_pb2, payload_pb2
from antiphon.v1 import run_pb2 as pb
from antiphon.v1.context_pb2 import Entry
from antiphon.v1.policy_pb2 import DecisionRecord

from .proof import Journal, Key

_TOTALS = "compliance/totals"
"""The entry that report.write of examples/compliance keeps."""
_CONTACTS = "contacts"
"""The field that its policies keep from the summarizer."""
_TEXT = b'{"text": "Nobody is to read this."}'
BY_SCHEMA = "schema"
"""Reason of what was withheld because the receiver's schema does not declare it; others are ids of policies."""
_DEADLINE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Withheld:
    """What the summarizer was not sent. Counted over the last attempts of its tasks, as far as they were read."""

    tasks: int
    by_policy: int
    by_schema: int
    policies: tuple[str, ...]
    """Ids of those that demanded it."""
    package: str
    """The example: one package, and in `parts` JSON pointer and reason of each part of its record."""
    parts: tuple[tuple[str, str], ...]
    received: tuple[str, ...]
    """Names of all fields that its program was ever sent, as it noted itself."""


@dataclass(frozen=True, slots=True)
class Denied:
    """A run that policy did not let happen, why, and by which decision."""

    run: pb.Run
    decision: DecisionRecord


@dataclass(frozen=True, slots=True)
class Governance:
    """All three."""

    withheld: Withheld
    denied: Denied
    entry: Entry


def withheld(attempts: Mapping[Key, Sequence[pb.Attempt]], subjects: Sequence[str], journal: Journal) -> Withheld:
    """From the attempts' routing decisions and the journal. Raises `Problem` unless both say that no contacts went."""
    told = {key[1]: tries[-1].decision for key, tries in attempts.items() if key[0] == "summarize" and key[1]}
    kept = [member for member, made in told.items() if f"/{_CONTACTS}" in {part.pointer for part in made.withheld}]
    received = journal.received.get("text.summarize", frozenset())
    if len(kept) < len(told) or not kept or not received or _CONTACTS in received:
        raise Problem("it is not shown that contacts were kept from the summarizer", exit_code=FAILED)
    reasons = [part.reason for made in told.values() for part in made.withheld]
    example = min(kept)
    return Withheld(
        tasks=len(told),
        by_policy=sum(reason != BY_SCHEMA for reason in reasons),
        by_schema=reasons.count(BY_SCHEMA),
        policies=tuple(sorted(set(reasons) - {BY_SCHEMA})),
        package=subjects[example],
        parts=tuple((part.pointer, part.reason) for part in told[example].withheld),
        received=tuple(sorted(received)),
    )


async def denied(client: Client) -> Denied:
    """Submit a text labelled restricted, to the redactor, which is cleared for it; policy forbids it all the same.

    Raises `Problem` when nothing does.
    """
    graph = Graph("restricted-text")
    graph.task("redact", "text.redact@1", input=ref("input"))
    text = Payload(inline=_TEXT, labels=[payload_pb2.Label(key="restricted")])
    run = await client.submit(graph, text, deadline=_DEADLINE, wait=True)
    if run.state != pb.RUN_STATE_FAILED or run.failure.kind != failure_pb2.FAILURE_KIND_POLICY:
        raise Problem("a restricted text was not kept from the redactor", exit_code=FAILED)
    # A failure that policy has decided has the decision for its code.
    decisions = [one async for one in client.list_decisions(decision_id=run.failure.code)]
    return Denied(run, decisions[0])


async def entry(client: Client) -> Entry:
    """The totals, as shared context keeps them. Raises `EntryNotFound`."""
    return await client.get_entry(_TOTALS)
