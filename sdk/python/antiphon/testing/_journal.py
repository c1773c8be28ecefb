"""What an agent did, and what a test has planted in its way."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from antiphon._attempts import Observer
from antiphon._context import TaskContext, value_of
from antiphon._failures import TaskCancelled
from antiphon._handler import Answer
from antiphon.v1.payload_pb2 import Payload

from ._clock import Clock


@dataclass(slots=True)
class Attempted:
    """One attempt as the agent has seen it."""

    attempt_id: str
    capability: str
    """With its version: text.summarize@1."""
    idempotency_key: str
    number: int
    """Counted from 1 for each task."""
    payload: Payload
    """The input as it came."""
    state: Literal["RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "LOST"] = "RUNNING"
    """LOST: what became of it nobody could be told, because the agent or its sidecar was gone."""
    output: Any = None
    """JSON, or the `Payload`, or the graph as a message, that was answered."""
    failure: BaseException | None = None
    """What the handler raised, or what was planted."""

    @property
    def run_id(self) -> str:
        return self.attempt_id.split("/")[0]

    @property
    def task_id(self) -> str:
        return self.attempt_id.split("/")[1]

    @property
    def input(self) -> Any:
        """The input as plain JSON. Raises `ValueError` when it is something else: see `payload`."""
        return value_of(self.payload)


class Journal(Observer):
    """Of one instance, through all its lives."""

    def __init__(self, clock: Clock) -> None:
        self.attempts: list[Attempted] = []
        self._clock = clock
        self._running: dict[str, Attempted] = {}
        self._failures: dict[str, tuple[int, BaseException]] = {}
        self._delays: dict[str, timedelta] = {}
        self._gates: dict[str, asyncio.Event] = {}

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._running)

    def plant_failure(self, capability: str, attempts: int, failure: BaseException) -> None:
        """In place of the first so many attempts of every task."""
        self._failures[capability] = (attempts, failure)

    def plant_delay(self, capability: str, by: timedelta) -> None:
        """Before every attempt."""
        self._delays[capability] = by

    def close_gate(self, capability: str) -> None:
        """Before every attempt, until it is opened."""
        self._gates.setdefault(capability, asyncio.Event())

    def open_gate(self, capability: str) -> None:
        """Let go what waits, and hold nothing any more."""
        if (gate := self._gates.pop(capability, None)) is not None:
            gate.set()

    def lost(self) -> None:
        """Whoever worked on what runs is gone."""
        for attempted in self._running.values():
            attempted.state = "LOST"
        self._running.clear()

    async def begin(self, context: TaskContext) -> BaseException | None:
        """An attempt has come: what it is to end with in place of its handler's outcome, if anything."""
        attempted = Attempted(
            context.attempt_id, context.capability, context.idempotency_key, context.number, context.input
        )
        self.attempts.append(attempted)
        self._running[context.attempt_id] = attempted
        if (gate := self._gates.get(context.capability)) is not None:
            await gate.wait()
        if (delay := self._delays.get(context.capability)) is not None:
            await self._clock.sleep(delay)
        most, failure = self._failures.get(context.capability, (0, None))
        return failure if context.number <= most else None

    def end(self, attempt_id: str, outcome: Answer | BaseException) -> None:
        """An attempt has its outcome."""
        attempted = self._running.pop(attempt_id, None)
        if attempted is None:
            return  # of a life that was ended
        if isinstance(outcome, BaseException):
            attempted.state = "CANCELLED" if isinstance(outcome, TaskCancelled) else "FAILED"
            attempted.failure = outcome
        else:
            attempted.state = "SUCCEEDED"
            attempted.output = json.loads(outcome) if isinstance(outcome, bytes) else outcome
