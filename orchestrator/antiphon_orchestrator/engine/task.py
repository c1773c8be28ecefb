"""What a run consists of: tasks, their attempts, the runs beneath them, and signals. `run.apply` alone changes them."""

from __future__ import annotations

from dataclasses import dataclass

from .events import ChildBegun, Found, Placement, Reused, SignalReceived
from .failure import Failure
from .plan import OnFailure, TaskPlan
from .states import ATTEMPT_LIVE, TASK_ENDED, AttemptState, ChildKind, TaskState


@dataclass(slots=True)
class Attempt:
    """One try. `stale` is set once a late outcome of it has been recorded."""

    number: int
    placement: Placement
    epoch: int
    offer_time: int
    state: AttemptState
    failure: Failure | None
    end_time: int
    busy: int
    policy: bytes
    stale: bool

    def __init__(
        self,
        number: int,
        placement: Placement,
        epoch: int,
        offer_time: int,
        state: AttemptState = AttemptState.OFFERED,
    ) -> None:
        self.number = number
        self.placement = placement
        self.epoch = epoch
        self.offer_time = offer_time
        self.state = state
        self.failure = None
        self.end_time = 0
        self.busy = 0
        self.policy = b""
        self.stale = False

    @property
    def instance(self) -> str:
        """SIDECAR/INCARNATION/AGENT it is out to, or was."""
        return self.placement.instance


@dataclass(slots=True)
class Child:
    """A run beneath a task, as it began."""

    begun: ChildBegun
    begin_time: int


@dataclass(slots=True)
class Task:
    """One node of a run, or one member of a fan-out (`member` from 1; 0 for the node itself).

    `released` is the output as the run's principal may have it, None when that is all of it. `found` is what its
    expressions see of shared context, None until that was read.
    A fan-out has `members`; `member_count` is -1 until it is known, `members_open` counts those that have not ended,
    `input_bytes` what the inputs of all that are there take.
    `cancel_reason` is set, for a node, while it is to be cancelled and has not ended.
    `again_time`: when it last was READY again after a wait; `in_vain`: how many times it had found no agent in time.
    `children`: the runs beneath it, in order; None for the many that have none.
    `answer`: of a member of a quorum
    the first member that its output agrees with, 0 until it was compared; of a quorum or hedge itself the member whose
    output is its own. `reused`: where the output comes from when no attempt of the task gave it.
    """

    plan: TaskPlan
    member: int
    state: TaskState
    input: bytes
    output: bytes | None
    released: bytes | None
    failure: Failure | None
    reason: str
    ready_time: int
    end_time: int
    wait_until: int
    again_time: int
    in_vain: int
    needs_done: int
    needs_ended: int
    member_count: int
    members_open: int
    input_bytes: int
    members: list[Task]
    attempts: list[Attempt]
    found: tuple[Found, ...] | None
    cancel_reason: str
    children: list[Child] | None
    answer: int
    reused: Reused | None

    def __init__(self, plan: TaskPlan, member: int = 0, input: bytes = b"", ready_time: int = 0) -> None:
        self.plan = plan
        self.member = member
        self.state = TaskState.PENDING
        self.input = input
        self.output = None
        self.released = None
        self.failure = None
        self.reason = ""
        self.ready_time = ready_time
        self.end_time = 0
        self.wait_until = 0
        self.again_time = 0
        self.in_vain = 0
        self.needs_done = 0
        self.needs_ended = 0
        self.member_count = -1
        self.members_open = 0
        self.input_bytes = 0
        self.members = []
        self.attempts = []
        self.found = None
        self.cancel_reason = ""
        self.children = None
        self.answer = 0
        self.reused = None

    @property
    def sub_run(self) -> str:
        """The run beneath it that it waits for; empty when it waits for none."""
        if self.children is None or self.state is not TaskState.RUNNING or self.live is not None:
            return ""
        last = self.children[-1].begun
        return "" if last.kind is ChildKind.CALL else last.run_id

    @property
    def live(self) -> Attempt | None:
        """The attempt that is out, if one is: the last one, because a task never has two."""
        if self.attempts and self.attempts[-1].state in ATTEMPT_LIVE:
            return self.attempts[-1]
        return None

    @property
    def ended(self) -> bool:
        return self.state in TASK_ENDED

    def counts_as_done(self) -> bool:
        """Whether dependents see this need as done."""
        return self.state is TaskState.SUCCEEDED or (
            self.state is TaskState.FAILED and self.plan.on_failure is OnFailure.CONTINUE
        )


@dataclass(slots=True)
class Signal:
    """A signal that a run was sent. `task` is the index of the task it ended, -1 while it is kept."""

    received: SignalReceived
    task: int = -1
