"""What every adapter can do (describe, execute, cancel), and the runner that makes an agent of it.

An adapter handles one assignment in one coroutine; cancelling the coroutine is how an attempt is cancelled, and the
adapter must then stop the work for real. The runner is the counterpart of an agent's Work stream: it takes attempts
within the agent's concurrency and answers each exactly once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta
from typing import Any, Protocol

from antiphon.v1 import agent_service_pb2, capability_pb2, failure_pb2, payload_pb2, registry_pb2

from ..attempts import Attempt
from ..checks import checked_result, failed
from ..config import AgentConfig, CapabilityConfig
from ..node import Node
from ..payloads import NotMoved, fetchable
from ..wire import MOST_BYTES, MOST_ITEMS

log = logging.getLogger(__name__)

_EFFECTS = {
    "": capability_pb2.EFFECT_UNSPECIFIED,
    "pure": capability_pb2.EFFECT_PURE,
    "read": capability_pb2.EFFECT_READ,
    "write": capability_pb2.EFFECT_WRITE,
    "egress": capability_pb2.EFFECT_EGRESS,
}


class ExecutionFailed(Exception):
    """The work ran, or could not run, and did not succeed."""

    def __init__(
        self, kind: failure_pb2.FailureKind.ValueType, message: str, *, cause: str = "", field: str = ""
    ) -> None:
        super().__init__(message)
        retryable = kind in (
            failure_pb2.FAILURE_KIND_TRANSIENT,
            failure_pb2.FAILURE_KIND_LOST,
            failure_pb2.FAILURE_KIND_TIMEOUT,
        )
        self.failure = failed(kind, message, retryable=retryable)
        self.failure.cause, self.failure.field = cause[-16_384:], field[:1_024]


class Adapter(Protocol):
    """One existing thing."""

    async def execute(self, capability: CapabilityConfig, assignment: agent_service_pb2.Assignment) -> bytes:
        """The output as JSON. Raises `ExecutionFailed`. Cancelling it stops the work."""
        ...

    async def close(self) -> None:
        """Let go of everything it holds."""
        ...

    def kill(self) -> None:
        """The process ends at once: leave nothing behind that would go on."""
        ...


def describe(config: AgentConfig) -> registry_pb2.AgentDescription:
    """What the orchestrator is told of an agent that an adapter makes."""
    return registry_pb2.AgentDescription(
        name=config.name,
        capabilities=[_capability(capability) for capability in config.capabilities],
        concurrency=config.concurrency,
        prefetch=config.prefetch,
        runtime=config.adapter,
    )


def _capability(config: CapabilityConfig) -> capability_pb2.Capability:
    return capability_pb2.Capability(
        name=config.name,
        version=config.version,
        description=config.description,
        input_schema=config.input_schema,
        output_schema=config.output_schema,
        effect=_EFFECTS[config.effect],
        idempotent=config.idempotent,
        clearance=config.clearance,
        cost=config.cost,
    )


def json_input(assignment: agent_service_pb2.Assignment) -> bytes:
    """The input as JSON text. Raises `ExecutionFailed` when it is not here, or is not JSON."""
    payload = assignment.input
    if payload.HasField("blob"):
        raise ExecutionFailed(failure_pb2.FAILURE_KIND_INVALID_INPUT, "this agent takes no inputs by reference")
    if payload.media_type not in ("", "application/json"):
        raise ExecutionFailed(failure_pb2.FAILURE_KIND_INVALID_INPUT, f"the input is {payload.media_type}, not JSON")
    return payload.inline or b"null"


def said(answer: bytes) -> bytes:
    """A whole answer as JSON text: who says nothing means null."""
    return answer.strip() or b"null"


def parsed(text: bytes) -> Any:
    """An output parsed. Raises `ExecutionFailed` when it is not JSON."""
    try:
        return json.loads(text.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ExecutionFailed(
            failure_pb2.FAILURE_KIND_INVALID_OUTPUT, f"the output is not JSON: {error}", cause=excerpt(text)
        ) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def excerpt(text: bytes) -> str:
    """The end of a text for a failure's cause."""
    return text[-4_096:].decode("utf-8", "replace")


class AdapterAgent:
    """The agent that an adapter makes. `run` never ends by itself; cancel it."""

    def __init__(self, node: Node, config: AgentConfig, adapter: Adapter) -> None:
        self._node = node
        self._config = config
        self._adapter = adapter
        self._capabilities = {(capability.name, capability.version): capability for capability in config.capabilities}
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.seat = node.inflight.add_seat(config.name, self._wake.set)

    async def run(self) -> None:
        """Be there and work."""
        node, seat = self._node, self.seat
        node.announce(seat, describe(self._config))
        try:
            async with asyncio.TaskGroup() as attempts:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    while seat.cancels:
                        attempt_id, _ = seat.cancels.popleft()
                        if task := self._tasks.get(attempt_id):
                            task.cancel()
                    for attempt in node.inflight.take(seat, node.now(), MOST_ITEMS, MOST_BYTES):
                        task = attempts.create_task(self._work(attempt))
                        self._tasks[attempt.attempt_id] = task
        finally:
            node.depart(seat)
            await self._adapter.close()

    def kill(self) -> None:
        """The process ends at once: stop the work."""
        self._adapter.kill()

    async def _work(self, attempt: Attempt) -> None:
        assignment = attempt.assignment
        attempt.assignment = None
        result = agent_service_pb2.Result(attempt_id=attempt.attempt_id)

        def wanted() -> bool:
            return attempt.attempt_id in self.seat.running

        try:
            capability = self._capabilities.get((assignment.capability, assignment.version))
            if capability is None:
                raise ExecutionFailed(
                    failure_pb2.FAILURE_KIND_PERMANENT,
                    f"this agent does not offer {assignment.capability}@{assignment.version}",
                )
            if fetchable(assignment.input):
                await self._node.payloads.fetch(assignment.input, wanted)
            async with asyncio.timeout(_seconds(capability.timeout)):
                output = await self._adapter.execute(capability, assignment)
            result.output.CopyFrom(payload_pb2.Payload(inline=output))
            if len(output) > self._node.inline_limit:
                await self._node.payloads.keep(result.output, wanted)
        except (ExecutionFailed, NotMoved) as error:
            result.failure.CopyFrom(error.failure)
        except TimeoutError:
            result.failure.CopyFrom(
                failed(failure_pb2.FAILURE_KIND_TIMEOUT, "the capability's own timeout passed", retryable=True)
            )
        except asyncio.CancelledError:
            if attempt.cancelled is None and attempt.attempt_id not in self.seat.lingering:
                raise  # the agent itself is stopped
            result.failure.CopyFrom(failed(failure_pb2.FAILURE_KIND_CANCELLED, f"cancelled: {attempt.cancelled}"))
        except Exception as error:
            log.exception("adapter failed", extra={"agent": self._config.name})
            result.failure.CopyFrom(
                failed(
                    failure_pb2.FAILURE_KIND_TRANSIENT, f"the adapter failed: {type(error).__name__}", retryable=True
                )
            )
        finally:
            self._tasks.pop(attempt.attempt_id, None)
        size = checked_result(result, self._node.inline_limit)
        self._node.inflight.ended(self.seat, attempt.attempt_id, result, size, self._node.now())


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def kind_of(name: str) -> failure_pb2.FailureKind.ValueType:
    """The failure kind with that name."""
    return failure_pb2.FailureKind.Value(f"FAILURE_KIND_{name}")
