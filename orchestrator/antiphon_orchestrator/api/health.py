"""Health of one listener, as the standard contract grpc.health.v1 has it: of the server as a whole, the service "".

Anybody may watch it and read nothing. So nothing is shared by watchers, and nothing is held while one is written to.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """NOT_SERVING until it is told otherwise."""

    def __init__(self) -> None:
        self._serving = False
        self._watchers: set[asyncio.Event] = set()

    def set_serving(self, serving: bool) -> None:
        """Whoever reads is told at once; others when they do, and only of what is then."""
        self._serving = serving
        for changed in self._watchers:
            changed.set()

    async def Check(self, request: Any, context: Any) -> Any:
        """The status; NOT_FOUND for any service but ""."""
        if request.service:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _Status(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> None:
        """The status now, and each time it is another; SERVICE_UNKNOWN for any service but ""."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            told = None
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != told:
                    await context.write(_Status(status=status))
                    told = status
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> Any:
        if service:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving else _Status.NOT_SERVING
