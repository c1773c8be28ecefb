"""Faults for the simulation to find: each takes one rule out of the real code, or breaks it.

Whoever changes the simulation proves with them that it still sees. A fault is found when a world ends with a violation.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from antiphon_orchestrator.engine import agreement, beneath, compensation, decide, loops, quarantine, steer, waits
from antiphon_orchestrator.engine import events as e
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run, Task
from antiphon_orchestrator.engine.states import TASK_ASKS, ChildKind, RunState, TaskState
from antiphon_orchestrator.mesh import partials
from antiphon_orchestrator.placement.limits import Limits
from antiphon_orchestrator.placement.results import Results
from antiphon_orchestrator.revocations import Revocations
from antiphon_orchestrator.shards import asking, log, recovery, reusing
from antiphon_orchestrator.shards import beneath as shards_beneath
from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.beneath import Beneath
from antiphon_orchestrator.shards.host import Host
from antiphon_orchestrator.shards.log import ShardLog
from antiphon_orchestrator.shards.shard import Shard
from antiphon_orchestrator.shards.turn import request_key
from antiphon_orchestrator.store import CommitResult, Compare, Put, Store, StoreUnavailable, Target, Txn, keys
from antiphon_sidecar.inflight import Inflight
from antiphon_sidecar.spool import Spool

_settle = log.settle


def _without(dropped: Callable[[Compare], bool]) -> Any:
    """`settle` of transactions that lack some of their compares."""

    async def settle(store: Store, txn: Txn, **options: Any) -> CommitResult:
        compares = tuple(compare for compare in txn.compares if not dropped(compare))
        return await _settle(store, replace(txn, compares=compares), **options)

    return patch.object(log, "settle", settle)


def no_epoch_compare() -> Any:
    """Appends do not ask who owns the shard."""
    return _without(lambda compare: compare.target is Target.VALUE)


def takeover_before_the_lease_ended() -> Any:
    """A shard is taken although its owner's marker is there."""
    return _without(lambda compare: compare.key.startswith(keys.REPLICAS))


def no_nonce() -> Any:
    """A segment that is there is taken for one's own, whoever wrote it."""

    async def settle(store: Store, txn: Txn, **options: Any) -> CommitResult:
        result = await _settle(store, txn, **options)
        put = txn.ops[0]
        if not result.succeeded and isinstance(put, Put) and put.key.startswith(keys.LOG):
            return replace(result, succeeded=result.observed[put.key] is not None)
        return result

    return patch.object(log, "settle", settle)


def unclear_counts_as_committed() -> Any:
    """A commit without an answer is not sent again."""

    async def settle(store: Store, txn: Txn, **options: Any) -> CommitResult:
        try:
            return await store.commit(txn)
        except StoreUnavailable:
            return CommitResult(True, 0, {})

    return patch.object(log, "settle", settle)


@contextmanager
def acts_before_the_commit() -> Iterator[None]:
    """A turn is released while its segment is on its way."""
    append = ShardLog.append
    last: dict[ShardLog, asyncio.Task[Any]] = {}

    async def after(before: asyncio.Task[Any] | None, log_: ShardLog, *arguments: Any) -> None:
        if before is not None:
            await before
        await append(log_, *arguments)

    async def at_once(log_: ShardLog, *arguments: Any) -> int:
        before = last.get(log_)
        if before is not None and before.done():
            before.result()
        last[log_] = asyncio.create_task(after(before, log_, *arguments))
        return log_.next_seq

    with patch.object(ShardLog, "append", at_once):
        yield


def not_told() -> Any:
    """Nobody tells a replica that a shard is another's; only its next write would."""
    return patch.object(Host, "told", lambda host, number, epoch: None)


@contextmanager
def sidecar_ignores_epochs() -> Iterator[None]:
    """Offers of any owner are taken."""
    offer = Inflight.offer

    def any_epoch(
        inflight: Inflight, link: Any, seat: str, attempt_id: str, shard: int, epoch: int, *arguments: Any
    ) -> None:
        claim = inflight._claims.get(shard)
        newest = epoch if claim is None else max(epoch, claim.epoch)
        offer(inflight, link, seat, attempt_id, shard, newest, *arguments)

    with patch.object(Inflight, "offer", any_epoch):
        yield


@contextmanager
def adopted_attempts_run_again() -> Iterator[None]:
    """A new owner gives up what runs instead of asking for it."""
    resume = Shard.resume

    def gives_up(shard: Shard) -> None:
        resume(shard)
        shard.inbox.extend(i.SidecarGone(incarnation) for incarnation in sorted(shard.incarnations()))

    with patch.object(Shard, "resume", gives_up):
        yield


@contextmanager
def requests_forgotten() -> Iterator[None]:
    """A new owner does not know which requests were accepted."""
    remember = recovery._remember

    def forgets(shard: Shard, entry: Any, seq: int) -> None:
        remember(shard, entry, seq)
        del shard.requests[entry.key]
        shard.requests[b"\0" + entry.key] = (entry.run.run_id, b"")
        entry.key = b"\0" + entry.key

    with patch.object(recovery, "_remember", forgets):
        yield


@contextmanager
def trims_too_far() -> Iterator[None]:
    """The segment that is still needed goes as well."""
    trim = ShardLog.trim

    async def further(log_: ShardLog, below: int) -> None:
        await trim(log_, below + 1)

    with patch.object(ShardLog, "trim", further):
        yield


@contextmanager
def watch_skips() -> Iterator[None]:
    """A watcher that comes back misses an event."""
    watch = asking.watch

    def skips(runs: Any, turn: Any, item: i.Watch) -> None:
        watch(runs, turn, i.Watch(item.run_id, item.cursor + bool(item.cursor), item.watcher, item.sink))

    with patch.object(asking, "watch", skips):
        yield


# What graphs know: each shows itself in the graph that `ONLY` names.


def held_runs_go_on() -> Any:
    """A run that somebody holds has attempts as ever."""
    return patch.object(decide, "may_begin", lambda run, task: run.state is RunState.RUNNING)


def held_runs_go_on_at_takeover() -> Any:
    """A new owner does not know that a run is held."""
    resume = Shard.resume

    def forgets(shard: Shard) -> None:
        for entry in shard.runs.values():
            entry.run.paused = None
        resume(shard)

    return patch.object(Shard, "resume", forgets)


def signals_counted_again() -> Any:
    """The same signal, sent again, ends another wait."""
    return patch.object(waits, "known", lambda run, principal, request_id: None)


def loops_end_early() -> Any:
    """A loop is done when its first iteration is."""
    return patch.object(loops, "go_on", lambda run, node: [e.TaskEnded(node.plan.index, 0, TaskState.SUCCEEDED)])


def undone_from_the_first_on() -> Any:
    """What was done first is undone first."""
    go_on = compensation.go_on

    def forwards(run: Run) -> list[e.Event] | None:
        run.completed.reverse()
        try:
            return go_on(run)
        finally:
            run.completed.reverse()

    return patch.object(compensation, "go_on", forwards)


def nothing_is_undone() -> Any:
    """A run that fails leaves what it did."""
    return patch.object(compensation, "go_on", lambda run: None)


@contextmanager
def doubts_are_tried_again() -> Iterator[None]:
    """What may have been done is done again, although it is to be at most once."""
    with (
        patch.object(decide, "DOUBTFUL", frozenset()),
        patch.object(decide, "_rule_for", lambda task, failure: next(iter(task.plan.retry), None)),
    ):
        yield


def one_answer_is_a_quorum() -> Any:
    """The first answer is used, whatever the others say."""
    go_on = agreement.go_on

    def first(run: Run, node: Task) -> list[e.Event]:
        answers = [member.member for member in node.members if member.state is TaskState.SUCCEEDED]
        return [e.TaskAgreed(node.plan.index, answers[0])] if answers else go_on(run, node)

    return patch.object(agreement, "go_on", first)


def members_share_an_instance() -> Any:
    """Members of a quorum or hedge go wherever there is room."""
    return patch.object(agreement, "taken", lambda node, member: frozenset())


def losers_go_on() -> Any:
    """Whoever is slower is not told to stop."""
    return patch.object(decide, "_with_rest_cancelled", lambda run, node, events: events)


def results_of_other_inputs() -> Any:
    """A result is kept under the name of its capability alone."""
    return patch.object(reusing, "key_of", lambda namespace, offered, schema, given: offered.label.encode())


def results_for_ever() -> Any:
    """A result is used again however old it is."""
    get = Results.get
    return patch.object(Results, "get", lambda results, key, now, ttl: get(results, key, 0, 1 << 62))


def poison_is_tried_for_ever() -> Any:
    """Nobody is suspected."""
    return patch.object(quarantine, "alone", lambda task, number: False)


@contextmanager
def quarantine_ends_at_takeover() -> Iterator[None]:
    """A new owner takes up what waits for a person."""
    resume = Shard.resume

    def takes_up(shard: Shard) -> None:
        resume(shard)
        for run_id, entry in shard.runs.items():
            for task in entry.run.all_tasks():
                if task.state in TASK_ASKS:
                    shard.inbox.append(_retried(run_id, task))

    with patch.object(Shard, "resume", takes_up):
        yield


def _retried(run_id: str, task: Task) -> i.Steer:
    def wish(run: Run, now: int) -> i.Steered:
        return i.Steered(steer.retry_task(run, task, None, "nobody", ""), lambda run: None)

    return i.Steer(run_id, "nobody", "retry", "", {}, wish, lambda answer: None)


@contextmanager
def children_begin_later() -> Iterator[None]:
    """A run beneath a task begins in another commit than that which tells its parent so."""

    def later(
        beneath: Beneath, turn: Any, entry: Any, task: Task, kind: ChildKind, run_id: str, plan: Plan,
        event: e.RunSubmitted, name: str, number: int = 0, busy: int = 0,
    ) -> None:  # fmt: skip
        shard = beneath._shard
        shard._record(turn, entry, beneath._begun(task, kind, run_id, plan, name, number, busy=busy))
        submit = i.Submit(run_id, plan, event, request_key(event), False, lambda answer: None)
        asyncio.get_running_loop().call_later(0.3, lambda: shard.inbox.append(submit))

    with patch.object(Beneath, "_begin", later):
        yield


def outputs_of_children_change() -> Any:
    """A task is given something else than its sub-run answered."""
    outcome = beneath.outcome

    def other(run: Run, task: Task, child: Run) -> list[e.Event]:
        events = outcome(run, task, child)
        for event in events:
            if isinstance(event, e.TaskCompleted):
                event.output = child.submitted.input
        return events

    return patch.object(beneath, "outcome", other)


def calls_begin_anew() -> Any:
    """The same call of another attempt is another run."""
    made = itertools.count()
    return patch.object(shards_beneath, "request_key", lambda event: b"%d" % next(made) + request_key(event))


def limits_forget_at_takeover() -> Any:
    """A new owner does not count what is out."""
    return patch.object(Limits, "hold", lambda limits, namespace, placement: None)


def limits_are_not_divided() -> Any:
    """Each replica enforces the whole of a limit."""
    return patch.object(Limits, "divide", lambda limits, replicas, rank: None)


def spools_are_not_read() -> Any:
    """What a former life of a sidecar has left is left."""

    def nothing(spool: Spool) -> Iterator[Any]:
        spool._folder.mkdir(exist_ok=True)
        return iter(())

    return patch.object(Spool, "former", nothing)


def spools_are_dropped() -> Any:
    """It is read, and nobody is told."""
    return patch.object(Inflight, "found", lambda inflight, *arguments: None)


def revocations_are_not_followed() -> Any:
    """What another replica revokes stays unknown."""
    return patch.object(Revocations, "_take", lambda revocations, kind, kv: None)


def revocations_are_not_read() -> Any:
    """What was revoked before a replica began stays unknown to it."""
    load = Revocations.load

    async def forgetful(revocations: Revocations) -> None:
        await load(revocations)
        revocations._known = {}

    return patch.object(Revocations, "load", forgetful)


def pieces_lose_their_place() -> Any:
    """Watchers are not told where in an output a piece belongs."""
    shown = partials.shown

    def misplaced(*arguments: Any) -> Any:
        piece = shown(*arguments)
        piece.offset = 0
        return piece

    return patch.object(partials, "shown", misplaced)


FIRST: Mapping[str, int] = MappingProxyType(
    {
        "adopted_attempts_run_again": 85,
        "no_nonce": 480,
        "not_told": 400,
        "quarantine_ends_at_takeover": 240,
        "sidecar_ignores_epochs": 380,
        "trims_too_far": 20,
    }
)
"""Seeds at which to begin to look for what shows itself seldom."""

ONLY: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "held_runs_go_on": ("fan",),
        "held_runs_go_on_at_takeover": ("fan",),
        "signals_counted_again": ("wait",),
        "loops_end_early": ("loop",),
        "undone_from_the_first_on": ("undo",),
        "nothing_is_undone": ("undo",),
        "doubts_are_tried_again": ("once",),
        "one_answer_is_a_quorum": ("quorum",),
        "members_share_an_instance": ("quorum",),
        "losers_go_on": ("hedge",),
        "results_of_other_inputs": ("reuse",),
        "results_for_ever": ("reuse",),
        "poison_is_tried_for_ever": ("poison",),
        "quarantine_ends_at_takeover": ("poison",),
        "children_begin_later": ("beneath",),
        "outputs_of_children_change": ("beneath",),
        "calls_begin_anew": ("ask",),
        "limits_forget_at_takeover": ("scarce",),
        "limits_are_not_divided": ("scarce",),
        "pieces_lose_their_place": ("wide",),
        "spools_are_not_read": ("fan",),
        "spools_are_dropped": ("fan",),
    }
)
"""The graphs that are run to find a fault; those of the others are PLAIN."""
PLAIN = ("single", "chain", "diamond", "fan", "wide")

FAULTS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        fault.__name__: fault
        for fault in (
            no_epoch_compare,
            takeover_before_the_lease_ended,
            no_nonce,
            unclear_counts_as_committed,
            acts_before_the_commit,
            not_told,
            sidecar_ignores_epochs,
            adopted_attempts_run_again,
            requests_forgotten,
            trims_too_far,
            watch_skips,
            held_runs_go_on,
            held_runs_go_on_at_takeover,
            signals_counted_again,
            loops_end_early,
            undone_from_the_first_on,
            nothing_is_undone,
            doubts_are_tried_again,
            one_answer_is_a_quorum,
            members_share_an_instance,
            losers_go_on,
            results_of_other_inputs,
            results_for_ever,
            poison_is_tried_for_ever,
            quarantine_ends_at_takeover,
            children_begin_later,
            outputs_of_children_change,
            calls_begin_anew,
            limits_forget_at_takeover,
            limits_are_not_divided,
            spools_are_not_read,
            spools_are_dropped,
            revocations_are_not_followed,
            revocations_are_not_read,
            pieces_lose_their_place,
        )
    }
)
