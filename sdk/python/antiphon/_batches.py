"""Tasks gathered for functions that handle several at once.

A batch begins when it is full, when its first task has waited `max_wait`, or when a task in it has waited for half of
the time it has: none may miss its deadline by waiting for others. Each task has an outcome of its own. A cancelled one
has it at once, whatever becomes of the rest; the function's work ends when nobody is left that wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ._context import TaskContext
from ._failures import InvalidOutput, TaskFailure
from ._handler import Answer, Handler

Outcome = Answer | BaseException


class Crew(Protocol):
    """What batches need of the attempts they are made of."""

    inline_limit: int

    def settle(self, attempt_id: str, outcome: Outcome) -> None:
        """An attempt of a batch has its outcome."""
        ...

    def in_thread(self, work: Callable[[], None]) -> Future[None]:
        """Run something in a thread."""
        ...


class Batch:
    """Tasks of one capability, first gathered, then worked on."""

    def __init__(self) -> None:
        self.members: dict[str, tuple[TaskContext, Any]] = {}
        self.begun = False
        self.due = float("inf")
        self.timer: asyncio.TimerHandle | None = None
        self.work: asyncio.Task[None] | Future[None] | None = None

    def leave(self, attempt_id: str) -> None:
        """One that is cancelled. A batch without members does not begin, or ends."""
        del self.members[attempt_id]
        if self.members:
            return
        if self.timer is not None:
            self.timer.cancel()
        if self.work is not None:
            self.work.cancel()


class Batches:
    """All batches of a worker. Everything happens on the event loop, but for the functions that are plain."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._loop = asyncio.get_running_loop()
        self._gathering: dict[int, tuple[Handler, Batch]] = {}
        self._at_work: set[asyncio.Task[None]] = set()

    def add(self, attempt_id: str, context: TaskContext, handler: Handler) -> Batch:
        """Take an attempt into the batch that is gathered. Raises `InvalidInput`: such a one is nobody's company."""
        argument = handler.argument(context)
        rule = handler.batching
        assert rule is not None
        _, batch = self._gathering.get(id(handler), (handler, None))
        if batch is None or not batch.members:
            batch = Batch()
            self._gathering[id(handler)] = (handler, batch)
        batch.members[attempt_id] = (context, argument)
        if len(batch.members) >= rule.size:
            self._begin(handler, batch)
            return batch
        left = context.remaining()
        wait = rule.wait if left is None else min(rule.wait, left.total_seconds() / 2)
        if self._loop.time() + wait < batch.due:
            if batch.timer is not None:
                batch.timer.cancel()
            batch.due = self._loop.time() + wait
            batch.timer = self._loop.call_later(wait, self._begin, handler, batch)
        return batch

    def flush(self) -> None:
        """Begin what is gathered: nothing more will come."""
        for handler, batch in list(self._gathering.values()):
            if batch.members:
                self._begin(handler, batch)

    def stop(self) -> list[asyncio.Task[None]]:
        """Cancel everything; what is to be waited for."""
        for _, batch in self._gathering.values():
            if batch.timer is not None:
                batch.timer.cancel()
        for task in self._at_work:
            task.cancel()
        return list(self._at_work)

    def _begin(self, handler: Handler, batch: Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        del self._gathering[id(handler)]
        batch.begun = True
        members = list(batch.members.items())
        if handler.plain:
            batch.work = self._crew.in_thread(lambda: self._run_plain(handler, batch, members))
        else:
            batch.work = task = self._loop.create_task(self._run(handler, batch, members))
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)

    async def _run(self, handler: Handler, batch: Batch, members: Sequence[_Member]) -> None:
        try:
            results: list[Any] | BaseException = await _called(handler, members)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # whatever a handler raises is an outcome, and ends nothing else
            results = error
        self._settle(batch, _outcomes(handler, results, members, self._crew.inline_limit))

    def _run_plain(self, handler: Handler, batch: Batch, members: Sequence[_Member]) -> None:
        try:
            results: list[Any] | BaseException = _called(handler, members)
        except BaseException as error:
            results = error
        outcomes = _outcomes(handler, results, members, self._crew.inline_limit)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, batch, outcomes)

    def _settle(self, batch: Batch, outcomes: dict[str, Outcome]) -> None:
        for attempt_id, outcome in outcomes.items():
            if attempt_id in batch.members:
                self._crew.settle(attempt_id, outcome)


_Member = tuple[str, tuple[TaskContext, Any]]


def _called(handler: Handler, members: Sequence[_Member]) -> Any:
    return handler.call_with([argument for _, (_, argument) in members], [context for _, (context, _) in members])


def _outcomes(handler: Handler, results: Any, members: Sequence[_Member], limit: int) -> dict[str, Outcome]:
    """An outcome for each member, from what the function answered or raised."""
    if isinstance(results, BaseException):
        return {attempt_id: results for attempt_id, _ in members}
    if not isinstance(results, list | tuple) or len(results) != len(members):
        got = f"{len(results)} outcomes" if isinstance(results, list | tuple) else f"a {type(results).__name__}"
        wrong = InvalidOutput(f"{len(members)} tasks were handed over and {got} came back; answer a list, one for each")
        return {attempt_id: wrong for attempt_id, _ in members}
    return {
        attempt_id: _outcome(handler, result, limit) for (attempt_id, _), result in zip(members, results, strict=True)
    }


def _outcome(handler: Handler, result: Any, limit: int) -> Outcome:
    if isinstance(result, TaskFailure):
        return result
    try:
        return handler.output(result, limit)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the encoder, or a property of what is encoded: this one's outcome alone
        return error
