"""What can happen to a run, as the log records it. Mirrors antiphon.store.v1.Record one to one.

Events are plain data. Payloads are serialised antiphon.v1.Payload messages (b"" is null) and stay opaque here;
`decision` and `policy` are serialised records of other parts, which the engine carries on. Times are integer
microseconds since 1970: an event is made for every step of every task. Constructors of what is made that often are
written out, here and elsewhere: compiled code calls such a one directly, a generated one through the interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from .failure import Failure
from .states import AttemptState, ChildKind, RunState, TaskState


@dataclass(slots=True)
class RunSubmitted:
    """A run was admitted. `graph` is the inline graph's message, None for a registered one. `chain`: what each of the
    attempts above it works on, as digests of name and input, in the order of `delegation`."""

    namespace: str
    principal: str
    request_id: str
    request_digest: bytes
    graph_name: str
    graph_version: str
    graph: Any
    input: bytes
    labels: dict[str, str]
    deadline_time: int
    priority: int
    traceparent: str
    policy: Any
    warnings: tuple[str, ...] = ()
    parent_attempt_id: str = ""
    delegation: tuple[str, ...] = ()
    child_kind: ChildKind = ChildKind.NONE
    chain: tuple[bytes, ...] = ()


@dataclass(slots=True)
class TaskReady:
    """A task may run. For a task that was WAITING the input is b"": it keeps the one it has."""

    task: int
    member: int
    input: bytes


@dataclass(slots=True)
class Placement:
    """Where an attempt goes: an instance of an agent, for a capability as it announced it (name@version). `decision`
    is the serialised antiphon.v1.RoutingDecision that says why, `policy_epoch` that of the policies that let it.
    `reduced_input` is the input as it is handed on, None when that is all of it."""

    agent: str
    instance: str
    capability: str
    decision: bytes
    policy_epoch: int
    reduced_input: bytes | None

    def __init__(
        self,
        agent: str,
        instance: str,
        capability: str,
        decision: bytes,
        policy_epoch: int,
        reduced_input: bytes | None = None,
    ) -> None:
        self.reduced_input = reduced_input
        self.agent = agent
        self.instance = instance
        self.capability = capability
        self.decision = decision
        self.policy_epoch = policy_epoch


@dataclass(slots=True)
class AttemptOffered:
    """An attempt was placed. `input` is that of a task which is placed as soon as it may run; None when TaskReady, or
    its fan-out's TaskExpanded, gave it."""

    task: int
    member: int
    number: int
    placement: Placement
    epoch: int
    input: bytes | None

    def __init__(
        self, task: int, member: int, number: int, placement: Placement, epoch: int, input: bytes | None = None
    ) -> None:
        self.task = task
        self.member = member
        self.number = number
        self.placement = placement
        self.epoch = epoch
        self.input = input


@dataclass(slots=True)
class AttemptStarted:
    """The agent has begun."""

    task: int
    member: int
    number: int


@dataclass(slots=True)
class AttemptEnded:
    """An attempt came to its end; with SUCCEEDED, not stale, the task succeeds in the same step.

    `released` is the output as the run's principal may have it, None when that is all of it."""

    task: int
    member: int
    number: int
    state: AttemptState
    output: bytes
    failure: Failure | None
    busy: int
    stale: bool
    policy: bytes
    released: bytes | None

    def __init__(
        self,
        task: int,
        member: int,
        number: int,
        state: AttemptState,
        output: bytes = b"",
        failure: Failure | None = None,
        busy: int = 0,
        stale: bool = False,
        policy: bytes = b"",
        released: bytes | None = None,
    ) -> None:
        self.released = released
        self.task = task
        self.member = member
        self.number = number
        self.state = state
        self.output = output
        self.failure = failure
        self.busy = busy
        self.stale = stale
        self.policy = policy


@dataclass(slots=True)
class TaskWaiting:
    """A task will be tried again at `until`; one that only waits has begun to, until then, or with 0 for a signal.
    `in_vain`: how many times it has found no agent in time, when that is why."""

    task: int
    member: int
    until: int
    reason: str
    in_vain: int = 0


@dataclass(slots=True)
class TaskEnded:
    """An end without an output of its own."""

    task: int
    member: int
    state: TaskState
    failure: Failure | None = None
    reason: str = ""


@dataclass(slots=True)
class TaskCompleted:
    """A success with an output that no attempt gave. `signal` is the place, from 1, among those of the run of the one
    that it waited for; 0 when it waited for none. `principal` is the person who gave the output, if one did. `policy`
    and `released` are as in AttemptEnded, of what the graph of an agent, or that person, gave."""

    task: int
    member: int
    output: bytes
    signal: int = 0
    principal: str = ""
    policy: bytes = b""
    released: bytes | None = None


@dataclass(slots=True)
class AnswerCompared:
    """The answer of a member of a quorum agrees with that of an earlier member, or, with itself, with none before.
    `reason`: why it could not be compared with some of them."""

    task: int
    member: int
    agrees_with: int
    reason: str = ""


@dataclass(slots=True)
class TaskAgreed:
    """A quorum or hedge succeeds with the output of one of its members."""

    task: int
    member: int


@dataclass(slots=True)
class Reused:
    """Where a result that is used again comes from, when it was kept, and by which decisions it may be used: serialised
    antiphon.v1.RoutingDecision of the instance that would have got the task, and PolicyDecision of the release."""

    origin_attempt_id: str
    keep_time: int
    decision: bytes
    policy: bytes


@dataclass(slots=True)
class ResultReused:
    """A task succeeds with the result of an earlier attempt. `input` as in AttemptOffered, `released` as in
    AttemptEnded."""

    task: int
    member: int
    output: bytes
    reused: Reused
    input: bytes | None = None
    released: bytes | None = None


@dataclass(slots=True)
class SignalReceived:
    """A signal, kept until a task waits for it."""

    signal: str
    payload: bytes
    principal: str
    request_id: str
    request_digest: bytes


@dataclass(slots=True)
class TaskExpanded:
    """A fan-out gets members first_member … first_member+len(inputs)-1 of member_count, or a loop its next one."""

    task: int
    member_count: int
    first_member: int
    inputs: list[bytes]


@dataclass(slots=True)
class Found:
    """An entry of shared context as it was read; `value` None and `revision` 0 when it was not there."""

    scope: str
    key: str
    revision: int
    value: bytes | None


OUTPUT: Final = -1
"""In place of a task's index: the run's output."""


@dataclass(slots=True)
class ContextRead:
    """What the expressions of a task, or of the run's output (OUTPUT), find in shared context. They see this and
    nothing else, however often they are evaluated."""

    task: int
    found: tuple[Found, ...]


@dataclass(slots=True)
class CancelRequested:
    """A caller's wish."""

    principal: str
    reason: str


@dataclass(slots=True)
class RunPaused:
    """A caller's wish: nothing begins from now on."""

    principal: str
    reason: str


@dataclass(slots=True)
class RunResumed:
    """A caller's wish: the run goes on."""

    principal: str
    reason: str


@dataclass(slots=True)
class TaskCancelRequested:
    """A caller's wish that a task ends, with all its members."""

    task: int
    principal: str
    reason: str


@dataclass(slots=True)
class TaskReopened:
    """A caller's wish that a task which has failed is taken up again, and with it what was skipped because of it.
    `reads_anew`: what begins anew has shared context read again; false in records from before it did."""

    task: int
    member: int
    principal: str
    reason: str
    reads_anew: bool = True


@dataclass(slots=True)
class TaskEscalated:
    """A task did not succeed and waits for a person."""

    task: int
    member: int
    failure: Failure


@dataclass(slots=True)
class ChildBegun:
    """A run began beneath a task, which waits for it unless it is a call. `name`: the capability of a call, else the
    graph. `number`: the attempt that called for it, or that has answered with it, and so has ended after `busy`
    microseconds; 0 when the graph says so. `tasks`: those of its graph."""

    task: int
    member: int
    run_id: str
    kind: ChildKind
    name: str
    number: int
    call_id: str
    tasks: int
    busy: int = 0


@dataclass(slots=True)
class RunGrown:
    """Runs with so many tasks began further below."""

    tasks: int


@dataclass(slots=True)
class TaskQuarantined:
    """A task that took with it whoever worked on it waits for a person."""

    task: int
    member: int
    failure: Failure


@dataclass(slots=True)
class RunUnwinding:
    """A run has failed although no task of it has, so that what was done is undone."""

    failure: Failure


@dataclass(slots=True)
class RunEnded:
    """The end of a run. `warning`: what is not in the output although it might be expected there."""

    state: RunState
    output: bytes = b""
    failure: Failure | None = None
    warning: str = ""


Event: TypeAlias = (
    RunSubmitted
    | TaskReady
    | AttemptOffered
    | AttemptStarted
    | AttemptEnded
    | TaskWaiting
    | TaskEnded
    | TaskCompleted
    | TaskExpanded
    | AnswerCompared
    | TaskAgreed
    | ResultReused
    | SignalReceived
    | ContextRead
    | CancelRequested
    | RunPaused
    | RunResumed
    | TaskCancelRequested
    | TaskReopened
    | TaskEscalated
    | ChildBegun
    | RunGrown
    | TaskQuarantined
    | RunUnwinding
    | RunEnded
)
