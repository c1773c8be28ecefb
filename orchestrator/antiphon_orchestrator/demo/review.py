"""One run of the review, followed event by event, with two processes killed in the middle of it.

The killing happens inside the loop over the run's events: what the loop has seen is committed, so what had finished
then is known exactly. The loop itself is the watch: it goes on from its cursor when the orchestrator is back.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from antiphon import Client, load_graph
from antiphon.cli.connection import gather
from antiphon.cli.problems import FAILED, Problem
from antiphon.v1 import run_pb2 as pb
from antiphon.v1.run_service_pb2 import ExplainTaskResponse

from .mesh import Mesh
from .proof import Journal, Key, Proof, Work, prove, read_journal
from .screen import Screen

_VICTIM = "license.classify"
"""The capability whose agent is killed; the slowest, so that it has work in hand."""
_FRACTION = 0.4
"""Share of all tasks that have ended when the processes are killed."""
_DEADLINE = timedelta(minutes=5)
_ALL_READ, _SAMPLE = 1000, 100
"""Of how many plain tasks the attempts are all read, and of how many when there are more."""
_CAPABILITIES = {
    "list": "package.list",
    "read": "package.read",
    "classify": _VICTIM,
    "summarize": "text.summarize",
    "redact": "text.redact",
    "report": "report.write",
}
"""What each task of the graph asks for, as the journal names it."""
_FAN_OUTS = ("read", "classify", "summarize", "redact")
"""Those that have a member for each package; an agent works on the members alone."""


@dataclass(slots=True)
class Crash:
    """What was killed, and when it was back: seconds after it had died; None if that was not seen."""

    agent_pid: int
    orchestrator_pid: int
    new_orchestrator_pid: int = 0
    finished: frozenset[Key] = frozenset()
    journal: Counter[Work] = field(default_factory=Counter)
    cursor: int = 0
    orchestrator_back: float | None = None
    agent_back: float | None = None


@dataclass(frozen=True, slots=True)
class Review:
    """A run that has ended, and everything that is told of it. `tasks` come with payloads."""

    run: pb.Run
    tasks: Sequence[pb.Task]
    attempts: Mapping[Key, Sequence[pb.Attempt]]
    explained: ExplainTaskResponse
    crash: Crash | None
    proof: Proof | None
    events: int
    subjects: Sequence[str]
    """The package that each member of a fan-out is about, by its number; the first is empty."""
    every: int
    """`attempts` holds those of every so many tasks, and of all that were tried more than once."""


async def review(mesh: Mesh, client: Client, programs: Path, folder: Path, chaos: bool, screen: Screen) -> Review:
    """Submit, follow, and read what there is to tell. Raises `Problem` when the run does not succeed."""
    loaded = load_graph(programs / "graph.yaml")
    submitted = await client.submit(loaded.graph, {"folder": str(folder)}, deadline=_DEADLINE)
    follower = _Follower(mesh, chaos, screen)
    async for event in client.watch(submitted.run_id):
        await follower.take(event)
    if chaos and follower.crash is None:
        screen.say("the run was too short to kill anything in its middle", "!", "yellow")
    run = await client.get_run(submitted.run_id)
    if run.state != pb.RUN_STATE_SUCCEEDED:
        raise Problem(f"the review failed: {run.failure.message}", "see it with --keep", exit_code=FAILED)
    tasks = [task async for task in client.list_tasks(run.run_id, include_payloads=True, page_size=50)]
    keys, every = _worth_reading(tasks)
    lists = await gather([_attempts(client, run.run_id, key) for key in keys])
    attempts = dict(zip(keys, lists, strict=True))
    subjects = _subjects(tasks)
    told = max(keys, key=lambda key: (len(attempts[key]), key[0] == "classify", -key[1]))
    return Review(
        run=run,
        tasks=tasks,
        attempts=attempts,
        explained=await client.explain(run.run_id, *told),
        crash=follower.crash,
        proof=follower.proof(tasks, subjects) if follower.crash else None,
        events=follower.cursor,
        subjects=subjects,
        every=every,
    )


def _worth_reading(tasks: Sequence[pb.Task]) -> tuple[list[Key], int]:
    """The tasks to read the attempts of: all with a story, and of the others so many that a large run stays quick."""
    tried = [((task.key.task_id, task.key.member), task.attempt_count) for task in tasks if task.attempt_count]
    told = [key for key, count in tried if count > 1 or not key[1]]
    plain = [key for key, count in tried if count == 1 and key[1]]
    every = 1 if len(plain) <= _ALL_READ else len(plain) // _SAMPLE
    return told + plain[::every], every


async def _attempts(client: Client, run_id: str, key: Key) -> list[pb.Attempt]:
    return [attempt async for attempt in client.list_attempts(run_id, *key)]


class _Follower:
    """What the events say, and the crash in their middle."""

    def __init__(self, mesh: Mesh, chaos: bool, screen: Screen) -> None:
        self.crash: Crash | None = None
        self.cursor = 0
        self._mesh = mesh
        self._chaos = chaos
        self._screen = screen
        self._members: dict[str, int] = {}
        self._finished: set[Key] = set()
        self._in_hand: set[int] = set()
        """Members of `classify` that its agent has, so that killing it takes them away."""
        self._died = 0.0

    async def take(self, event: pb.RunEvent) -> None:
        """One event, in order. Raises `Problem` when one is missing or comes twice: that would be a broken promise."""
        if event.event_seq != self.cursor + 1:
            said = f"event {event.event_seq} came after event {self.cursor}"
            raise Problem(f"the watch has a gap or a repeat: {said}", exit_code=FAILED)
        self.cursor = event.event_seq
        if event.member_count:
            self._members[event.key.task_id] = event.member_count
        if event.task_state == pb.TASK_STATE_SUCCEEDED and (event.key.member or event.key.task_id not in _FAN_OUTS):
            self._finished.add((event.key.task_id, event.key.member))
        if event.key.task_id == "classify" and event.HasField("attempt"):
            live = event.attempt.state in (pb.ATTEMPT_STATE_OFFERED, pb.ATTEMPT_STATE_RUNNING)
            (self._in_hand.add if live else self._in_hand.discard)(event.key.member)
        total = self._total()
        self._screen.progress(len(self._finished), total)
        if self.crash is not None:
            self._look_for_life(event)
        elif self._chaos and total and len(self._finished) >= total * _FRACTION and self._in_hand:
            await self._strike()

    def proof(self, tasks: Sequence[pb.Task], subjects: Sequence[str]) -> Proof:
        """What may be claimed about the crash, now that the run has ended."""
        assert self.crash is not None
        works = {
            (task.key.task_id, task.key.member): (_CAPABILITIES[task.key.task_id], subjects[task.key.member])
            for task in tasks
            if task.key.member or not task.member_count
        }
        finished = self.crash.finished & works.keys()
        return prove(finished, works, self.crash.journal, self._journal().begun)

    async def _strike(self) -> None:
        """Kill the agent, then at once the orchestrator, so that nothing can be put right in between."""
        journal = self._journal()
        if _VICTIM not in journal.pids:
            return
        orchestrator = self._mesh.orchestrator
        self.crash = crash = Crash(journal.pids[_VICTIM], orchestrator.pid)
        crash.finished, crash.journal, crash.cursor = frozenset(self._finished), journal.begun, self.cursor
        os.kill(crash.agent_pid, signal.SIGKILL)
        await orchestrator.kill()
        self._died = time.monotonic()
        self._screen.struck(crash.agent_pid, crash.orchestrator_pid, len(crash.finished), self.cursor)
        await self._mesh.serve()
        crash.new_orchestrator_pid = self._mesh.orchestrator.pid
        crash.orchestrator_back = time.monotonic() - self._died
        self._screen.orchestrator_back(crash.new_orchestrator_pid, crash.orchestrator_back)

    def _look_for_life(self, event: pb.RunEvent) -> None:
        assert self.crash is not None
        if self.crash.agent_back is None and event.key.task_id == "classify":
            pid = self._journal().pids[_VICTIM]
            if pid != self.crash.agent_pid:
                self.crash.agent_back = time.monotonic() - self._died
                self._screen.agent_back(pid, self.crash.agent_back, self.cursor)

    def _total(self) -> int:
        """Number of all tasks that an agent works on, once every fan-out is known; 0 before."""
        counts = [self._members.get(task, 0) for task in _FAN_OUTS]
        return sum(counts) + len(_CAPABILITIES) - len(_FAN_OUTS) if all(counts) else 0

    def _journal(self) -> Journal:
        return read_journal(self._mesh.journal.read_text("utf-8"))


def _subjects(tasks: Sequence[pb.Task]) -> list[str]:
    """What each member of a fan-out works on: the package at its place in the list; "" for what does not fan out."""
    listed = next(task for task in tasks if task.key.task_id == "list")
    return ["", *json.loads(listed.output.inline)["packages"]]
