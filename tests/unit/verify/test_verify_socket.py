"""The socket on which `antiphon verify` serves an agent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import agent_service_pb2_grpc as service
from antiphon.verify.line import Socket

STREAMS = 16


class Watched(Socket):
    """Knows the tasks that serve its streams."""

    def __init__(self, path: str) -> None:
        super().__init__(path, 65_536, lambda *_: None, lambda _: None, lambda _: True, lambda _: True)
        self.serving: list[asyncio.Task[Any] | None] = []

    async def Work(self, requests: AsyncIterator[pb.WorkRequest], context: Any) -> AsyncIterator[pb.WorkResponse]:
        self.serving.append(asyncio.current_task())
        async for response in super().Work(requests, context):
            yield response


async def test_a_socket_is_closed_when_the_handlers_of_its_streams_have_ended(tmp_path: Path) -> None:
    """Or the end of the loop ends them, of which gRPC prints a traceback."""
    path = str(tmp_path / "agent.sock")
    options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    for _ in range(5):
        socket = Watched(path)
        await socket.open()
        async with grpc.aio.insecure_channel(f"unix:{path}", options) as channel:
            calls = [service.AgentServiceStub(channel).Work() for _ in range(STREAMS)]
            for call in calls:
                await call.write(pb.WorkRequest(hello=pb.AgentHello(protocol_version=1)))
                assert (await call.read()).HasField("welcome")
            assert await socket.until(lambda socket=socket: len(socket.lines) == STREAMS, 20)  # type: ignore[misc]
            await socket.close()
            assert [task for task in socket.serving if task is None or not task.done()] == []
        assert len(socket.serving) == STREAMS and os.listdir(tmp_path) == []
