"""States of runs, tasks and attempts, and every transition that exists, as data.

`apply` looks each change up here and refuses what is not in the tables, live and in recovery alike: a record that
does not fit its state is a bug or a damaged log, never something to be guessed at. Numbers are those of the protos.
"""

from __future__ import annotations

from enum import IntEnum, auto


class RunState(IntEnum):
    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4


class TaskState(IntEnum):
    PENDING = 1
    READY = 2
    RUNNING = 3
    WAITING = 4
    SUCCEEDED = 5
    FAILED = 6
    SKIPPED = 7
    CANCELLED = 8
    ESCALATED = 9
    QUARANTINED = 10


class AttemptState(IntEnum):
    OFFERED = 1
    RUNNING = 2
    RETURNED = 3
    SUCCEEDED = 4
    FAILED = 5
    LOST = 6
    CANCELLED = 7


class ChildKind(IntEnum):
    """How a run came to be beneath a task: an attempt called for it, the graph says so, or an agent answered with its
    graph. 0 for a run that a client submitted."""

    NONE = 0
    CALL = 1
    GRAPH = 2
    ANSWER = 3


class TaskTrigger(IntEnum):
    """What may happen to a task. An IntEnum only because its hash is C's; the numbers mean nothing."""

    NEEDS_MET = auto()
    WAITED = auto()
    EXPANDED = auto()
    OFFERED = auto()
    RETURNED = auto()
    BACKED_OFF = auto()
    DUE = auto()
    SUCCEEDED = auto()
    FAILED = auto()
    SKIPPED = auto()
    CANCELLED = auto()
    REOPENED = auto()
    TAKEN_UP = auto()
    CONTINUED = auto()
    ESCALATED = auto()
    DELEGATED = auto()
    QUARANTINED = auto()


_T, _G = TaskState, TaskTrigger

TASK_TRANSITIONS: dict[tuple[TaskState, TaskTrigger], TaskState] = {
    (_T.PENDING, _G.NEEDS_MET): _T.READY,
    (_T.PENDING, _G.WAITED): _T.WAITING,  # for a time or a signal, which is all it does
    (_T.PENDING, _G.EXPANDED): _T.RUNNING,  # a fan-out, loop, quorum or hedge: its members are what runs
    (_T.PENDING, _G.SKIPPED): _T.SKIPPED,
    (_T.PENDING, _G.FAILED): _T.FAILED,  # an expression could not be evaluated
    (_T.PENDING, _G.CANCELLED): _T.CANCELLED,
    (_T.READY, _G.OFFERED): _T.RUNNING,
    (_T.READY, _G.BACKED_OFF): _T.WAITING,  # its offers keep coming back
    (_T.READY, _G.FAILED): _T.FAILED,  # no agent in time, policy, schema, deadline
    (_T.READY, _G.CANCELLED): _T.CANCELLED,
    (_T.READY, _G.SUCCEEDED): _T.SUCCEEDED,  # the result of an earlier attempt is used again
    (
        _T.RUNNING,
        _G.EXPANDED,
    ): _T.RUNNING,  # the next chunk of a large fan-out, iteration of a loop, member of a hedge
    (_T.READY, _G.DELEGATED): _T.RUNNING,  # a run beneath it is what runs
    (_T.RUNNING, _G.DELEGATED): _T.RUNNING,  # the agent has answered with a graph
    (_T.RUNNING, _G.RETURNED): _T.READY,
    (_T.RUNNING, _G.BACKED_OFF): _T.WAITING,
    (_T.RUNNING, _G.SUCCEEDED): _T.SUCCEEDED,
    (_T.RUNNING, _G.FAILED): _T.FAILED,
    (_T.RUNNING, _G.CANCELLED): _T.CANCELLED,
    (_T.WAITING, _G.DUE): _T.READY,
    (_T.WAITING, _G.SUCCEEDED): _T.SUCCEEDED,  # the time or the signal came
    (_T.WAITING, _G.FAILED): _T.FAILED,  # the deadline passed while it waited
    (_T.WAITING, _G.CANCELLED): _T.CANCELLED,
    # A person is to say how it goes on.
    (_T.PENDING, _G.ESCALATED): _T.ESCALATED,
    (_T.READY, _G.ESCALATED): _T.ESCALATED,
    (_T.RUNNING, _G.ESCALATED): _T.ESCALATED,
    (_T.WAITING, _G.ESCALATED): _T.ESCALATED,
    (_T.ESCALATED, _G.SUCCEEDED): _T.SUCCEEDED,
    (_T.ESCALATED, _G.FAILED): _T.FAILED,
    (_T.ESCALATED, _G.CANCELLED): _T.CANCELLED,
    (_T.ESCALATED, _G.REOPENED): _T.PENDING,
    (_T.ESCALATED, _G.CONTINUED): _T.RUNNING,
    (_T.ESCALATED, _G.TAKEN_UP): _T.READY,
    # The same, of what takes with it whoever works on it.
    (_T.RUNNING, _G.QUARANTINED): _T.QUARANTINED,
    (_T.QUARANTINED, _G.SUCCEEDED): _T.SUCCEEDED,
    (_T.QUARANTINED, _G.FAILED): _T.FAILED,
    (_T.QUARANTINED, _G.CANCELLED): _T.CANCELLED,
    (_T.QUARANTINED, _G.REOPENED): _T.PENDING,
    (_T.QUARANTINED, _G.TAKEN_UP): _T.READY,
    # By hand; the only ways out of an end.
    (_T.FAILED, _G.REOPENED): _T.PENDING,
    (_T.SKIPPED, _G.REOPENED): _T.PENDING,  # with what it had been skipped for
    (_T.FAILED, _G.CONTINUED): _T.RUNNING,  # a fan-out or loop, with those of its members that did not succeed
    (_T.FAILED, _G.TAKEN_UP): _T.READY,
    (_T.CANCELLED, _G.TAKEN_UP): _T.READY,
}

_A = AttemptState

# An attempt's trigger is the state it is reported to be in.
ATTEMPT_TRANSITIONS: frozenset[tuple[AttemptState, AttemptState]] = frozenset(
    {
        (_A.OFFERED, _A.RUNNING),
        (_A.OFFERED, _A.RETURNED),
        (_A.OFFERED, _A.SUCCEEDED),
        (_A.OFFERED, _A.FAILED),
        (_A.OFFERED, _A.LOST),
        (_A.OFFERED, _A.CANCELLED),
        (_A.RUNNING, _A.SUCCEEDED),
        (_A.RUNNING, _A.FAILED),
        (_A.RUNNING, _A.LOST),
        (_A.RUNNING, _A.CANCELLED),
    }
)

RUN_TRANSITIONS: frozenset[tuple[RunState, RunState]] = frozenset(
    {
        (RunState.RUNNING, RunState.SUCCEEDED),
        (RunState.RUNNING, RunState.FAILED),
        (RunState.RUNNING, RunState.CANCELLED),
    }
)

TASK_ENDED: frozenset[TaskState] = frozenset({_T.SUCCEEDED, _T.FAILED, _T.SKIPPED, _T.CANCELLED})
TASK_ASKS: frozenset[TaskState] = frozenset({_T.ESCALATED, _T.QUARANTINED})
"""States that a person ends."""
ATTEMPT_LIVE: frozenset[AttemptState] = frozenset({_A.OFFERED, _A.RUNNING})


class IllegalTransition(Exception):
    """A change that no table allows: a bug, or a damaged log."""
