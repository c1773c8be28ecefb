"""An event loop in a thread of its own, for code that has none, or must not wait on its own.

One for the whole process, however many clients there are: gRPC's asyncio does best with one loop. The thread begins
with the first user and ends with the last, or with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

_LEAVE = 10.0
"""Seconds for what is under way when the process ends."""


class Portal:
    """Runs coroutines for other threads. `enter` and `leave` count its users."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def enter(self) -> None:
        """One user more."""
        with self._changing:
            self._users += 1
            if self._thread is None:
                begun: Future[asyncio.AbstractEventLoop] = Future()
                self._thread = threading.Thread(target=self._run, args=(begun,), name="antiphon", daemon=True)
                self._thread.start()
                self._loop = begun.result()

    def leave(self) -> None:
        """One user less."""
        with self._changing:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of a coroutine, made and run over there. An interrupt here cancels it there."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # it is over, unless we were interrupted
            raise

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run a coroutine over there. Raises `RuntimeError` over there, where waiting for it could only be for ever."""
        assert self._loop is not None, "enter first"
        if self.inside:
            raise RuntimeError("this is the thread in which antiphon.sync works; use antiphon.Client here")
        coroutine = work()
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except BaseException:  # an interrupt, before it was handed over or just after
            with suppress(ValueError):  # it has begun over there
                coroutine.close()
            raise

    @property
    def inside(self) -> bool:
        """Whether this is the portal's own thread."""
        return threading.current_thread() is self._thread

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """What an asynchronous generator yields, one after the other; ended with this generator."""
        loop = self._loop
        asked: list[asyncio.Task[Any]] = []

        async def following() -> tuple[bool, Any]:
            asked[:] = filter(None, (asyncio.current_task(),))
            async for item in items:
                return True, item
            return False, None

        async def end() -> None:
            if asked:
                await asyncio.wait(asked)  # one that was interrupted is still in there
            async with aclosing(items):  # type: ignore[type-var]  # every iterator of ours is a generator
                pass

        try:
            while (found := self.call(following))[0]:
                yield found[1]
        finally:
            if loop is not None and loop is self._loop:  # else it has ended with its client
                if self.inside:  # garbage is collected wherever there is something to do
                    asyncio.run_coroutine_threadsafe(end(), loop)
                else:
                    self.call(end)

    @contextmanager
    def inside_of(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """A block that runs here, while an asynchronous context is entered over there, by one task all the while."""
        entered: Future[T] = Future()
        left: list[asyncio.Future[None]] = []

        async def hold() -> None:
            leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            left.append(leave)
            try:
                async with manager as value:
                    entered.set_result(value)
                    await leave
            except _BlockFailed:
                pass
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        holding = self.start(hold)
        try:
            value = entered.result()
        except BaseException:
            holding.cancel()
            raise
        assert self._loop is not None
        try:
            yield value
        except BaseException:
            # What happened in the block stays here: an interrupt must not end the other thread.
            self._loop.call_soon_threadsafe(_settle, left[0], _BlockFailed())
            wait((holding,))
            raise
        self._loop.call_soon_threadsafe(_settle, left[0], None)
        holding.result()

    def _run(self, begun: Future[asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.call_soon(begun.set_result, loop)
            loop.run_forever()

    def _stop(self) -> None:
        thread, loop = self._thread, self._loop
        self._thread = self._loop = None
        if thread is not None and loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_LEAVE)

    def end(self) -> None:
        """The process ends: so does the thread, whoever has forgotten to leave."""
        with self._changing:
            self._stop()


class _BlockFailed(Exception):
    """The block that a context is held for has raised."""


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)


PORTAL = Portal()
atexit.register(PORTAL.end)
