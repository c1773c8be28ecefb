"""What a shard works with: a run in memory, what a turn decided, and the ways out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engine.events import RunSubmitted
from ..engine.failure import Failure
from ..engine.run import Run, Task
from ..placement.candidates import Need
from ..placement.results import Kept
from . import inputs as i
from . import payloads

MAX_INPUTS = 256
MIN_INPUTS = 64
"""Most inputs of a turn, and what it takes however little is under way."""

MAX_WAITS = 256
"""Tasks for which a turn looks for a place in vain: they leave no records, by which it is bounded otherwise."""

FIRST_OF_BACKLOG = 16
"""New runs that a turn takes before its inbox, so that runs which are there never keep them out for ever; they have as
small a part of its time and bytes, so that they do not keep out what comes of those."""

MAX_BYTES = 768 * 1024
"""Record bytes of a turn (protocol.md §3). What the last turn left has half of it, so that a run of 100,000 tasks keeps
no others out. Timers have their own such bound."""

MAX_TIMER_BYTES = 1024 * 1024
"""Record bytes at which timers wait for the next turn: more than MAX_BYTES, so that a busy inbox never starves them."""

SEGMENT_BYTES = 1280 * 1024
"""Most record bytes that a single large input may bring a turn to; leaves room for timers in the store's 1.5 MiB."""

REQUEST_KEPT = 24 * 3600 * 1_000_000
"""Microseconds a request id is remembered after its run was archived."""

REQUESTS_KEPT = 1 << 20
"""Most request ids of archived runs that all shards together remember; the oldest go first. Some 400 bytes each."""


@dataclass(slots=True, eq=False)
class Entry:
    """A run in memory. `records` are its serialised events from `first_seq` on, those the archive does not have yet.
    `reading`: tasks, or OUTPUT, that shared context is being read for; a new owner reads for them anew. `base`: its
    last snapshot as it stands in the log, b"" if there is none. `digest` is that of the first `digested` records.
    `unread`: why recovery could not apply all that the log has of it; then `run` is as it was submitted, and only its
    records are what has become of it."""

    run: Run
    key: bytes
    records: list[bytes]
    first_seq: int
    principal_kind: str
    mark: int = -1
    reading: set[int] | None = None
    base: bytes = b""
    digest: Any = None
    digested: int = 0
    unread: Exception | None = None
    waiters: list[i.Sink] = field(default_factory=list)
    watchers: list[i.Watcher] = field(default_factory=list)

    def forget(self, count: int) -> None:
        """Lets go of the first records, which the archive has."""
        self.records = self.records[count:]
        self.first_seq += count
        self.digest, self.digested = None, 0


@dataclass(slots=True)
class Gathered:
    """What recovery has found of a run in parts: `seq` is the segment of the first, `later` what happened to the run
    since, by number."""

    seq: int
    records: list[bytes] = field(default_factory=list)
    later: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class Turn:
    """What one turn decided and what has to happen once it is committed. It has room until `clock` says `until`, and
    for `most` bytes of records. `item` is the input that it is at, `at` the run, for whoever has to know why it ended
    halfway."""

    now: int
    clock: Callable[[], float]
    until: float
    most: int
    records: list[bytes] = field(default_factory=list)
    size: int = 0
    inputs: int = 0
    item: i.Input | None = None
    at: str = ""
    full: bool = False
    waits: int = 0
    """Tasks that found no place."""
    touched: list[Entry] = field(default_factory=list)
    offers: list[tuple[Entry, Task]] = field(default_factory=list)
    cancels: list[tuple[str, str, str]] = field(default_factory=list)
    """Incarnation, attempt, reason."""
    moved: list[str] = field(default_factory=list)
    """Runs of which this turn has all that the log must keep."""
    verdicts: list[tuple[i.Reporter, str, str]] = field(default_factory=list)
    replies: list[tuple[i.Sink, Callable[[], Any]]] = field(default_factory=list)
    ended: list[Entry] = field(default_factory=list)
    reads: list[tuple[Entry, list[int]]] = field(default_factory=list)
    opens: list[tuple[Entry, Task]] = field(default_factory=list)
    results: dict[bytes, Kept] = field(default_factory=dict)
    """Those to be used again by whoever is committed with this turn or after it, by their keys."""
    part_of: str = ""
    """The run of which this turn copies a part to the head of the log."""
    passed_over: dict[Need, str] = field(default_factory=dict)
    """Who is passed over for all that ask for the same: looked at once, however many of them give up in it."""
    audit: list[bytes] = field(default_factory=list)
    """Audit records of this turn, which are committed with its records."""

    def late(self) -> bool:
        """Whether its time is over."""
        return self.clock() >= self.until

    def has_room(self) -> bool:
        """Whether more is to be worked out in it."""
        return self.size < self.most and not self.late()


class Outbox(Protocol):
    """The way to sidecars."""

    def offer(self, shard: int, epoch: int, run: Run, task: Task) -> None: ...

    def cancel(self, incarnation: str, attempt_id: str, reason: str) -> None: ...


class Reader(Protocol):
    """The way to shared context."""

    def read(self, shard: int, run: Run, tasks: Sequence[int]) -> None:
        """Reads what these tasks of a run refer to (OUTPUT: its output) and answers with a ContextFound input."""
        ...


class Graphs(Protocol):
    """The way to registered graphs, and to whoever says what may be run."""

    def open(self, shard: int, run: Run, task: Task) -> None:
        """Looks up the graph that a task runs and answers with an Opened input."""
        ...

    def admit(
        self, parent: RunSubmitted, graph: str, input_schema: str, payload: bytes, priority: int
    ) -> tuple[bytes, Any] | Failure:
        """Whether the principal of a run may run a graph beneath it with that input: the input with the labels that its
        schema declares, and the decision as it is recorded; or the failure of the task."""
        ...


class Archiver(Protocol):
    """Takes what goes to the archive and answers with an Archived input."""

    def put(self, shard: int, run: Run, key: bytes, first_seq: int, records: Sequence[bytes]) -> None: ...


def most_inputs(under_way: int) -> int:
    """How many inputs a turn takes of what is under way: attempts that are out, or all that waits.

    Not all of it: sidecars would have nothing to do until the turn is committed, and then the shard until they are
    done, so that each would stand still for a third of the time. Five eighths keep both at work; smaller parts cost
    more commits and messages than they gain.
    """
    return min(MAX_INPUTS, max(MIN_INPUTS, under_way * 5 // 8))


def principal_kind(principal: str) -> str:
    """The kind in a SPIFFE id, spiffe://DOMAIN/ns/NAMESPACE/KIND/NAME."""
    return principal.rsplit("/", 2)[-2]


def request_key(submitted: RunSubmitted) -> bytes:
    """16 bytes that stand for the request of a submission."""
    return payloads.request_key(submitted.principal, submitted.request_id)


def found_attempt(runs: dict[str, Entry], source: str, attempt_id: str) -> tuple[Entry, Task, int] | None:
    """The attempt, if its run is here and it is out (or was out) to that sidecar, NAMESPACE/SIDECAR."""
    try:
        run_id, task_id, member_text, number_text = attempt_id.split("/")
        member, number = int(member_text), int(number_text)
        entry = runs[run_id]
        run = entry.run
        task = run.task(run.plan.index_of[task_id], member)
        attempt = task.attempts[number - 1]
    except (ValueError, KeyError, IndexError):
        return None
    if task.member != member or attempt.number != number:
        return None  # -1 and 0 are places in a list, but no attempts
    namespace, _, sidecar = source.partition("/")
    if namespace != run.submitted.namespace or not attempt.instance.startswith(sidecar + "/"):
        return None
    return entry, task, number


def forget_requests(
    kept: dict[bytes, tuple[str, bytes, int]], pinned: dict[str, int], settled: Iterable[bytes], most: int, now: int
) -> None:
    """Lets the log forget the runs of settled request ids, and forgets ids of archived runs: the oldest of more than
    `most`, and those whose time has come."""
    for key in settled:
        if (known := kept.get(key)) is not None:
            pinned.pop(known[0], None)
    gone: list[bytes] = []
    for key, (_, _, expire_time) in kept.items():  # once: each look for the first passes by all that went before
        if expire_time > now and len(kept) - len(gone) <= most:
            break
        gone.append(key)
    for key in gone:
        del kept[key]
