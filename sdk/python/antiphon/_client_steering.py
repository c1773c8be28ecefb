"""The part of the client that steers runs which are under way."""

from __future__ import annotations

import uuid
from typing import Any

from antiphon.v1 import run_service_pb2

from ._client_base import ClientBase
from ._submission import payload_of


class SteeringCalls(ClientBase):
    """What somebody may ask of a run between its submission and its end."""

    async def signal(
        self, run_id: str, signal: str, data: Any = None, *, request_id: str | None = None
    ) -> run_service_pb2.SignalRunResponse:
        """Send a signal to a run, for the task that waits for it or will; `data`, as the input of `submit`, becomes its
        output. Repeated with the same `request_id` it is one signal. Raises `RunNotFound`, `RunEnded`,
        `SignalNotExpected`, `RequestIdReused`.
        """
        request = run_service_pb2.SignalRunRequest(
            request_id=request_id or uuid.uuid4().hex, run_id=run_id, signal=signal
        )
        if data is not None:
            request.payload.CopyFrom(await payload_of(self.upload_payload, data))
        return await self._ask(lambda to: to.runs.SignalRun, request)
