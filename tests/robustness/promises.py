"""What Antiphon promises for the day something breaks: a row for each event.

A test names the rows it proves with `@pytest.mark.proves("partition, each side")`. `tools/failures.py` makes
docs/failures.md of this table and those marks; a row that no test names is shown as not yet kept, and a mark without a
row is refused.
"""

from __future__ import annotations

PROMISES = {
    "agent process dies": (
        "its attempt fails within 3 s; the task is tried again as its rule says; what has finished is not run again"
    ),
    "sidecar dies": (
        "the attempts of all its agents fail once it has been away for 8 s, also when its next life is there sooner; "
        "they are tried again as their rules say; what it had reported and got acknowledged stays, and what its agents "
        "had answered is reported by its next life"
    ),
    "orchestrator dies": (
        "its shards go on with others once its lease of 5 s has ended, or at its restart when it is the only one; "
        "no run is lost, none ends twice; attempts that run are adopted, not run again; a watch goes on without gap "
        "or repeat"
    ),
    "rolling restart": "no call of a client of our SDKs fails, and no task runs twice",
    "leader of the store lost or stalled": (
        "writes wait, then go on; nobody loses a shard to somebody who has not fenced it"
    ),
    "quorum of the store lost": (
        "nothing changes; agents go on, and their outcomes wait beside them; all resumes by itself"
    ),
    "disk full under the store": (
        "a member that cannot write ends and the others go on; with no quorum left all waits, and resumes once there "
        "is room"
    ),
    "partition, each side": (
        "one way or both: at most one outcome of a task is accepted, and a sidecar that has seen a newer owner of a "
        "shard refuses what the older one offers"
    ),
    "a replica is cut off from the store": (
        "once its lease of 5 s has ended it answers no calls, whoever waits there is sent on within 3 s, and clients "
        "of our SDKs get their answers from another address; it serves again by itself, once it has read what others "
        "changed"
    ),
    "process pause": (
        "what a process writes that was stopped while others took over is refused, and so are its offers that are on "
        "their way"
    ),
    "a commit whose answer was lost": "is settled by sending the same bytes again; memory and journal never differ",
    "archive down": "runs go on, nothing is trimmed, an alarm says so, and it catches up by itself",
    "store full": "new runs are refused; those that run end; room comes back by trimming",
    "poison task": (
        "after two deaths of its agent or sidecar while it ran, or before its last attempt, it is tried alone; once it "
        "dies alone it is QUARANTINED for a person; bystanders are not blamed, and end well"
    ),
    "a bug in how one run is carried on": (
        "the shard is rebuilt from its log; when that run ends a second turn, or cannot be rebuilt, it stands aside "
        "until a new process takes it up, and all others go on"
    ),
    "runs beneath tasks, whatever breaks": (
        "a sub-run, an answered graph or a call is one run with one end, and that is what its task, or its caller, gets"
    ),
    "several agents for one task, whatever breaks": (
        "a quorum has the votes of as many instances, a hedge one outcome; whoever was slower is told to stop"
    ),
    "undoing, whatever breaks": (
        "what a run that fails or is cancelled has done is undone, from the last to the first, before the run ends"
    ),
    "steering, whatever breaks": (
        "what is held, or waits for a person, begins nothing; a signal that is sent again is one"
    ),
    "limits of policy and takeovers": "no replica lets out more than its part; what is out is counted by a new owner",
    "duplicate or late result": "an outcome is accepted once; a late one of an older attempt is recorded and not used",
    "the same submission twice": "is one run",
    "slow agent": "the time left shrinks from hop to hop; at zero the attempt is cancelled; nothing else waits for it",
    "overload": "queues are bounded; unary callers are told when to come back, streams are read more slowly",
    "overload, three times": "clients that obey get 80 % of what is done at the peak",
    "certificate expiry and rotation": (
        "a certificate is renewed, and the root replaced, under load without a failed call; one that expires "
        "ends its calls, and its streams within 3 s; its key brings a sidecar back that was away for days"
    ),
    "certificate revocation": "holds on live connections of every replica within 5 s",
    "policy change while a run goes on": "from its commit on nothing is dispatched under the old policies",
    "clock set forwards or backwards": (
        "no attempt is declared lost for it, no run stands still, and nothing that has finished runs again"
    ),
    "shared context, whatever breaks": (
        "each entry is linearizable: every read sees the last write that was answered, and no write is lost or twice"
    ),
    "a sidecar that lies": (
        "is refused with a reason, or what it says counts for nothing: no record changes but of what it was given, and "
        "every record can be read"
    ),
    "callers that mean harm": (
        "sockets that say nothing, floods, and streams that nobody reads meet their limits and are refused; who is "
        "honest keeps 80 % of what it gets done"
    ),
    "version skew of one minor": "what is not known survives, and what is missing means the strictest",
}
