"""A random player of the engine: everything that may happen to a run, in any order, with every invariant after each
event. It knows the rules from the contracts, not from the code: counters are recounted, states predicted."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from antiphon.store.v1 import journal_pb2
from antiphon.v1 import run_pb2
from antiphon_orchestrator.engine import agreement, beneath, decide, steer, waits
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.escalation import fail_task
from antiphon_orchestrator.engine.events import (
    AnswerCompared,
    AttemptEnded,
    ChildBegun,
    Event,
    Placement,
    ResultReused,
    Reused,
    SignalReceived,
    TaskEnded,
    TaskEscalated,
    TaskQuarantined,
    TaskReady,
    TaskReopened,
    TaskWaiting,
)
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import OnFailure, Plan
from antiphon_orchestrator.engine.run import FATAL, Run, Task, apply, start
from antiphon_orchestrator.engine.states import AttemptState, ChildKind, RunState, TaskState
from antiphon_orchestrator.shards import codec

from tests.fakes.plans import SECOND, FakeEvaluator, payload, submitted

DEATHS = ("AGENT_DIED", "SIDECAR_DIED", "SIDECAR_GONE")
ASKS = {TaskState.ESCALATED, TaskState.QUARANTINED}
ENDED = {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SKIPPED, TaskState.CANCELLED}
MOVES = (
    *("offer", "started", "outcome", "late", "wait", "jump", "cancel", "refuse", "signal", "steer"),
    *("reuse", "hedge", "below", "nothing"),
)
LIVE = {AttemptState.OFFERED, AttemptState.RUNNING}
START = 1_000 * SECOND


def state_of(run: Run) -> dict[str, Any]:
    """All of a run but its plan, and what recovery may change: the order of its frontier, how far it was looked at."""

    def names_of(kind: Any) -> tuple[str, ...]:
        # Compiled classes have no __slots__ at run time, but name their attributes all the same.
        names: tuple[str, ...] = getattr(kind, "__mypyc_attrs__", ()) or kind.__slots__
        return names

    def task_state(task: Task) -> dict[str, Any]:
        names = [name for name in names_of(Task) if name not in ("plan", "members")]
        return {name: getattr(task, name) for name in names} | {"members": [task_state(m) for m in task.members]}

    state = {
        name: getattr(run, name)
        for name in names_of(Run)
        if name not in ("plan", "view", "tasks", "frontier", "passed")
    }
    return state | {"tasks": [task_state(task) for task in run.tasks], "frontier": sorted(run.frontier)}


@dataclass
class Player:
    """One run being played with. `log` holds the records as bytes; `returns`: how readily offers come back;
    `steers`: how often somebody pauses, resumes, cancels a task or has one tried again; `losses`: how readily processes
    die; `answers`: the share of outcomes that are graphs; `cancels`: how often somebody asks for its end."""

    plan: Plan
    rng: random.Random
    returns: int = 1
    steers: float = 0
    losses: int = 1
    answers: float = 0
    cancels: float = 0.4
    run: Run = field(init=False)
    now: int = START
    log: list[bytes] = field(default_factory=list)
    finished: dict[tuple[int, int], tuple[object, ...]] = field(default_factory=dict)
    full: int = 0
    """How many more turns are full before this run comes to anything: another's expansion is under way, say."""

    def __post_init__(self) -> None:
        event = submitted(deadline_time=START + 3600 * SECOND)
        self.run = start("run", self.plan, event, self.now)
        self.log.append(codec.encode("run", 1, self.now, event))
        self.go_on()

    # The ports of the engine.

    def jitter(self) -> float:
        return self.rng.random()

    # Playing.

    def play(self, most: int = 400) -> None:
        """Random steps until the run has ended; then a few that must change nothing."""
        for _ in range(most):
            if self.run.state is not RunState.RUNNING:
                break
            self.step()
        else:
            self.finish()
        before = state_of(self.run)
        for task in list(self.run.all_tasks()):
            for number in range(1, len(task.attempts) + 1):
                verdict, events = decide.settle(self.run, task, number, self.outcome(), self.now, self)
                assert verdict in (decide.Verdict.DUPLICATE, decide.Verdict.STALE)
                assert events == []
        assert decide.advance(self.run, self.now) == []
        assert decide.cancel_run(self.run, "someone", "late") == []
        assert decide.on_time(self.run, None, self.now + 10**12) == []
        assert state_of(self.run) == before
        self.check_end()

    def step(self) -> None:
        run, rng = self.run, self.rng
        tasks = list(run.all_tasks())
        ready = [t for t in tasks if t.state is TaskState.READY and t.plan.graph is None]
        below = [t for t in tasks if t.sub_run or (t.state is TaskState.READY and t.plan.graph is not None)]
        live = [t for t in tasks if t.live is not None]
        tried = [t for t in tasks if t.attempts]
        signals = 4 if run.plan.signals else 0
        weights = [20, 6, 30, 8, 10, 1, self.cancels, 1, signals, self.steers, 3, 10, 20 if below else 0, 1]
        move = rng.choices(MOVES, weights)[0]
        self.now += rng.choice([0, rng.randrange(0, SECOND // 10)])
        if move == "offer" and ready:
            task = rng.choice(ready)
            decision = run_pb2.RoutingDecision(chosen="s/i/a").SerializeToString()
            self.record([decide.offer(run, task, Placement("a", "s/i/a", "text.work@1.0", decision, 1), 7)])
        elif move == "steer":
            wish = rng.choice(["pause", "resume", "resume", "retry", "retry", "end", "end all", "resolve", "resolve"])
            failed = [t for t in tasks if t.state is TaskState.FAILED or t.state in ASKS]
            self.steer(wish, rng.choice(failed if failed and wish in ("retry", "resolve") else tasks))
        elif move == "below":
            self.below(rng.choice(below), rng.random() < 0.7)
        elif move == "signal":
            self.signal(rng.choice(sorted(run.plan.signals)))
        elif move == "reuse" and (known := [t for t in ready if t.plan.cache_ttl]):
            self.record([self.reuse(rng.choice(known))])
        elif move == "hedge" and (alone := [t for t in run.tasks if t.plan.hedge and agreement.alone(run, t)]):
            self.record([agreement.second(rng.choice(alone))])
        elif move == "started" and live:
            task = rng.choice(live)
            self.record(decide.started(run, task, len(task.attempts)))
            assert task.live is not None and task.live.state is AttemptState.RUNNING
        elif move == "outcome" and live:
            task = rng.choice(live)
            if self.answers and rng.random() < self.answers:
                number, name = len(task.attempts), f"a{self.now}"
                begun = ChildBegun(task.plan.index, task.member, name, ChildKind.ANSWER, "x", number, "", 2, 7)
                self.record([begun])
                assert task.sub_run == name and task.attempts[-1].state is AttemptState.SUCCEEDED
            else:
                self.settle(task, len(task.attempts), decide.Verdict.ACCEPTED)
        elif move == "late" and tried:
            task = rng.choice(tried)
            number = rng.randrange(1, len(task.attempts) + 2)
            if number > len(task.attempts):
                self.settle(task, number, decide.Verdict.GONE)
            elif task.live is not task.attempts[number - 1]:
                self.settle(task, number, None)
        elif move == "wait":
            due = [d for t in tasks if (d := decide.next_due(run, t)) is not None]
            if due:
                self.now = max(self.now, min(due))
                self.tick()
        elif move == "jump":
            self.now += rng.randrange(0, 400 * SECOND)
            self.tick()
        elif move == "cancel":
            self.record(decide.cancel_run(run, "someone", "because"))
        elif move == "refuse" and ready:
            task = rng.choice(ready)
            failure = Failure(FailureKind.POLICY, "denied", retryable=False)
            self.record(fail_task(task, failure))
        self.go_on()

    def below(self, task: Task, well: bool) -> None:
        """A run beneath a task begins, or ends."""
        if task.state is TaskState.READY:
            self.record([ChildBegun(task.plan.index, task.member, f"g{self.now}", ChildKind.GRAPH, "x@1", 0, "", 3)])
            assert task.sub_run == f"g{self.now}"
            return
        child = start(task.sub_run, self.plan, submitted(), self.now)
        child.state = RunState.SUCCEEDED if well else RunState.FAILED
        child.output = payload("from below")
        child.failure = None if well else Failure(FailureKind.PERMANENT, "trouble below")
        self.record(beneath.outcome(self.run, task, child))
        assert task.state is not TaskState.RUNNING and not task.sub_run
        assert task.output == payload("from below") if well else task.failure is not None
        assert beneath.outcome(self.run, task, child) == []

    def reuse(self, task: Task) -> ResultReused:
        """The end of a READY task with a result of before, redacted now and then."""
        origin = Reused("other/t/0/1", self.now - 1, b"decision", b"policy")
        released = payload("less") if self.rng.random() < 0.3 else None
        return ResultReused(task.plan.index, task.member, payload("result"), origin, None, released)

    def steer(self, wish: str, task: Task) -> None:
        """What a person may ask for, and what it means for the task."""
        run = self.run
        if wish == "pause":
            self.record(steer.pause(run, "someone", "because"))
            assert run.paused is not None or steer.over(run)
        elif wish == "resume":
            self.record(steer.resume(run, "someone", "because"))
            assert run.paused is None
        elif wish == "retry":
            try:
                self.record(steer.retry_task(run, task, None, "someone", "because"))
            except steer.Conflict:
                assert task.state in ENDED or task.state in ASKS
        elif wish == "resolve":
            self.resolve(task)
        elif task.plan.compensates < 0:
            below = below_of(run, task) if wish == "end all" else set()
            self.record(steer.cancel_task(run, task, wish == "end all", "someone", "because"))
            if not steer.over(run) and self.rng.random() < 0.5:
                self.full = self.rng.randrange(8)
            elif not steer.over(run):
                self.go_on(whole=True)
                assert task.state in ENDED
                assert all(run.tasks[index].state in ENDED for index in below)

    def resolve(self, task: Task) -> None:
        """A person's answer, which only a task that waits for one takes."""
        output = payload("a person's") if self.rng.random() < 0.5 else None
        try:
            self.record(steer.resolve_task(self.run, task, output, "" if output else "no", "someone"))
        except steer.Conflict:
            fan_out = task.plan.fan_out and not task.member and not task.plan.most_iterations and not task.plan.agree
            assert task.state not in ASKS or (fan_out and output)
        else:
            assert task.state not in ASKS or steer.over(self.run, task)

    def finish(self) -> None:
        """Ends what is left without further trouble."""
        self.steer("resume", self.run.tasks[0])
        while self.run.state is RunState.RUNNING:
            for task in list(self.run.all_tasks()):
                if task.state in ASKS:
                    self.resolve(task)
                if task.sub_run or (task.state is TaskState.READY and task.plan.graph is not None):
                    self.below(task, True)
                elif task.state is TaskState.READY:
                    self.record([decide.offer(self.run, task, Placement("a", "s/i/a", "c@1", b"", 1), 7)])
                if task.live is not None:
                    _, events = decide.settle(
                        self.run, task, len(task.attempts), Outcome(AttemptState.SUCCEEDED), self.now, self
                    )
                    self.record(events)
            for name in sorted(self.run.plan.signals):
                self.signal(name)
            self.now += SECOND
            self.tick()
            self.go_on(whole=True)

    def signal(self, name: str) -> None:
        """Sends a signal; it ends the wait that began first, or is kept until one begins."""
        number = len(self.run.signals) + 1
        events = waits.receive(
            self.run, SignalReceived(name, payload(f"{name} {number}"), "someone", str(number), b"d")
        )
        waiting = [
            t for t in self.run.tasks if t.state is TaskState.WAITING and t.plan.wait and t.plan.wait.signal == name
        ]
        self.record(events)
        if events:
            first = min(waiting, key=lambda task: (task.ready_time, task.plan.index)) if waiting else None
            assert first is None or first.output == payload(f"{name} {number}")
            assert self.run.signals[-1].task == (-1 if first is None else first.plan.index)
            assert waits.known(self.run, "someone", str(number)) is self.run.signals[-1]

    def tick(self) -> None:
        for task in [None, *self.run.all_tasks()]:
            self.record(decide.on_time(self.run, task, self.now))

    def outcome(self) -> Outcome:
        state = self.rng.choice(
            [AttemptState.SUCCEEDED] * 5
            + [AttemptState.FAILED] * 4
            + [AttemptState.LOST] * self.losses
            + [AttemptState.RETURNED] * self.returns
        )
        if state is AttemptState.SUCCEEDED:
            policy = run_pb2.PolicyDecision(decision_id="d1", permit=True).SerializeToString()
            answer = payload(self.rng.choice(["result", "result", "another"]))
            return Outcome(state, answer, busy=self.rng.randrange(10**6), policy=policy)
        kind = FailureKind.LOST if state is AttemptState.LOST else self.rng.choice(list(FailureKind))
        codes = [*DEATHS, "E1"] if state is AttemptState.LOST else ["E1"]
        return Outcome(
            state, failure=Failure(kind, "trouble", self.rng.choice(codes), retryable=self.rng.random() < 0.8)
        )

    def settle(self, task: Task, number: int, expected: str | None) -> None:
        run = self.run
        outcome = self.outcome()
        known = task.attempts[number - 1] if number <= len(task.attempts) else None
        verdict, events = decide.settle(run, task, number, outcome, self.now, self)
        if expected is not None:
            assert verdict == expected
        else:
            assert verdict in (decide.Verdict.DUPLICATE, decide.Verdict.STALE)
            assert all(isinstance(event, AttemptEnded) and event.stale for event in events)
        if verdict == decide.Verdict.ACCEPTED:
            self.check_retry(task, outcome, events)
        self.record(events)
        if known is not None and verdict != decide.Verdict.ACCEPTED and outcome.state is not AttemptState.RETURNED:
            again, more = decide.settle(run, task, number, outcome, self.now, self)
            assert (again, more) == (decide.Verdict.DUPLICATE, []) or run.state is not RunState.RUNNING

    def record(self, events: list[Event]) -> None:
        for event in events:
            apply(self.run, event, self.now)
            if isinstance(event, TaskReopened):
                self.finished = {
                    (task.plan.index, task.member): summary(task)
                    for task in self.run.all_tasks()
                    if task.state in ENDED
                }
            if isinstance(event, AnswerCompared):
                member = self.run.task(event.task, event.member)
                assert member.answer == event.agrees_with <= len(self.run.tasks[event.task].members)
                self.finished[event.task, event.member] = summary(member)  # it may have a reason now
            raw = codec.encode(self.run.run_id, self.run.event_seq, self.now, event)
            assert codec.decode(journal_pb2.Record.FromString(raw)) == event
            self.log.append(raw)
            self.check(event)
        for task in self.run.all_tasks() if events else ():
            # Between the end of an attempt and what follows from it a task runs without one; never after a decision.
            assert (task.live is not None or task.sub_run != "") == (
                task.state is TaskState.RUNNING and task.member_count < 0
            )

    def go_on(self, whole: bool = False) -> None:
        """Advances to the end; now and then not quite, as a turn that is full leaves it."""
        if self.full and not whole:
            self.full -= 1
            return
        while whole or self.rng.random() < 0.95:
            events = decide.advance(self.run, self.now)
            if not events:
                break
            if self.run.paused is not None:
                assert all(isinstance(event, TaskEnded | AttemptEnded) for event in events), "only cancels go on"
            first = events[0]
            if isinstance(first, TaskReady) and self.rng.random() < 0.5:
                at_once = decide.offer(self.run, self.run.tasks[first.task], Placement("a", "s/i/a", "c@1", b"", 1), 7)
                at_once.input = first.input
                events = [at_once]
            elif isinstance(first, TaskReady) and first.member == 0 and self.run.tasks[first.task].plan.cache_ttl:
                reused = self.reuse(self.run.tasks[first.task])
                reused.input = first.input
                events = [reused]
            self.record(events)

    # What always holds.

    def check(self, event: Event) -> None:
        run = self.run
        assert run.event_seq == len(self.log)
        for node in run.tasks:
            ended = [run.tasks[i] for i in node.plan.needs if run.tasks[i].state in ENDED]
            assert node.needs_ended == len(ended)
            assert node.needs_done == sum(done(t) for t in ended)
            if (wait := node.plan.wait) is not None and node.state is TaskState.WAITING:
                assert not any(s.task < 0 and s.received.signal == wait.signal for s in run.signals) or isinstance(
                    event, TaskWaiting | SignalReceived
                )
            assert node.members_open == sum(m.state not in ENDED for m in node.members)
            if node.state in ENDED:
                assert not node.cancel_reason and all(m.state in ENDED for m in node.members)
        assert run.tasks_open == sum(t.state not in ENDED for t in run.tasks if t.plan.compensates < 0)
        assert run.asking == sum(t.state in ASKS for t in run.all_tasks())
        assert set(run.completed) == {t.plan.index for t in run.tasks if undone(t)}
        assert len(set(run.frontier)) == len(run.frontier)
        assert set(run.frontier) == {t.plan.index for t in run.tasks if actionable(run, t)}
        for task in run.all_tasks():
            assert [a.number for a in task.attempts] == list(range(1, len(task.attempts) + 1))
            live = [a for a in task.attempts if a.state in LIVE]
            assert len(live) <= 1
            assert not live or task.state is TaskState.RUNNING
            assert task.live is (live[0] if live else None)
            key = (task.plan.index, task.member)
            if key in self.finished:
                assert self.finished[key] == summary(task), "an ended task has changed"
            elif task.state in ENDED:
                self.finished[key] = summary(task)
        if run.state is not RunState.RUNNING:
            assert all(t.state in ENDED for t in run.all_tasks() if t.plan.compensates < 0)
            assert not isinstance(event, TaskEnded)
        self.check_undoing()

    def check_undoing(self) -> None:
        """Only a run that fails or is cancelled is undone: in reverse order, one task at a time, and wholly."""
        run = self.run
        undoing = [run.tasks[run.tasks[index].plan.compensation] for index in reversed(run.completed)]
        begun = [task for task in undoing if task.state is not TaskState.PENDING]
        assert begun == undoing[: len(begun)]
        assert all(task.state in ENDED for task in begun[:-1])
        assert len(begun) == sum(t.state is not TaskState.PENDING for t in run.tasks if t.plan.compensates >= 0)
        if begun:
            assert run.tasks_open == 0 and (run.cancel is not None or run.first_failure or run.unwinding)
        if run.state in (RunState.FAILED, RunState.CANCELLED):
            assert len(begun) == len(undoing) and all(task.state in ENDED for task in begun)
        elif run.state is RunState.SUCCEEDED:
            assert not begun

    def check_retry(self, task: Task, outcome: Outcome, events: list[Event]) -> None:
        ended = events[0]
        assert isinstance(ended, AttemptEnded)
        if ended.state is AttemptState.SUCCEEDED:
            assert len(events) == 1
        if ended.state is AttemptState.RETURNED:
            in_a_row = 1 + len([*takewhile(lambda a: a.state is AttemptState.RETURNED, task.attempts[-2::-1])])
            assert [type(event) for event in events[1:]] == ([TaskWaiting] if in_a_row > 3 else [])
        if ended.state not in (AttemptState.FAILED, AttemptState.LOST):
            return
        failure = ended.failure
        assert failure is not None
        rule = next((r for r in task.plan.retry if failure.kind in r.kinds), None)
        tries = sum(a.state is not AttemptState.RETURNED for a in task.attempts)
        deaths = [code for code in codes_of_deaths(task) if code]
        begun = sum(code != "SIDECAR_GONE" for code in deaths)
        losses = next((r.max_attempts for r in task.plan.retry if FailureKind.LOST in r.kinds), 1)
        suspected = begun >= 2 or (bool(deaths) and tries >= losses)
        doubtful = task.plan.at_most_once and failure.kind in (FailureKind.LOST, FailureKind.TIMEOUT)
        if not doubtful and suspected and failure.kind is FailureKind.LOST and failure.code in DEATHS:
            waited = failure.code == "SIDECAR_GONE"  # it is not known to have begun: another may have been its death
            if not waited or rule is None or tries >= 2 * rule.max_attempts:
                goes_on = task.plan.on_failure in (OnFailure.SKIP, OnFailure.CONTINUE)
                assert isinstance(events[1], TaskEnded if goes_on else TaskQuarantined), "it died alone"
                return
        else:
            waited = False
        again = rule is not None and failure.retryable and tries < rule.max_attempts * (1 + waited) and not doubtful
        again &= task.plan.hedge is None or task.member == 1
        if not again:
            escalates = task.plan.on_failure is OnFailure.ESCALATE and not task.plan.agree
            assert isinstance(events[1], TaskEscalated if escalates or doubtful else TaskEnded)
            return
        assert rule is not None
        wait = min(rule.max_backoff, rule.initial_backoff * rule.multiplier ** (tries - 1))
        limit = decide.task_deadline(self.run, task)
        if isinstance(events[1], TaskEnded | TaskEscalated):
            assert self.now + wait >= limit
        else:
            until = events[1].until  # type: ignore[union-attr]
            assert int(wait / 2) <= until - self.now <= wait
            assert until < limit

    def check_end(self) -> None:
        """The final states against a prediction from the plan alone."""
        run = self.run
        evaluator = self.plan.evaluator
        assert isinstance(evaluator, FakeEvaluator)
        for task in run.tasks:
            if task.plan.compensates >= 0:
                continue
            node = evaluator.nodes[task.plan.index]
            if task.state is TaskState.CANCELLED:
                assert run.cancel is not None or self.steers
                continue
            died = bool(task.attempts) and task.attempts[-1].state is AttemptState.LOST
            if (task.plan.on_failure is OnFailure.ESCALATE or died) and task.state is TaskState.SUCCEEDED:
                continue  # perhaps by a person's answer, whatever the plan says
            if sum(done(run.tasks[i]) for i in node.needs) < task.plan.join and run.cancel is None:
                assert task.state is TaskState.SKIPPED
            elif task.state is TaskState.SKIPPED:
                assert node.when is False or run.cancel is not None
            elif node.when is False:
                assert task.state is TaskState.FAILED and node.broken == "when"
            elif node.broken not in ("", "undo", "quorum") and (node.broken != "members" or (node.members or 0) > 100):
                assert task.state is TaskState.FAILED
            if task.state is TaskState.SUCCEEDED and task.plan.fan_out:
                if node.agree:
                    self.check_agreement(task)
                    continue
                loop = node.most_iterations > 0
                assert len(task.members) == (max(1, node.iterations) if loop else node.members)
                allowed = {TaskState.SUCCEEDED} | ({TaskState.CANCELLED} if self.steers else set())
                if task.plan.on_failure not in FATAL and not loop:
                    allowed.add(TaskState.FAILED)
                assert {m.state for m in task.members} <= allowed
        failed = [
            t
            for t in run.tasks
            if t.state is TaskState.FAILED and t.plan.on_failure in FATAL and t.plan.compensates < 0
        ]
        if run.cancel is not None:
            assert run.state is (RunState.CANCELLED if run.cancel.principal else RunState.FAILED)
        elif failed or evaluator.broken_output:
            assert run.state is RunState.FAILED and run.failure is not None
        else:
            assert run.state is RunState.SUCCEEDED and run.output == payload("output")

    def check_agreement(self, task: Task) -> None:
        """graph.proto, Quorum and Hedge: a task succeeds with an answer on which so many agree."""
        evaluator = self.plan.evaluator
        assert isinstance(evaluator, FakeEvaluator)
        answers = [m for m in task.members if m.state is TaskState.SUCCEEDED]
        chosen = task.members[task.answer - 1]
        assert chosen in answers and self.run.view(task).output(task.plan.index) == chosen.output
        assert len(task.members) <= task.plan.of
        if task.plan.hedge is None:
            assert evaluator.nodes[task.plan.index].broken != "quorum"
            same = [m for m in answers if m.output == chosen.output and m.answer]
            assert {m.answer for m in same} == {chosen.member} and len(same) >= task.plan.agree
            assert chosen.end_time == min(m.end_time for m in same), "the first of those that agree is used"

    def fold(self) -> Run:
        """The state that recovery makes of the log."""
        first = journal_pb2.Record.FromString(self.log[0])
        run = start(first.run_id, self.plan, codec.get_submitted(first.run_submitted), first.time)
        for raw in self.log[1:]:
            record = journal_pb2.Record.FromString(raw)
            apply(run, codec.decode(record), record.time)
        return run

    def moved(self) -> Run:
        """The state that a snapshot gives back."""
        message = journal_pb2.RunSnapshot.FromString(codec.snapshot(self.run).SerializeToString())
        run = start("run", self.plan, codec.get_submitted(message.submitted), message.create_time)
        codec.restore(run, message, self.run.event_seq)
        return run


def done(task: Task) -> bool:
    """graph.proto, Join: what counts as done."""
    if task.state is TaskState.FAILED:
        return task.plan.on_failure is OnFailure.CONTINUE
    return task.state is TaskState.SUCCEEDED


def undone(task: Task) -> bool:
    """Whether a task has to be undone if its run fails."""
    return task.state is TaskState.SUCCEEDED and task.plan.compensation >= 0


def codes_of_deaths(task: Task) -> list[str]:
    """What is said of the processes that died of a task's earlier attempts, or beside them; "" where none did."""
    failures = [attempt.failure for attempt in task.attempts[:-1] if attempt.state is AttemptState.LOST]
    return [failure.code if failure and failure.code in DEATHS else "" for failure in failures]


def below_of(run: Run, task: Task) -> set[int]:
    """All that needs a task, directly or not; of a member nothing."""
    below: set[int] = set()
    if not task.member:
        for node in run.tasks:
            if task.plan.index in node.plan.needs or below & set(node.plan.needs):
                below.add(node.plan.index)
    return below


def actionable(run: Run, task: Task) -> bool:
    """Whether a node can be taken a step further without anything from outside."""
    if task.cancel_reason:
        return True
    if task.plan.compensates >= 0 or task.state in ASKS:
        return False
    if task.state is TaskState.PENDING:
        ended = [run.tasks[i] for i in task.plan.needs if run.tasks[i].state in ENDED]
        met = sum(done(t) for t in ended)
        return met >= task.plan.join or met + len(task.plan.needs) - len(ended) < task.plan.join
    if not task.plan.fan_out or task.state in ENDED:
        return False
    unmade = len(task.members) < task.member_count
    if task.plan.agree:
        answers = [m for m in task.members if m.state is TaskState.SUCCEEDED]
        judged = max((sum(m.answer == other.member for m in answers) for other in answers), default=0)
        still = sum(m.state not in ENDED for m in task.members)
        over = judged >= task.plan.agree or judged + still < task.plan.agree
        return unmade or over or any(not m.answer for m in answers)
    return unmade or task.failure is not None or all(m.state in ENDED for m in task.members)


def summary(task: Task) -> tuple[object, ...]:
    """What may never change of a task that has ended."""
    return (task.state, task.output, task.failure, task.reason, task.end_time, len(task.attempts))
