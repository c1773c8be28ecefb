"""Clients: each has an errand, and repeats itself at whichever replica answers until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from antiphon.v1 import graph_pb2, run_pb2, run_service_pb2_grpc
from antiphon.v1 import run_service_pb2 as api
from antiphon_sidecar.errors import reason_of

from tests.simulation.cluster.history import History
from tests.simulation.cluster.network import Channel, Network, Peer

Code = grpc.StatusCode
PASSING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.CANCELLED})
TERMINAL = frozenset({run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED})
TIMEOUT = 6.0
WAIT = 8.0
"""Seconds for which a client waits for the end of a run before it watches it."""


class Client:
    """Calls whichever replica it thinks of, and another one when that does not answer."""

    def __init__(self, network: Network, who: Peer, addresses: Sequence[str], history: History) -> None:
        self._rng = network.rng
        self._history = history
        self._stubs = [
            run_service_pb2_grpc.RunServiceStub(Channel(network, who, address))  # type: ignore[arg-type]
            for address in addresses
        ]

    async def errand(self, number: int, graph: graph_pb2.Graph, begin: float) -> None:
        """Submits one run, perhaps twice or with other content, perhaps cancels it, and watches it to its end."""
        rng, request_id = self._rng, f"q{number}"
        await asyncio.sleep(begin)
        request = api.SubmitRunRequest(request_id=request_id, inline=graph, wait=rng.random() < 0.3)
        request.input.inline = str(number % 3).encode()
        if request.wait:
            # Not for ever: it may need a signal, or an answer, from those who go on when they have its id.
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT):
                    await self._submit(request)
            request.wait = False
        run_id = await self._submit(request)
        also: list[Awaitable[Any]] = [self._watch(run_id)]
        if rng.random() < 0.3:
            also.append(self._watch(run_id))
        if rng.random() < 0.3:
            also.append(self._later(self._submit, request))
        if rng.random() < 0.3:
            also.append(self._later(self._contradict, request))
        if rng.random() < 0.3:
            also.append(self._later(self._get, run_id))
        if rng.random() < 0.15:
            also.append(self._later(self._cancel, run_id))
        if rng.random() < 0.15:
            also.append(self._later(self._hold, run_id))
        if graph.name == "wait":
            # However often it is sent, it is one; and the second is another, which nobody waits for.
            also += [self._later(self._signal, (run_id, name)) for name in ("g1", "g1", "g2")]
        await asyncio.gather(*also)
        await self._get(run_id)

    async def _later(self, work: Callable[[Any], Awaitable[Any]], what: Any) -> None:
        await asyncio.sleep(10 * self._rng.random() ** 2)
        await work(what)

    async def _submit(self, request: api.SubmitRunRequest) -> str:
        run: run_pb2.Run = (await self._answer("SubmitRun", request)).run
        self._history.answered(request.request_id, run.run_id)
        self._seen(run)
        return run.run_id

    async def _contradict(self, request: api.SubmitRunRequest) -> None:
        """The same request id with other content is never accepted once the first was answered."""
        other = api.SubmitRunRequest()
        other.CopyFrom(request)
        other.labels["other"] = "content"
        refused = await self._answer("SubmitRun", other, "REQUEST_ID_REUSED")
        self._history.require(refused is None, f"{request.request_id} was accepted with other content")

    async def _get(self, run_id: str) -> None:
        self._seen((await self._answer("GetRun", api.GetRunRequest(run_id=run_id))).run)

    async def _cancel(self, run_id: str) -> None:
        run: run_pb2.Run = (await self._answer("CancelRun", api.CancelRunRequest(run_id=run_id))).run
        self._history.require(run.state in TERMINAL, f"{run_id} was cancelled and goes on")
        self._seen(run)

    async def _hold(self, run_id: str) -> None:
        """Holds a run for a while."""
        await self._answer("PauseRun", api.PauseRunRequest(run_id=run_id, reason="look first"), "RUN_ENDED")
        await asyncio.sleep(5 * self._rng.random())
        await self._answer("ResumeRun", api.ResumeRunRequest(run_id=run_id), "RUN_ENDED")

    async def _signal(self, which: tuple[str, str]) -> None:
        run_id, request_id = which
        request = api.SignalRunRequest(request_id=request_id, run_id=run_id, signal="go")
        request.payload.inline = f'"{request_id}"'.encode()
        await self._answer("SignalRun", request, "RUN_ENDED")

    async def _attend(self, run_id: str, event: run_pb2.RunEvent) -> None:
        """What waits for a person has its answer, and now and then what has failed is tried again."""
        rng, key = self._rng, event.key
        failed = event.task_state == run_pb2.TASK_STATE_FAILED and rng.random() < 0.1
        if not failed and event.task_state not in (run_pb2.TASK_STATE_QUARANTINED, run_pb2.TASK_STATE_ESCALATED):
            return
        await asyncio.sleep(rng.choice([0.0, 0.5, 4.0]))
        gone = ("TASK_STATE_CONFLICT", "RUN_ENDED")
        if failed or rng.random() < 0.7:
            self._history.asks(run_id, key, "retry")
            again = api.RetryTaskRequest(run_id=run_id, key=key)
            again.expected_end_time.CopyFrom(event.event_time)
            await self._answer("RetryTask", again, *gone)
            return
        self._history.asks(run_id, key, "resolve")
        request = api.ResolveTaskRequest(run_id=run_id, key=key)
        if rng.random() < 0.5:
            request.output.inline = b'"given"'
        else:
            request.failure = "given up"
        await self._answer("ResolveTask", request, *gone)

    async def _watch(self, run_id: str) -> None:
        """Goes on from its cursor wherever it is let to; with it, the runs that begin beneath its tasks."""
        cursor = 0
        beneath: list[asyncio.Task[None]] = []
        while True:
            request = api.WatchRunRequest(run_id=run_id, cursor=cursor, include_partials=True)
            call = self._rng.choice(self._stubs).WatchRun(request)
            pieces: dict[str, int] = {}
            try:
                async for response in call:
                    for event in response.events:
                        if event.HasField("partial"):
                            self._history.piece(run_id, event, pieces)
                            continue
                        self._history.event(run_id, cursor, event.event_seq, event.SerializeToString())
                        cursor = event.event_seq
                        if event.HasField("child") and event.child.run_id not in self._history.children:
                            self._history.children.add(event.child.run_id)
                            beneath.append(asyncio.create_task(self._watch(event.child.run_id)))
                        await self._attend(run_id, event)
                    if response.HasField("run"):
                        whole = cursor == response.run.event_seq
                        self._history.require(whole, f"a watcher of {run_id} was told its end at {cursor}")
                        self._seen(response.run)
                        await asyncio.gather(*beneath)
                        return
            except grpc.aio.AioRpcError as error:
                self._expect(error, "WatchRun")
            call.cancel()
            await asyncio.sleep(0.05 + 0.5 * self._rng.random())

    async def _answer(self, method: str, request: Any, *refusals: str) -> Any:
        """The answer, from whoever gives one; None when it is refused for one of these reasons."""
        while True:
            call = getattr(self._rng.choice(self._stubs), method)
            try:
                return await call(request, timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                if reason_of(error) in refusals:
                    return None
                self._expect(error, method)
            await asyncio.sleep(0.05 + 0.5 * self._rng.random())

    def _expect(self, error: grpc.aio.AioRpcError, method: str) -> None:
        said = f"{method} was refused: {error.code().name} {reason_of(error)} {error.details()}"
        self._history.require(error.code() in PASSING, said)

    def _seen(self, run: run_pb2.Run) -> None:
        if run.state in TERMINAL:
            self._history.ended(run.run_id, run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_"))
