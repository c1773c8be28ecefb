"""What is asked of a policy and what it answers, with no engine behind it. Standard library only.

Invariants:
- A `Request` is a plain hashable tuple and is itself the cache key, so it holds only what a policy may decide by. Ids
  of runs, tasks and attempts stay out of dispatch and release, or every task would be evaluated anew (100 µs and more
  instead of < 0.5 µs); the audit record adds them. Building one costs ~2 µs: keep it where it is used again.
- One attribute name has one type everywhere (the Cedar schema says which): as keys, True and 1 are equal.
- A `Decision` is a function of the request, the policies and their epoch: equal inputs, equal `decision_id`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import NamedTuple, Protocol, Self


@unique
class Action(StrEnum):
    """The Cedar actions: the `access` option of an API method names one, and so does each point of the shard loop."""

    SUBMIT = "submit"  # start a run of a graph
    READ = "read"
    CANCEL = "cancel"
    SIGNAL = "signal"  # to a run, for a task that waits
    PAUSE = "pause"  # hold a run, and let it go on
    RETRY = "retry"  # take up a task of a run again
    RESOLVE = "resolve"  # say what becomes of a task that is escalated
    DISPATCH = "dispatch"  # hand a task of this principal to an agent
    CALL = "call"  # an agent asks for a capability on behalf of this principal's task
    RELEASE = "release"  # hand a task's output to this principal
    REGISTER = "register"  # announce an agent's capability
    READ_PAYLOAD = "read_payload"  # the content behind a reference
    WRITE_PAYLOAD = "write_payload"
    READ_CONTEXT = "read_context"  # an entry of shared context
    WRITE_CONTEXT = "write_context"  # also delete it, or hold a claim of that name
    OPERATE = "operate"  # change what is there: register a graph, drain an agent, make a join token
    CHANGE_POLICY = "change_policy"  # put other policies in force, for every namespace
    READ_AUDIT = "read_audit"  # audit records, their checkpoints and proofs

    # Enum hashes in Python; this is in every cache look-up.
    __hash__ = str.__hash__


@unique
class ResourceKind(StrEnum):
    """The Cedar entity types that can be acted on."""

    NAMESPACE = "Namespace"
    GRAPH = "Graph"
    RUN = "Run"
    TASK = "Task"
    CAPABILITY = "Capability"
    AGENT = "Agent"
    ENTRY = "Entry"

    __hash__ = str.__hash__


Value = str | int | bool | frozenset[str]


class Request(NamedTuple):
    """May `principal` do `action` to a resource? Build the ones with attributes by the class methods below.

    principal       SPIFFE id, `spiffe://<trust domain>/ns/<namespace>/<kind>/<name>`
    principal_kind  must equal the kind in that id
    namespace       the resource's namespace (the principal's is in its id)
    resource_id     unique within namespace and kind; for a namespace, its name
    attributes      facts of the action, sorted by name
    """

    action: Action
    principal: str
    principal_kind: str
    namespace: str
    resource_kind: ResourceKind
    resource_id: str
    attributes: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def submit(
        cls, principal: str, principal_kind: str, namespace: str, graph: str, *, labels: frozenset[str], priority: int
    ) -> Self:
        """May the principal start a run of `graph` with input that carries `labels`?"""
        facts = (("labels", labels), ("priority", priority))
        return cls(Action.SUBMIT, principal, principal_kind, namespace, ResourceKind.GRAPH, graph, facts)

    @classmethod
    def dispatch(
        cls,
        principal: str,
        principal_kind: str,
        namespace: str,
        capability: str,
        *,
        version: str,
        effect: str,
        labels: frozenset[str],
        agent: str,
        agent_clearance: frozenset[str],
        attempt: int,
    ) -> Self:
        """May `agent` be given a task of the run's principal whose input carries `labels`?

        `effect` is the capability's effect class (pure, read, write, egress); `attempt` counts from 1.
        """
        facts = (
            ("agent", agent),
            ("agent_clearance", agent_clearance),
            ("attempt", attempt),
            ("effect", effect),
            ("labels", labels),
            ("version", version),
        )
        return cls(Action.DISPATCH, principal, principal_kind, namespace, ResourceKind.CAPABILITY, capability, facts)

    @classmethod
    def call(
        cls,
        principal: str,
        principal_kind: str,
        namespace: str,
        capability: str,
        *,
        agent: str,
        labels: frozenset[str],
    ) -> Self:
        """May `agent`, working for the run's principal, ask for a capability with input that carries `labels`?"""
        facts = (("agent", agent), ("labels", labels))
        return cls(Action.CALL, principal, principal_kind, namespace, ResourceKind.CAPABILITY, capability, facts)

    @classmethod
    def release(
        cls, principal: str, principal_kind: str, namespace: str, capability: str, *, labels: frozenset[str]
    ) -> Self:
        """May the principal, who is the receiver, have output of `capability` that carries `labels`?"""
        facts = (("labels", labels),)
        return cls(Action.RELEASE, principal, principal_kind, namespace, ResourceKind.CAPABILITY, capability, facts)

    @classmethod
    def register(
        cls,
        principal: str,
        principal_kind: str,
        namespace: str,
        agent: str,
        *,
        capability: str,
        granted: bool,
        verified: bool,
    ) -> Self:
        """May the sidecar announce that `agent` offers `capability`?

        `granted`: its certificate covers both names. `verified`: this version of the agent, with these capabilities,
        has a report of `antiphon verify` in which every case passed.
        """
        facts = (("capability", capability), ("granted", granted), ("verified", verified))
        return cls(Action.REGISTER, principal, principal_kind, namespace, ResourceKind.AGENT, agent, facts)

    @classmethod
    def entry(
        cls,
        action: Action,
        principal: str,
        principal_kind: str,
        namespace: str,
        scope: str,
        key: str,
        *,
        labels: frozenset[str],
        agent: str,
        own: bool,
    ) -> Self:
        """May the principal read or write the entry `key`, whose value carries `labels`?

        `scope` is namespace, run or graph:NAME; runs are not told apart, but by `own`: False when a task reaches for
        another run, or another graph, than it works for. `agent` is empty for a client.
        """
        kind, _, _ = scope.partition(":")
        facts = (("agent", agent), ("key", key), ("labels", labels), ("own", own), ("scope", kind))
        return cls(action, principal, principal_kind, namespace, ResourceKind.ENTRY, f"{scope}/{key}", facts)


@unique
class Outcome(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"


class Obligation(NamedTuple):
    """What a permit demands of whoever acts on it.

    `params`: for `redact` what to strike out, fields as JSON pointers and labels as `label:KEY`; for `limit` those of
    `Limit`; for `log` nothing.
    """

    name: str
    params: tuple[str, ...] = ()


OBLIGATIONS = frozenset({"limit", "log", "redact"})
"""Those that are carried out; a permit that demands more is none."""
REDACTING = frozenset({Action.DISPATCH, Action.RELEASE})
"""Where payloads are handed on, which is where fields can be struck out of them."""

PERIODS = {"s": 1, "m": 60, "h": 3600}
"""Seconds of what a rate may be given by."""


class Limit(NamedTuple):
    """What an obligation `limit` demands of whoever dispatches: attempts that begin in a second, after `burst` of them
    at once, and attempts that are out at once; 0 where there is no such limit.

    `per`: namespace, capability and agent, as far as each of them has a count of its own; else all that the policy
    permits share one.
    """

    policy: str
    rate: float
    burst: int
    concurrent: int
    per: tuple[str, ...]

    @classmethod
    def of(cls, params: Sequence[str]) -> Self:
        """What `Obligation.params` say: the policy, then `rate=90/m`, `burst=5`, `concurrent=3`, `per=namespace+agent`,
        as far as there is such a limit. Without a burst it is what a second lets begin, at least one."""
        said = dict(param.split("=", 1) for param in params[1:])
        number, _, unit = said.get("rate", "0/s").partition("/")
        rate = int(number) / PERIODS[unit]
        burst = int(said.get("burst", max(1, int(rate))))
        per = tuple(name for name in said.get("per", "").split("+") if name)
        return cls(params[0], rate, burst, int(said.get("concurrent", 0)), per)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one request. A DENY carries no obligations; `reason` is one sentence for people; `redacting` are
    those of the `policies` that demand redaction."""

    outcome: Outcome
    decision_id: str
    epoch: int
    policies: tuple[str, ...]
    obligations: tuple[Obligation, ...]
    reason: str
    redacting: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.outcome is Outcome.ALLOW

    @property
    def redactions(self) -> tuple[str, ...]:
        """What the permit demands to strike out, as `Obligation.params`; empty for nearly all."""
        return tuple(param for duty in self.obligations if duty.name == "redact" for param in duty.params)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that the permit demands to keep; none for nearly all."""
        return tuple(Limit.of(duty.params) for duty in self.obligations if duty.name == "limit")

    @property
    def logged(self) -> bool:
        """Whether the permit demands a log line of each use."""
        return any(duty.name == "log" for duty in self.obligations)


class PolicyPort(Protocol):
    """What the shard loop and the API know of policies. `epoch` is that of the policies in force."""

    @property
    def epoch(self) -> int: ...

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision]:
        """One decision a request, in their order. Pure computation; never raises for what a request says."""
