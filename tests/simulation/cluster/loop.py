"""An event loop in which time passes only when nothing else is left to do, and processes that can be killed or stopped.

Every callback belongs to the process whose context it carries. Those of a process that was killed never run again:
no `finally`, no last word, as with SIGKILL. Those of one that is stopped wait, timers too, and run in their order when
it goes on, as after SIGSTOP and SIGCONT. Callbacks without a process are the world outside: networks and disks.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import inspect
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
NOBODY = contextvars.Context()
"""Where callbacks of the world outside run."""


class Process:
    """One process on a host. `clock_offset`: seconds that its wall clock is wrong by."""

    def __init__(self, loop: SimulatedLoop, name: str, host: str) -> None:
        self.loop = loop
        self.name = name
        self.host = host
        self.alive = True
        self.stopped = False
        self.clock_offset = 0.0
        self._context = contextvars.Context()
        self._context.run(PROCESS.set, self)
        self._parked: deque[asyncio.Handle] = deque()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this process, begun from outside."""
        return self.loop.create_task(work, context=self._context.copy())

    def call(self, callback: Callable[[], object]) -> None:
        """Has the process do something, as soon as it runs."""
        self.loop.call_soon(callback, context=self._context)

    def park(self, handle: asyncio.Handle) -> None:
        """It is stopped: this has to wait."""
        self._parked.append(handle)

    def stop(self) -> None:
        self.stopped = True

    def go_on(self) -> None:
        self.stopped = False
        self.loop.again(self._parked)

    def kill(self) -> None:
        """Nothing of it happens any more."""
        self.alive = False
        self._parked.clear()


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Use: `with loop:`, then `advance`. `failures` are exceptions that nobody caught."""

    def __init__(self) -> None:
        self.now = 0.0
        self.failures: list[BaseException] = []
        self.steps = 0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        # Strong references: a task of a killed process must not be collected, which would run what it cleans up with.
        self._tasks: list[asyncio.Task[Any]] = []

    def __enter__(self) -> SimulatedLoop:
        asyncio._set_running_loop(self)
        self._hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of what is unfinished."""
        asyncio._set_running_loop(None)
        sys.set_asyncgen_hooks(*self._hooks)
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            work = task.get_coro()
            if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()
        self._ready.clear()
        self._timers.clear()
        self._tasks.clear()

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        self.create_task(generator.aclose())  # type: ignore[arg-type]

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: contextvars.Context | None = None) -> Any:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(error if error is not None else RuntimeError(context["message"]))

    # Time.

    def again(self, handles: deque[asyncio.Handle]) -> None:
        """These were ready before, and are now."""
        self._ready.extend(handles)
        handles.clear()

    def advance(self, until: float, over: Callable[[], bool] = lambda: False) -> None:
        """Lets everything happen up to a moment, or until it is over. Raises the first failure."""
        ready, timers = self._ready, self._timers
        while not over():
            for _ in range(64):
                if ready:
                    handle = ready.popleft()
                elif timers and timers[0][0] <= until:
                    when, _, handle = heapq.heappop(timers)
                    self.now = max(self.now, when)
                else:
                    self.now = max(self.now, until)
                    return
                if handle.cancelled():
                    continue
                process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
                if process is not None and (process.stopped or not process.alive):
                    if process.alive:
                        process.park(handle)
                    continue
                self.steps += 1
                handle._run()
                if self.failures:
                    raise self.failures[0]
