"""What a shard may be told. Inputs are plain data; answers go back through the sinks they carry, after the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ..engine.decide import Outcome
from ..engine.events import Event, Found, RunSubmitted
from ..engine.failure import Failure
from ..engine.plan import Plan
from ..engine.run import Run
from ..placement.fleet import Offered, Waiter
from ..placement.limits import Counter

Sink: TypeAlias = Callable[[Any], None]
"""Takes the answer to an input, or the exception that is the answer: Moved, for any input, when the shard went away
before it answered. Must not raise and must not wait."""


class Reporter(Protocol):
    """Whoever reports outcomes and waits for verdicts: one stream of a sidecar."""

    def verdict(self, attempt_id: str, kind: str) -> None: ...

    def no_verdict(self) -> None:
        """A report gets its verdict elsewhere, if at all."""
        ...


class Watcher(Protocol):
    """Takes the serialised records of one run, in order; `ended` follows the last one."""

    def records(self, records: list[bytes]) -> None: ...

    def progress(self, task_id: str, member: int, progress: Any) -> None: ...

    def partial(self, task_id: str, member: int, piece: Any) -> None:
        """A piece of output, as the run's principal may have it; shared with other watchers, not to be changed."""

    def ended(self, run: Run) -> None: ...

    def moved(self) -> None:
        """The shard is not this replica's any more; nothing follows."""


class Moved(Exception):
    """The answer of a shard that is not, or not any more, this replica's: ask its owner."""

    def __init__(self, shard: int) -> None:
        super().__init__(f"shard {shard} is not here")
        self.shard = shard


class SetAside(Exception):
    """The answer about a run that stands aside: nothing can be asked of it. The text says why."""

    def __init__(self, run_id: str, why: str) -> None:
        super().__init__(why)
        self.run_id = run_id


class Unanswered(Exception):
    """The answer that could not be given, since making it, or taking it, raised something. The log has what."""

    def __init__(self) -> None:
        super().__init__("there is no answer. That is a bug; its traceback is in the log of the orchestrator")
        self.code = "INTERNAL"


@dataclass(slots=True)
class Submit:
    """A run to admit. `sink` gets the Run once committed, or once ended (`wait`), or an ApiError."""

    run_id: str
    plan: Plan
    event: RunSubmitted
    key: bytes
    wait: bool
    sink: Sink


@dataclass(slots=True)
class Report:
    """An outcome. `source` is NAMESPACE/SIDECAR of who reports it: only the sidecar an attempt is out to may end it."""

    reporter: Reporter
    source: str
    attempt_id: str
    outcome: Outcome

    def __init__(self, reporter: Reporter, source: str, attempt_id: str, outcome: Outcome) -> None:
        self.reporter = reporter
        self.source = source
        self.attempt_id = attempt_id
        self.outcome = outcome


@dataclass(slots=True)
class Started:
    """The agent has begun; `source` as in Report."""

    source: str
    attempt_id: str


@dataclass(slots=True)
class Progress:
    """What an agent says while it works, for whoever watches; `source` as in Report. Not kept."""

    source: str
    attempt_id: str
    progress: Any


@dataclass(slots=True)
class Call:
    """A capability asked for on behalf of a running attempt: a run of one task, in the shard of its parent.

    `sink` gets the Run once it has ended, the id of one that is archived, a CallRefused or a CallDenied.
    `timeout` in microseconds, None for all the time the attempt has. `clearance`: labels that its answer may carry, as
    the shard finds them declared by the calling capability. `over`: a run of a former attempt that has ended without
    success, as the archive says.
    """

    source: str
    attempt_id: str
    call_id: str
    run_id: str
    plan: Plan
    graph: Any
    digest: bytes
    input: bytes
    timeout: int | None
    sink: Sink
    clearance: frozenset[str] = frozenset()
    over: str = ""


@dataclass(slots=True)
class Answered:
    """An agent has answered its attempt with a graph; otherwise as Report. `plan` is the failure of one with mistakes.
    `run_id` is for the run of the graph, `input` its serialised payload."""

    reporter: Reporter
    source: str
    attempt_id: str
    run_id: str
    plan: Plan | Failure
    graph: Any
    input: bytes
    busy: int


@dataclass(slots=True)
class Opened:
    """The registered graph that a task is to run, or why it cannot be had. `run_id` is for its run."""

    parent_id: str
    task: int
    member: int
    run_id: str
    plan: Plan | Failure
    input_schema: str


class RequestIdReused(Exception):
    """The request id was used before with other content."""


class CallRefused(Exception):
    """A call that is not made; the text says why, `code` is the name of an antiphon.v1.ErrorReason."""

    def __init__(self, message: str, code: str = "ATTEMPT_NOT_FOUND") -> None:
        super().__init__(message)
        self.code = code


class CallDenied(Exception):
    """A call that policy does not permit; the text says why."""

    def __init__(self, message: str, decision_id: str) -> None:
        super().__init__(message)
        self.decision_id = decision_id


@dataclass(slots=True)
class Cancel:
    run_id: str
    principal: str
    reason: str
    sink: Sink


@dataclass(slots=True)
class Steered:
    """What a wish leads to: events, and the answer once they are committed, which is for the sink."""

    events: list[Event]
    answer: Callable[[Run], Any]


@dataclass(slots=True)
class Steer:
    """What somebody asks of a run that is under way. `wish` decides at `now` (microseconds since 1970) and changes
    nothing; of a run that has ended it can only answer. With events it is audited as `action`, with `reason` and
    `details`. `sink` gets None for a run that is not here."""

    run_id: str
    principal: str
    action: str
    reason: str
    details: dict[str, str]
    wish: Callable[[Run, int], Steered]
    sink: Sink


@dataclass(slots=True)
class Reserved:
    """A slot that came free for a task that waited."""

    waiter: Waiter
    offered: Offered


@dataclass(slots=True)
class CalledUp:
    """A task that a limit held up may be placed anew; `counter` keeps room for it, until it is told."""

    waiter: Waiter
    counter: Counter | None


@dataclass(slots=True)
class Inventory:
    """All that one sidecar holds of this shard. `before` are the attempts that were out to it when it was asked."""

    incarnation: str
    held: frozenset[str]
    before: frozenset[str]


@dataclass(slots=True)
class SidecarGone:
    """An incarnation that will not come back: its attempts are lost."""

    incarnation: str


@dataclass(slots=True)
class Read:
    """A question about a run, answered at release. `sink` gets question(run), or None when the run is not here; and
    StoreFull when there can be no answer until the store has room, unless it is `patient`."""

    run_id: str
    question: Callable[[Run], Any]
    sink: Sink
    patient: bool = False


@dataclass(slots=True)
class Survey:
    """A question about all runs of the shard, answered at release; or StoreFull, as for one of them."""

    question: Callable[[Iterable[Run]], Any]
    sink: Sink


@dataclass(slots=True)
class Watch:
    """A watcher of a run from a cursor on. `sink` gets (first sequence number held here, run), or None."""

    run_id: str
    cursor: int
    watcher: Watcher
    sink: Sink


@dataclass(slots=True)
class Unwatch:
    run_id: str
    watcher: Watcher


@dataclass(slots=True)
class Leave:
    """Nobody waits at this sink any more. The run is named by its id, or by the key of its request."""

    run_id: str
    key: bytes
    sink: Sink


@dataclass(slots=True)
class ContextFound:
    """What a run's expressions were to read of shared context, by task or OUTPUT, or why it could not be read."""

    run_id: str
    found: list[tuple[int, tuple[Found, ...] | Failure]]


@dataclass(slots=True)
class Archived:
    """Events of these runs up to the given numbers are in the archive."""

    upto: dict[str, int]


Asked: TypeAlias = Submit | Call | Cancel | Steer | Read | Survey | Watch
"""What somebody waits for the answer of."""

Input: TypeAlias = (
    Submit
    | Report
    | Started
    | Progress
    | Call
    | Answered
    | Opened
    | Cancel
    | Steer
    | Reserved
    | CalledUp
    | Inventory
    | SidecarGone
    | Read
    | Survey
    | Watch
    | Unwatch
    | Leave
    | ContextFound
    | Archived
)
