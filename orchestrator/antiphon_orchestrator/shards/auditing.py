"""The audit chain of a shard: a record for each submission, wish to cancel, and end of a run (DECISIONS.md, D19).

The records are part of a turn and are committed with it. A run's own history is not copied: its records hold the
SHA-256 of the serialised events, first of the submission, last of all there are; those of a long run that were moved to
the archive meanwhile get a record of their own, so that each event is covered once or, being the first, twice.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..audit.chain import Chain, Fact
from ..engine.events import RunEnded
from .inputs import Steer
from .turn import Entry, Turn

DIGESTED_AT_ONCE = 1024
"""Records of a run, some 2 MB, after which `digest_ahead` is due again."""


class ShardAudit:
    """`chain` is the shard's; each method adds a record to what a turn commits."""

    def __init__(self, shard: int) -> None:
        self.chain = Chain(f"shard-{shard:04x}")

    def submitted(self, turn: Turn, entry: Entry) -> None:
        submitted = entry.run.submitted
        details = _covered(entry, 1)
        name, version = submitted.graph_name, submitted.graph_version
        details["graph"] = f"{name}@{version}" if version else name
        details["request_id"] = submitted.request_id
        if submitted.parent_attempt_id:
            details["parent"] = submitted.parent_attempt_id
        self._add(turn, entry, "submit", "DONE", "", details, submitted.principal, submitted.policy)

    def cancelled(self, turn: Turn, entry: Entry, principal: str, reason: str) -> None:
        self._add(turn, entry, "cancel", "DONE", reason, {}, principal, None)

    def steered(self, turn: Turn, entry: Entry, wish: Steer) -> None:
        self._add(turn, entry, wish.action, "DONE", wish.reason, dict(wish.details), wish.principal, None)

    def ended(self, turn: Turn, entry: Entry, event: RunEnded) -> None:
        reason = event.failure.message if event.failure is not None else ""
        run = entry.run
        self._add(
            turn, entry, "end", event.state.name, reason, _covered(entry, run.event_seq), run.submitted.principal, None
        )

    def archived(self, turn: Turn, entry: Entry, upto: int) -> None:
        """Before the events up to a number leave memory."""
        self._add(turn, entry, "archive", "DONE", "", _covered(entry, upto), entry.run.submitted.principal, None)

    def _add(
        self,
        turn: Turn,
        entry: Entry,
        action: str,
        outcome: str,
        reason: str,
        details: dict[str, str],
        principal: str,
        policy: Any,
    ) -> None:
        namespace = entry.run.submitted.namespace
        fact = Fact(
            action,
            namespace,
            principal,
            f"Run::{namespace}/{entry.run.run_id}",
            outcome,
            decision_id="" if policy is None else policy.decision_id,
            policy_epoch=0 if policy is None else policy.epoch,
            reason=reason,
            details=details,
        )
        raw = self.chain.add(fact, turn.now)
        turn.audit.append(raw)
        turn.size += len(raw)


def digest_ahead(entry: Entry) -> None:
    """Takes committed records of a long run into its digest, so that its end does not have to look at all of them."""
    if entry.digest is None:
        entry.digest = hashlib.sha256()
    upto = entry.digested + DIGESTED_AT_ONCE
    entry.digest.update(b"".join(entry.records[entry.digested : upto]))
    entry.digested = upto


def _covered(entry: Entry, upto: int) -> dict[str, str]:
    """What a record says of the events that the archive does not have yet, up to a number."""
    first = entry.first_seq
    count = upto + 1 - first
    if 0 < entry.digested <= count:
        digest, known = entry.digest.copy(), entry.digested
    else:
        digest, known = hashlib.sha256(), 0
    digest.update(b"".join(entry.records[known:count]))
    return {"digest": digest.hexdigest(), "events": f"{first}-{upto}"}
