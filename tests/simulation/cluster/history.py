"""What was seen from outside, by sidecars, clients and the store, and what must never be seen.

Nothing here is the product's own word: the history is written by those who deal with it. A rule that is broken ends the
world at once; what can only be said at the end is said by `judge.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from antiphon.store.v1 import journal_pb2 as journal
from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import agent_service_pb2 as agents
from antiphon.v1 import run_pb2
from antiphon_orchestrator.store import Put, Target, Txn, keys
from antiphon_sidecar.attempts import End

from tests.simulation.cluster.store import StoreModel

if TYPE_CHECKING:
    from tests.simulation.cluster.sidecar import Sidecar


class Violation(AssertionError):
    """A promise was broken."""


class History:
    """`broken` takes each violation as it is found."""

    def __init__(self, broken: Callable[[Violation], None]) -> None:
        self._broken = broken
        self.executions: Counter[str] = Counter()
        self.executed_by: dict[str, Sidecar] = {}
        self.done: dict[str, str] = {}
        """By task: the number of the attempt whose outcome was accepted as its success."""
        self.runs: dict[str, str] = {}
        """By request id: the run that it became."""
        self.ends: dict[str, str] = {}
        """By run: the state that clients were told it ended in."""
        self.watched: dict[str, dict[int, bytes]] = {}
        """By run: the events that any watcher was told, by their numbers."""
        self.children: set[str] = set()
        """Runs that watchers were told to have begun beneath tasks."""
        self.answers: dict[str, agents.Result] = {}
        """By attempt: what its agent has answered."""
        self.calls: dict[str, list[agents.CallResponse]] = {}
        """By attempt: what its agent was told of the calls that it made."""
        self.asked: Counter[tuple[str, str, int, str]] = Counter()
        """By run, task, member and what: how often somebody asked for a retry, or resolved it."""
        self.revoked: dict[int, float] = {}
        """Serial numbers of certificates that somebody was told are revoked, and when."""
        self.left: list[tuple[str, set[str]]] = []
        """Sidecars that were killed, and the attempts whose outcomes they left on their disks."""

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            self._broken(Violation(what))

    # Sidecars and their agents.

    def executed(self, sidecar: Sidecar, attempt_id: str) -> None:
        """An agent begins to work on an attempt."""
        self.executions[attempt_id] += 1
        self.executed_by[attempt_id] = sidecar
        self.require(self.executions[attempt_id] == 1, f"{attempt_id} was executed again")
        task, _, number = attempt_id.rpartition("/")
        done = self.done.get(task)
        self.require(
            done is None or int(done) > int(number), f"{attempt_id} was executed after {task}/{done} was accepted"
        )

    def accepted(self, attempt_id: str, *, succeeded: bool) -> None:
        """A sidecar is told that an outcome counts."""
        task, _, number = attempt_id.rpartition("/")
        if succeeded:
            other = self.done.setdefault(task, number)
            self.require(other == number, f"two outcomes of {task} were accepted, of {other} and of {number}")

    def made(self, result: agents.Result) -> None:
        """An agent answers an attempt."""
        self.answers[result.attempt_id] = result

    def called(self, attempt_id: str, response: agents.CallResponse) -> None:
        """An agent is told what came of its call."""
        self.calls.setdefault(attempt_id, []).append(response)

    def refused(self, attempt_ids: Collection[str], held: Collection[str], ends: Mapping[str, End]) -> None:
        """Offers of an epoch that is over came to a sidecar that knew of a newer one. `ends`: what it answers."""
        for attempt_id in attempt_ids:
            self.require(attempt_id not in held, f"{attempt_id} was taken from an owner whose epoch was over")
        for attempt_id, end in ends.items():
            stale = end is End.STALE_EPOCH
            self.require(stale, f"{attempt_id}, of an owner whose epoch was over, was refused as {end.name}")

    # Clients.

    def answered(self, request_id: str, run_id: str) -> None:
        """A submission was answered."""
        first = self.runs.setdefault(request_id, run_id)
        self.require(first == run_id, f"{request_id} became two runs, {first} and {run_id}")

    def ended(self, run_id: str, state: str) -> None:
        """A client was told how a run ended."""
        first = self.ends.setdefault(run_id, state)
        self.require(first == state, f"{run_id} was said to have ended {first}, and {state}")

    def asks(self, run_id: str, key: run_pb2.TaskKey, what: str) -> None:
        """Somebody is about to ask for a retry of a task, or to resolve it."""
        self.asked[run_id, key.task_id, key.member, what] += 1

    def piece(self, run_id: str, event: run_pb2.RunEvent, before: dict[str, int]) -> None:
        """A watcher was told a piece of output. `before`: by attempt, how much of it the same stream has told."""
        key, piece = event.key, event.partial
        attempt_id = f"{run_id}/{key.task_id}/{key.member}/{piece.attempt}"
        whole = attempt_id[piece.offset : piece.offset + len(piece.text)]
        self.require(whole == piece.text, f"{piece.text!r} was told as a piece of {attempt_id} at {piece.offset}")
        known = before.get(attempt_id, 0)
        self.require(piece.offset >= known, f"a piece of {attempt_id} was told again: {piece.offset} after {known}")
        before[attempt_id] = piece.offset + len(piece.text)

    def event(self, run_id: str, cursor: int, event_seq: int, event: bytes) -> None:
        """A watcher, which had seen everything up to `cursor`, was told an event."""
        self.require(event_seq == cursor + 1, f"a watcher of {run_id} was told {event_seq} after {cursor}")
        known = self.watched.setdefault(run_id, {}).setdefault(event_seq, event)
        self.require(known == event, f"two watchers of {run_id} were told different events {event_seq}")


class Fence:
    """Looks at every transaction that the store accepts: who owns a shard, and that nobody else writes to it."""

    def __init__(self, model: StoreModel, history: History) -> None:
        self._model = model
        self._history = history
        model.committed = self._committed

    def _committed(self, txn: Txn, revision: int) -> None:
        for op in txn.ops:
            kind, *rest = keys.parts(op.key)
            if kind == "shard" and rest[-1] == "owner" and isinstance(op, Put):
                self._owner(int(rest[0], 16), op)
            elif kind == "log" and isinstance(op, Put):
                self._segment(int(rest[0], 16), op)
            elif kind in ("log", "requests"):
                # A trim, or request ids of archived runs: they do not say whose they are, so they have to ask.
                owner = keys.shard_owner(int(rest[0], 16))
                asked = any(compare.key == owner and compare.target is Target.VALUE for compare in txn.compares)
                self._history.require(asked, f"{op.key!r} was changed without asking who owns the shard")

    def _owner(self, shard: int, op: Put) -> None:
        require = self._history.require
        before, new = self._read(shard), records.ShardOwner.FromString(op.value)
        if new.epoch == before.epoch:
            require(not before.successor_id, f"shard {shard} was handed over twice in epoch {new.epoch}")
            return
        require(new.epoch == before.epoch + 1, f"shard {shard} went from epoch {before.epoch} to {new.epoch}")
        claimant = before.successor_id or before.replica_id
        gone = claimant in ("", new.replica_id) or self._model.get(keys.replica(claimant)) is None
        require(gone, f"shard {shard} was taken from {claimant}, which was still there")

    def _segment(self, shard: int, op: Put) -> None:
        require = self._history.require
        owner, segment = self._read(shard), journal.LogSegment.FromString(op.value)
        require(self._model.get(op.key) is None, f"segment {op.key!r} was written twice")
        ours = segment.epoch == owner.epoch and not owner.successor_id
        require(ours, f"epoch {segment.epoch} wrote to shard {shard}, which is {owner.replica_id}'s in {owner.epoch}")

    def _read(self, shard: int) -> records.ShardOwner:
        found = self._model.get(keys.shard_owner(shard))
        return records.ShardOwner.FromString(found.value) if found is not None else records.ShardOwner()
