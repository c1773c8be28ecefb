"""What agents of the simulated world do: each capability is a way to answer, to ask others, or to die of it.

Unhealthy ones take their time and fail now and then; healthy ones are quick, and do what they are asked for. What they
do is written into the history before anybody else knows of it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from antiphon.v1 import agent_service_pb2 as agents
from antiphon.v1 import capability_pb2, failure_pb2, registry_pb2, run_pb2
from antiphon_sidecar.attempts import Attempt
from antiphon_sidecar.boxes import Seat
from antiphon_sidecar.node import Node

from tests.simulation.cluster.graphs import answered
from tests.simulation.cluster.history import History

if TYPE_CHECKING:
    from tests.simulation.cluster.loop import Process

CALL_ID = "c"
"""Of the one call that an attempt makes: the next attempt of its task makes the same."""

CAPABILITIES = ("work", "same", "vote", "plan", "ask", "doubt", "undo", "deadly", "scarce")
SCARCE = "text.scarce"
"""The capability that a policy limits."""
MOST_SCARCE = 3
"""Attempts of it that may be out at once."""

_FAILURES = [failure_pb2.FAILURE_KIND_TRANSIENT] * 3 + [failure_pb2.FAILURE_KIND_PERMANENT]


def describe(name: str, concurrency: int, prefetch: int) -> registry_pb2.AgentDescription:
    """An agent that does everything."""
    description = registry_pb2.AgentDescription(name=name, version="1", concurrency=concurrency, prefetch=prefetch)
    for what in CAPABILITIES:
        capability = description.capabilities.add(name=f"text.{what}", version="1.0")
        if what == "same":
            capability.effect = capability_pb2.EFFECT_PURE
    return description


class Agent:
    """One agent behind its seat. `died` is called when it dies of its work, which its sidecar survives."""

    def __init__(
        self, node: Node, name: str, process: Process, history: History, rng: random.Random, died: Callable[[], None]
    ) -> None:
        self.healthy = False
        self._wake = asyncio.Event()
        self.seat: Seat = node.inflight.add_seat(name, self._wake.set)
        self._node = node
        self._process = process
        self._history = history
        self._rng = rng
        self._died = died
        self._working: dict[str, asyncio.Task[None]] = {}

    def comes(self, concurrency: int) -> None:
        """It is there, perhaps with other numbers than before."""
        self._node.announce(self.seat, describe(self.seat.name, concurrency, self._rng.choice([0, 0, 1, 4])))
        self._wake.set()

    def dies(self) -> None:
        """With all that it was working on."""
        for work in self._working.values():
            work.cancel()
        self._working.clear()
        self._node.depart(self.seat)

    async def run(self, began: Callable[[str], None]) -> None:
        """Takes what it may and works on it. `began` is told each attempt."""
        seat, inflight = self.seat, self._node.inflight
        while True:
            await self._wake.wait()
            self._wake.clear()
            while seat.cancels:
                attempt_id, _ = seat.cancels.popleft()
                if (work := self._working.pop(attempt_id, None)) is not None:
                    work.cancel()
                result = agents.Result(attempt_id=attempt_id)
                self._ended(_fail(result, failure_pb2.FAILURE_KIND_CANCELLED))
            for attempt in inflight.take(seat, self._node.now(), 10, 1 << 20):
                began(attempt.attempt_id)
                self._working[attempt.attempt_id] = self._process.spawn(self._handle(attempt, attempt.assignment))

    async def _handle(self, attempt: Attempt, assignment: agents.Assignment) -> None:
        attempt_id, rng = attempt.attempt_id, self._rng
        what = assignment.capability.rpartition(".")[2]
        taking = 0.02 if self.healthy else rng.choice([0.005, 0.05, 0.3, 1.5, 5.0, 12.0]) * rng.random()
        result = agents.Result(attempt_id=attempt_id)
        if what == "deadly" and not self.healthy and rng.random() < 0.7:
            await asyncio.sleep(min(taking, 0.3))
            self._died()
            return
        if what == "work" and rng.random() < 0.3:
            # Its own name, in two pieces.
            middle = len(attempt_id) // 2
            self._tell(attempt_id, 0, middle)
            await asyncio.sleep(taking / 2)
            self._tell(attempt_id, middle, len(attempt_id))
            taking /= 2
        await asyncio.sleep(taking)
        if what == "ask" and not await self._ask(attempt, result):
            return
        if not self.healthy and rng.random() < 0.15:
            _fail(result, rng.choice(_FAILURES))
        elif what == "doubt" and rng.random() < 0.6:
            _fail(result, failure_pb2.FAILURE_KIND_PERMANENT)
        elif what == "plan":
            result.subgraph.graph.CopyFrom(answered())
            result.subgraph.input.inline = json.dumps(f"for {attempt_id}").encode()
        elif what == "vote":
            result.output.inline = b'"yes"' if rng.random() < 0.7 else b'"no"'
        elif not result.WhichOneof("outcome"):
            said = json.loads(assignment.input.inline or b"null") if what == "same" else None
            result.output.inline = json.dumps({"by": attempt_id, "of": said}).encode()
        self._working.pop(attempt_id, None)
        self._ended(result)

    async def _ask(self, attempt: Attempt, result: agents.Result) -> bool:
        """Asks for work on behalf of an attempt, and answers what it gets. False when nobody listens any more."""
        call = agents.CallRequest(attempt_id=attempt.attempt_id, attempt_token=attempt.token, call_id=CALL_ID)
        call.capability, call.input.inline = "text.work@1", b'"asked"'
        told: asyncio.Future[agents.CallResponse | None] = asyncio.get_running_loop().create_future()

        def deliver(response: agents.CallResponse | None) -> None:
            if not told.done():
                told.set_result(response)

        self._node.inflight.called(attempt, CALL_ID, call, call.ByteSize(), deliver)
        response = await told
        if response is None:
            return False
        self._history.called(attempt.attempt_id, response)
        if response.HasField("failure"):
            result.failure.CopyFrom(response.failure)
            result.failure.kind = failure_pb2.FAILURE_KIND_TRANSIENT
        else:
            result.output.CopyFrom(response.output)
        return True

    def _tell(self, attempt_id: str, first: int, end: int) -> None:
        piece = run_pb2.PartialOutput(offset=first, text=attempt_id[first:end])
        self._node.inflight.emitted(self.seat, attempt_id, piece)

    def _ended(self, result: agents.Result) -> None:
        self._history.made(result)
        self._node.inflight.ended(self.seat, result.attempt_id, result, result.ByteSize(), self._node.now())


def _fail(result: agents.Result, kind: failure_pb2.FailureKind.ValueType) -> agents.Result:
    result.failure.kind, result.failure.message = kind, "the agent failed"
    return result
