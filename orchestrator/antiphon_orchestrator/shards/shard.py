"""The loop of a shard: inbox → decide and apply → one commit → release.

A turn takes what waits, within bounds, and works it out in memory: every event is applied as soon as it is decided, so
that the inputs of one turn see each other. The records of the turn go into one log segment. Only when that is
committed does anything leave: replies, verdicts, offers, cancels, events. Memory may therefore be ahead of the log,
but nobody can see it; reads are inputs too. When another owner has fenced this one off, the memory is dropped.

`take_turn` and `release` are plain functions of memory: the live loop here and the simulation drive the same code.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..engine import decide
from ..engine import events as e
from ..engine.decide import Verdict
from ..engine.escalation import fail_task
from ..engine.events import Placement
from ..engine.plan import HedgePlan
from ..engine.run import Run, Task, apply, start
from ..engine.states import AttemptState, ChildKind, RunState, TaskState
from ..placement.fleet import Fleet, Need, Refused, Waiter
from ..placement.limits import Full
from ..placement.shares import FairQueue
from . import agreeing, asking, codec
from . import inputs as i
from .aside import family, turned_aside
from .auditing import DIGESTED_AT_ONCE, ShardAudit, digest_ahead
from .beneath import Beneath
from .children import Children
from .judging import judge_output
from .looking import Looking
from .moving import Moving
from .needs import Needs
from .outstanding import Outstanding
from .presence import Presence
from .promising import Promises
from .reusing import reuse, worth_keeping
from .timers import Timers
from .turn import (
    FIRST_OF_BACKLOG,
    MAX_BYTES,
    MAX_INPUTS,
    MAX_TIMER_BYTES,
    MAX_WAITS,
    REQUEST_KEPT,
    REQUESTS_KEPT,
    SEGMENT_BYTES,
    Archiver,
    Entry,
    Gathered,
    Graphs,
    Outbox,
    Reader,
    Turn,
    forget_requests,
    found_attempt,
    most_inputs,
    principal_kind,
)

MAX_WORK = 0.010
"""Seconds of work in a turn, as MAX_BYTES of its records."""

_SETTLED = frozenset({e.TaskEnded, e.TaskEscalated, e.TaskQuarantined, e.TaskCompleted, e.TaskAgreed, e.ResultReused})
"""Events after which nothing of a task is due, or waited for, any more."""


class Shard:
    """One shard's memory and rules. `jitter` gives numbers from 0 to 1 for the spread of retries."""

    def __init__(
        self,
        index: int,
        fleet: Fleet,
        outbox: Outbox,
        archiver: Archiver,
        reader: Reader,
        graphs: Graphs,
        jitter: Callable[[], float],
        requests_kept: int = REQUESTS_KEPT,
    ) -> None:
        self.index = index
        self.requests_kept = requests_kept
        self.epoch = 0
        self.jitter = jitter
        self.inbox: deque[i.Input] = deque()
        self.backlog = FairQueue(fleet.weights)
        """New runs that have to wait: the inbox is for what comes of runs that are there."""
        self._owed = False
        self.runs: dict[str, Entry] = {}
        self.requests: dict[bytes, tuple[str, bytes]] = {}
        self.kept: dict[bytes, tuple[str, bytes, int]] = {}
        self.timers = Timers()
        self.timers_held = False
        self.pinned: dict[str, int] = {}
        self.retain: list[bytes] = []
        self.gathered: dict[str, Gathered] = {}
        self.promises = Promises()
        self.audit = ShardAudit(index)
        self._moving = Moving(self.audit, self.pinned)
        self._fleet = fleet
        self._outbox = outbox
        self._archiver = archiver
        self._reader = reader
        self.out = Outstanding()
        self._children = Children()
        self._beneath = Beneath(self, graphs)
        presence = Presence(self)
        self.aside: dict[str, str] = {}
        """Families of runs that stand still, by the id of the outermost, and why: one of them ends turns halfway."""
        self.turn: Turn | None = None
        self._unfinished: dict[str, None] = {}
        self._needs = Needs(fleet)
        self._to_place: deque[tuple[Entry, Task]] = deque()
        self._looking = Looking()
        self._handlers: dict[type[Any], Callable[[Turn, Any], None]] = {
            i.Submit: self._submit,
            i.Report: self._report,
            i.Started: self._started,
            i.Progress: lambda turn, item: asking.progress(self.runs, item),
            i.Call: self._beneath.call,
            i.Answered: self._beneath.answered,
            i.Opened: self._beneath.opened,
            i.Cancel: self._cancel,
            i.Steer: self._steer,
            i.Reserved: self._reserved,
            i.CalledUp: self._called_up,
            i.Inventory: presence.inventory,
            i.SidecarGone: presence.gone,
            i.Read: lambda turn, item: asking.read(self.runs, turn, item),
            i.Survey: lambda turn, item: asking.survey(self.runs, turn, item),
            i.Watch: lambda turn, item: asking.watch(self.runs, turn, item),
            i.Unwatch: lambda turn, item: asking.unwatch(self.runs, turn, item),
            i.Leave: lambda turn, item: asking.leave(self.runs, self.requests, self.backlog, turn, item),
            i.ContextFound: self._context_found,
            i.Archived: self._archived,
        }

    # The turn.

    def has_work(self, now: int) -> bool:
        left = self._unfinished or self._to_place or self._looking
        if self.inbox or left or self.backlog.size or self._moving.waiting:
            return True
        due = self.next_due()
        return due is not None and due <= now

    def next_due(self) -> int | None:
        return None if self.timers_held else self.timers.next_due()

    def take_turn(self, now: int, clock: Callable[[], float] = time.monotonic) -> Turn:
        """Works out what waits, within the bounds of a turn. `now`: microseconds since 1970."""
        turn = self.turn = Turn(now, clock, clock() + MAX_WORK / 2, MAX_BYTES // 2)
        if self._owed:
            self._owed = False
            self._handle(turn, self.inbox.popleft())
        elif self._moving.waiting:
            self._moving.go_on(turn, self.runs)
        self._go_on(turn)
        until = max(turn.until, clock()) + MAX_WORK / 2
        turn.until, turn.most = clock() + MAX_WORK / FIRST_OF_BACKLOG, turn.size + MAX_BYTES // FIRST_OF_BACKLOG
        taken = 0
        while self.backlog.size and taken < FIRST_OF_BACKLOG and not turn.full and (turn.has_room() or not taken):
            taken += 1
            self._handle(turn, self.backlog.pop())
        turn.until, turn.most, first = until, MAX_BYTES, taken
        inputs = most_inputs(max(self.out.count, len(self.inbox) + self.backlog.size))
        while self.inbox and taken < inputs and not turn.full and (turn.has_room() or taken == first):
            taken += 1
            self._handle(turn, self.inbox.popleft())
        while self.backlog.size and taken < inputs and not turn.full and turn.has_room():
            taken += 1
            self._handle(turn, self.backlog.pop())
        turn.inputs = taken
        turn.item = None
        # After the inbox: an outcome that waited in it was in time, however late this turn comes.
        if not self.timers_held:
            turn.until = clock() + MAX_WORK / 2
            for _ in range(MAX_INPUTS):
                if turn.size >= MAX_TIMER_BYTES or turn.late() or not (due := self.timers.pop_due(now, 1)):
                    break
                self._on_time(turn, *due[0])
        return turn

    def _handle(self, turn: Turn, item: i.Input) -> None:
        turn.item, turn.at = item, ""
        if not self.aside or not turned_aside(self, self._fleet, turn, item):
            self._handlers[type(item)](turn, item)

    def _put_back(self, turn: Turn, item: i.Input) -> None:
        """Leaves an input, or what is left of it, to the next turn, which it begins."""
        self.inbox.appendleft(item)
        turn.full = self._owed = True

    def _go_on(self, turn: Turn) -> None:
        """Takes up what the last turn left, in half of a turn, and one of each kind however slow it is."""
        while self._looking:
            if (found := self._looking.go_on(self.runs)) is not None:
                self._look_at(*found)
            if not turn.has_room():
                break
        while self._unfinished:
            run_id = next(iter(self._unfinished))
            del self._unfinished[run_id]
            if (entry := self.runs.get(run_id)) is not None:
                self._advance(turn, entry)
            if not turn.has_room():
                break
        while self._to_place:
            self._place(turn, *self._to_place.popleft())
            if not turn.has_room():
                break

    def _record(self, turn: Turn, entry: Entry, event: e.Event) -> None:
        run, held = entry.run, entry.run.paused is not None
        turn.at = run.run_id
        apply(run, event, turn.now)
        self._keep(turn, entry, codec.encode(run.run_id, run.event_seq, turn.now, event))
        kind = type(event)
        if kind is e.AttemptEnded:
            self._attempt_ended(turn, entry, event)  # type: ignore[arg-type]
        elif kind is e.TaskReady:
            self._to_place.append((entry, run.task(event.task, event.member)))  # type: ignore[union-attr]
        elif kind is e.TaskExpanded:
            node = run.tasks[event.task]  # type: ignore[union-attr]
            if event.first_member == 1:  # type: ignore[union-attr]
                self.promises.add(run, node)
            for member in node.members[event.first_member - 1 :]:  # type: ignore[union-attr]
                self._to_place.append((entry, member))
        elif kind is e.TaskWaiting:
            self._look_at(entry, (run.task(event.task, event.member),))  # type: ignore[union-attr]
        elif kind in _SETTLED:
            number = 0 if kind is e.TaskAgreed else event.member  # type: ignore[union-attr]
            self.timers.clear((run.run_id, event.task, number))  # type: ignore[union-attr]
            self._fleet.leave(run.run_id, event.task, number)  # type: ignore[union-attr]
            task = run.task(event.task, number)  # type: ignore[union-attr]
            if self._children:
                self.inbox.extend(self._children.ended(run, task))
            if kind is e.TaskEnded and number and task.children and task.plan.agree:
                self._to_place.extend((entry, other) for other in agreeing.left(self._fleet, run, task))
        elif kind is e.TaskReopened:
            task = run.task(event.task, event.member)  # type: ignore[union-attr]
            self._look_at(entry, self._looking.begin(run, task.plan.index) if task.members else (task,))
        elif kind is e.RunPaused or kind is e.RunResumed or (kind is e.CancelRequested and held):
            self._look_at(entry, self._looking.begin(run))
            if self._children:
                self.inbox.extend(self._children.held(run))
        elif kind is e.RunEnded:
            self.timers.clear((run.run_id, -1, 0))
            turn.ended.append(entry)
            self.audit.ended(turn, entry, event)  # type: ignore[arg-type]
            if run.submitted.child_kind is not ChildKind.NONE:
                self._beneath.ended(turn, run)

    def _look_at(self, entry: Entry, tasks: Iterable[Task]) -> None:
        """Timers and places of tasks that somebody made ready, or keeps from beginning, or that are new here."""
        for task in tasks:
            self._fleet.leave(entry.run.run_id, task.plan.index, task.member)
            self._set_timer(entry, task)
            if task.state is TaskState.READY:
                self._to_place.append((entry, task))

    def _keep(self, turn: Turn, entry: Entry, raw: bytes) -> None:
        if entry.mark < 0:
            entry.mark = len(entry.records)
            turn.touched.append(entry)
        entry.records.append(raw)
        turn.records.append(raw)
        turn.size += len(raw)

    def _attempt_ended(self, turn: Turn, entry: Entry, event: e.AttemptEnded) -> None:
        if event.stale:
            return
        run = entry.run
        task = run.task(event.task, event.member)
        attempt = task.attempts[event.number - 1]
        key = (run.run_id, event.task, event.member)
        self.out.remove(attempt.instance, task)
        worked = event.state in (AttemptState.SUCCEEDED, AttemptState.FAILED)
        latency = (turn.now - attempt.offer_time) / 1e6 if worked else None
        if self._fleet.limits.active:
            self._fleet.limits.free(run.submitted.namespace, attempt.placement)
        self._fleet.give_back(attempt.instance, latency, event.state is AttemptState.FAILED, event.failure)
        if self._children and event.state is AttemptState.SUCCEEDED:
            self.inbox.extend(self._children.ended(run, task))
        if event.member and task.plan.agree:
            self._to_place.extend((entry, other) for other in agreeing.ended(self._fleet, run, task, event, turn.now))
        if event.state is AttemptState.CANCELLED:
            reason = event.failure.message if event.failure else "cancelled"
            attempt_id = decide.attempt_id(run.run_id, task, event.number)
            turn.cancels.append((attempt.instance.split("/")[1], attempt_id, reason))
        elif event.state is AttemptState.RETURNED:
            self._to_place.append((entry, task))
        elif event.state is AttemptState.SUCCEEDED and task.plan.deadline is not None:
            self.timers.clear(key)

    def _set_timer(self, entry: Entry, task: Task) -> None:
        due = decide.next_due(entry.run, task)
        if task.plan.hedge is not None and not task.member:
            due = agreeing.due(self._fleet, entry.run, task, task.plan.hedge)
        key = (entry.run.run_id, task.plan.index, task.member)
        if due is None:
            self.timers.clear(key)
        else:
            self.timers.set(key, due)

    def _follow(self, turn: Turn, entry: Entry, events: Iterable[e.Event]) -> None:
        """Records events and everything that follows from them without further input."""
        for event in events:
            self._record(turn, entry, event)
        self._advance(turn, entry)

    def _advance(self, turn: Turn, entry: Entry) -> None:
        """At least one step."""
        room = turn.size < turn.most
        while room:
            turn.at = entry.run.run_id
            events = decide.advance(entry.run, turn.now)
            if events:
                first = events[0]
                if type(first) is not e.TaskReady or not self._place_at_once(turn, entry, first):
                    for event in events:
                        self._record(turn, entry, event)
            elif self._to_place and turn.waits < MAX_WAITS:
                self._place(turn, *self._to_place.popleft())
            else:
                if entry.run.plan.readers or entry.run.plan.output_reads:
                    self._read_context(turn, entry)
                return
            room = turn.has_room()
        self._unfinished[entry.run.run_id] = None

    def _read_context(self, turn: Turn, entry: Entry) -> None:
        """Has shared context read for tasks whose expressions refer to it; they go on when it is found."""
        reading = entry.reading = entry.reading or set()
        if fresh := [task for task in decide.readers(entry.run) if task not in reading]:
            reading.update(fresh)
            turn.reads.append((entry, fresh))

    def _place_at_once(self, turn: Turn, entry: Entry, ready: e.TaskReady) -> bool:
        """Records both steps of a task that finds its place as soon as it may run as one; False when it finds none."""
        run = entry.run
        task = run.tasks[ready.task]
        if task.plan.graph is not None or run.submitted.child_kind > ChildKind.CALL:
            return False
        need = self._needs.of(run.submitted.namespace, task.plan, ready.input)
        if task.plan.cache_ttl and self._reuse(turn, entry, task, need, ready.input):
            return True
        result = self._fleet.place(need, run.submitted.principal, entry.principal_kind, ready.input, 1)
        if not isinstance(result, Placement):
            return False
        offer = decide.offer(run, task, result, self.epoch)
        offer.input = ready.input
        self._offer(turn, entry, task, offer)
        return True

    def _place(self, turn: Turn, entry: Entry, task: Task, before: Waiter | None = None) -> None:
        run = entry.run
        turn.at = run.run_id
        if task.state is not TaskState.READY or not decide.may_begin(run, task):
            return
        if turn.size >= turn.most and before is None:  # who was called up would lose its place
            self._to_place.appendleft((entry, task))
            self._unfinished[run.run_id] = None
            return
        submitted = run.submitted
        special = task.plan.graph is not None or submitted.child_kind > ChildKind.CALL
        if special and self._beneath.takes(turn, entry, task):
            return
        need = self.need(run, task)
        if task.plan.cache_ttl and self._reuse(turn, entry, task, need, task.input):
            self._unfinished[entry.run.run_id] = None
            return
        number = len(task.attempts) + 1
        result = self._fleet.place(need, submitted.principal, entry.principal_kind, task.input, number, before)
        if result is None or isinstance(result, Full):
            turn.waits += 1
            self._wait(entry, task, need, result, before)
        elif isinstance(result, Refused):
            for event in fail_task(task, result.failure):
                self._record(turn, entry, event)
            self._unfinished[entry.run.run_id] = None
        else:
            self._offer(turn, entry, task, decide.offer(run, task, result, self.epoch))

    def _reuse(self, turn: Turn, entry: Entry, task: Task, need: Need, payload: bytes) -> bool:
        """Ends a task that may run with a result that is kept, if there is one."""
        event = reuse(self._fleet, turn, entry, task, need, payload)
        if event is not None:
            self._record(turn, entry, event)
        return event is not None

    def _hedge(self, turn: Turn, entry: Entry, node: Task, hedge: HedgePlan) -> None:
        """A second attempt of a hedge, if it is time and there may be one; else that is looked at again later."""
        due = agreeing.due(self._fleet, entry.run, node, hedge)
        if due is None or due > turn.now:
            self._set_timer(entry, node)
        elif (second := agreeing.second(self._fleet, self._needs, entry, node)) is not None:
            self._record(turn, entry, second[0])
            member = node.members[-1]
            self._offer(turn, entry, member, decide.offer(entry.run, member, second[1], self.epoch))
        else:
            self.timers.set((entry.run.run_id, node.plan.index, 0), turn.now + max(agreeing.AGAIN, hedge.delay))

    def _wait(self, entry: Entry, task: Task, need: Need, full: Full | None, before: Waiter | None) -> None:
        """For a slot, or for limits."""
        run = entry.run
        priority = min(9, task.plan.priority + run.submitted.priority)
        deadline = decide.task_deadline(run, task)
        key = (run.run_id, task.plan.index, task.member)
        self._fleet.wait(need, priority, deadline, self.index, *key, full, before)
        self._set_timer(entry, task)

    def _offer(self, turn: Turn, entry: Entry, task: Task, event: e.AttemptOffered) -> None:
        self._fleet.leave(entry.run.run_id, task.plan.index, task.member)  # looked at again, it waits for another slot
        self._record(turn, entry, event)
        self.out.add(event.placement.instance, entry, task)
        turn.offers.append((entry, task))
        if task.plan.deadline is not None:
            self._set_timer(entry, task)
        else:
            self.timers.clear((entry.run.run_id, task.plan.index, task.member))
        if task.plan.hedge is not None and task.member == 1:
            agreeing.began(self._fleet, entry.run, task, task.plan.hedge)
            self._set_timer(entry, entry.run.tasks[task.plan.index])

    def need(self, run: Run, task: Task) -> Need:
        """What the task asks of an agent."""
        return agreeing.need_of(self._needs, run, task, task.input)

    # Inputs.

    def _submit(self, turn: Turn, item: i.Submit) -> None:
        known = self.requests.get(item.key) or self.kept.get(item.key)
        if known is not None:
            asking.submitted_before(self.runs, turn, item, *known[:2])
            return
        event = item.event
        raw = codec.encode(item.run_id, 1, turn.now, event)
        if turn.records and turn.size + len(raw) > SEGMENT_BYTES:
            self._put_back(turn, item)
            return
        run = start(item.run_id, item.plan, event, turn.now)
        entry = Entry(run, item.key, [], 1, principal_kind(event.principal))
        self.runs[run.run_id] = entry
        self.requests[item.key] = (run.run_id, event.request_digest)
        self._children.add(run)
        self.timers.set((run.run_id, -1, 0), event.deadline_time)
        if item.wait:
            entry.waiters.append(item.sink)
        else:
            turn.replies.append((item.sink, lambda: run))
        self._keep(turn, entry, raw)
        self.audit.submitted(turn, entry)
        if event.child_kind > ChildKind.CALL:
            self._beneath.hold(turn, run)
        self._advance(turn, entry)

    def _report(self, turn: Turn, item: i.Report) -> None:
        found = found_attempt(self.runs, item.source, item.attempt_id)
        if found is None:
            verdict = Verdict.GONE
        else:
            entry, task, number = found
            outcome = item.outcome
            live = task.live
            if live is not None and live.number == number and outcome.state is AttemptState.SUCCEEDED:
                outcome = judge_output(self._fleet, entry.run, entry.principal_kind, task, outcome)
            verdict, events = decide.settle(entry.run, task, number, outcome, turn.now, self)
            if task.plan.cache_ttl and verdict == Verdict.ACCEPTED and outcome.state is AttemptState.SUCCEEDED:
                kept = worth_keeping(self._fleet, entry.run, task, task.attempts[number - 1], outcome, turn.now)
                if kept is not None:
                    turn.results[kept[0]] = kept[1]
            self._follow(turn, entry, events)
        turn.verdicts.append((item.reporter, item.attempt_id, verdict))

    def _started(self, turn: Turn, item: i.Started) -> None:
        if (found := found_attempt(self.runs, item.source, item.attempt_id)) is not None:
            entry, task, number = found
            self._follow(turn, entry, decide.started(entry.run, task, number))

    def _cancel(self, turn: Turn, item: i.Cancel) -> None:
        entry = self.runs.get(item.run_id)
        if entry is None:
            turn.replies.append((item.sink, lambda: None))
            return
        events = decide.cancel_run(entry.run, item.principal, item.reason)
        if events:
            self.audit.cancelled(turn, entry, item.principal, item.reason)
        self._follow(turn, entry, events)
        run = entry.run
        if run.state is RunState.RUNNING:
            entry.waiters.append(item.sink)
        else:
            turn.replies.append((item.sink, lambda: run))

    def _reserved(self, turn: Turn, item: i.Reserved) -> None:
        waiter, offered = item.waiter, item.offered
        entry = self.runs.get(waiter.run_id)
        task = entry.run.task(waiter.task, waiter.member) if entry is not None else None
        if entry is None or task is None or task.state is not TaskState.READY or not decide.may_begin(entry.run, task):
            self._fleet.give_back(offered.instance.instance_id)
            return
        run = entry.run
        need = self.need(run, task)
        if task.plan.cache_ttl and self._reuse(turn, entry, task, need, task.input):
            self._fleet.give_back(offered.instance.instance_id)
            self._advance(turn, entry)
            return
        number, submitted = len(task.attempts) + 1, run.submitted
        result = self._fleet.take(offered, need, submitted.principal, entry.principal_kind, task.input, number, waiter)
        if result is None or isinstance(result, Full):
            self._wait(entry, task, need, result, waiter)
        elif isinstance(result, Refused):
            self._follow(turn, entry, fail_task(task, result.failure))
        else:
            self._offer(turn, entry, task, decide.offer(run, task, result, self.epoch))

    def _called_up(self, turn: Turn, item: i.CalledUp) -> None:
        waiter = item.waiter
        entry = self.runs.get(waiter.run_id)
        if entry is not None:
            self._place(turn, entry, entry.run.task(waiter.task, waiter.member), waiter)
            self._advance(turn, entry)
        if item.counter is not None:
            self._fleet.limits.settle(item.counter, waiter)

    def live_ids(self, incarnation: str) -> frozenset[str]:
        """The attempts that are out to a sidecar whose stream begins now; its inventory will say which it holds."""
        before = self.out.ask(incarnation)
        if not before:
            self._heard(incarnation)
        return before

    def incarnations(self) -> set[str]:
        """Incarnations that attempts are out to."""
        return self.out.incarnations()

    def _heard(self, incarnation: str) -> None:
        if self.out.heard(incarnation):
            self.timers_held = False

    def _on_time(self, turn: Turn, run_id: str, index: int, member: int) -> None:
        entry, turn.at = self.runs.get(run_id), run_id
        if entry is None:
            return
        task = None if index < 0 else entry.run.task(index, member)
        if task is not None and task.plan.hedge is not None and not member:
            self._hedge(turn, entry, task, task.plan.hedge)
            return
        passed_over = ""
        if task is not None and task.plan.graph is None and decide.looks_in_vain(entry.run, task, turn.now):
            key = (run_id, index, member)
            passed_over = self._needs.passed_over(self.need(entry.run, task), key, turn.passed_over)
        events = decide.on_time(entry.run, task, turn.now, passed_over)
        if events:
            self._follow(turn, entry, events)
        elif task is not None and not task.ended and entry.run.state is RunState.RUNNING:
            self._set_timer(entry, task)

    def _steer(self, turn: Turn, item: i.Steer) -> None:
        entry = self.runs.get(item.run_id)
        if entry is None:
            turn.replies.append((item.sink, lambda: None))
            return
        run, steered = entry.run, item.wish(entry.run, turn.now)
        if steered.events:
            self.audit.steered(turn, entry, item)
        self._follow(turn, entry, steered.events)
        turn.replies.append((item.sink, lambda: steered.answer(run)))

    def _context_found(self, turn: Turn, item: i.ContextFound) -> None:
        entry = self.runs.get(item.run_id)
        while entry is not None and item.found:
            if turn.size >= MAX_BYTES:
                self._put_back(turn, item)
                return
            task, found = item.found.pop()
            (entry.reading or set()).discard(task)
            self._follow(turn, entry, decide.read(entry.run, task, found))

    def _archived(self, turn: Turn, item: i.Archived) -> None:
        left = dict(item.upto)
        for run_id, upto in item.upto.items():
            entry = self.runs.get(run_id)
            if entry is not None and entry.run.state is RunState.RUNNING:
                if not self._moving.move(turn, entry, upto):
                    self._put_back(turn, i.Archived(left))
                    return
            elif entry is not None and upto >= entry.run.event_seq:
                self.let_go(entry, turn.now)
            del left[run_id]

    def let_go(self, entry: Entry, now: int) -> None:
        """Takes an ended run that is archived out of memory."""
        del self.runs[entry.run.run_id]
        run_id, digest = self.requests.pop(entry.key)
        self.kept[entry.key] = (run_id, digest, now + REQUEST_KEPT)
        self.retain.append(entry.key)

    # After the commit.

    def release(self, turn: Turn, seq: int) -> None:
        """Lets out what the turn decided; `seq` is the segment that now holds it. Where that ends halfway, verdicts and
        answers that are out are not in the turn any more, and `turn.at` is the run."""
        self._moving.moved(turn)
        for entry in turn.touched:
            run_id = turn.at = entry.run.run_id
            if run_id not in self.pinned:
                self.pinned[run_id] = seq
            if entry.watchers:
                fresh = entry.records[entry.mark :]
                for watcher in entry.watchers:
                    watcher.records(fresh)
            entry.mark = -1
            if len(entry.records) >= entry.digested + DIGESTED_AT_ONCE:
                digest_ahead(entry)
        if turn.part_of:
            self._moving.committed(turn.part_of, seq)
        turn.verdicts.reverse()
        while turn.verdicts:
            reporter, attempt_id, verdict = turn.verdicts.pop()
            turn.at = attempt_id.partition("/")[0]
            reporter.verdict(attempt_id, verdict)
        for cancel in turn.cancels:
            turn.at = cancel[1].partition("/")[0]
            self._outbox.cancel(*cancel)
        for entry, task in turn.offers:
            turn.at = entry.run.run_id
            if (live := task.live) is not None:
                if self.out.asked:
                    attempt_id = decide.attempt_id(entry.run.run_id, task, live.number)
                    self.out.sent(live.instance.split("/")[1], attempt_id)
                self._outbox.offer(self.index, self.epoch, entry.run, task)
        for entry, tasks in turn.reads:
            turn.at = entry.run.run_id
            self._reader.read(self.index, entry.run, tasks)
        self._beneath.look_up(turn)
        for key, kept in turn.results.items():
            self._fleet.results.keep(key, kept)
        turn.at = ""
        turn.replies.reverse()
        while turn.replies:
            sink, answer = turn.replies.pop()
            asking.tell(sink, answer)
        for entry in turn.ended:
            turn.at = entry.run.run_id
            asking.ended(entry)
            self._archiver.put(self.index, entry.run, entry.key, entry.first_seq, entry.records)

    # Recovery; recovery.py rebuilds `runs` before.

    def resume(self) -> None:
        """After recovery: sets timers, counts slots, takes up what was READY, archives what had ended.

        Timers that are held are let go once every sidecar that has attempts was heard, or is gone.
        """
        turn = self.turn = Turn(0, time.monotonic, 0, 0)  # it decides nothing, and says at which run this ended halfway
        self.gathered.clear()
        for entry in list(self.runs.values()):
            run = entry.run
            turn.at = run.run_id
            if run.state is not RunState.RUNNING:
                self._archiver.put(self.index, run, entry.key, entry.first_seq, entry.records)
                continue
            if self.aside and (why := self.aside.get(family(run))) is not None:
                run.aside = why
                continue
            self.timers.set((run.run_id, -1, 0), run.submitted.deadline_time)
            self._unfinished[run.run_id] = None
            self._look_at(entry, self._looking.begin(run))
            for task in run.all_tasks():
                if task.members:
                    self.promises.add(run, task)
                if (live := task.live) is not None:
                    self.out.add(live.instance, entry, task)
                    self._fleet.hold(live.instance)
                    self._fleet.limits.hold(run.submitted.namespace, live.placement)
        self.inbox.extend(self._children.recover(turn, self.runs))
        if not self.out.taken():
            self.timers_held = False

    def stands_aside(self, run_id: str) -> bool:
        """Whether a run is here, and nothing of it goes on."""
        entry = self.runs.get(run_id) if self.aside else None
        return entry is not None and entry.run.aside != ""

    def settle_retained(self, keys: Iterable[bytes], now: int) -> None:
        """The request ids of these archived runs are durable elsewhere: the log may forget the runs."""
        forget_requests(self.kept, self.pinned, keys, self.requests_kept, now)

    def oldest_pinned(self) -> tuple[str, int] | None:
        """The run that holds the oldest segment, and that segment."""
        return next(iter(self.pinned.items()), None)
