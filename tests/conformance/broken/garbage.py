"""Sends bytes that are no message in answer to what it does not know."""

from __future__ import annotations

import os
from typing import Any

import grpc
from antiphon.v1 import agent_service_pb2 as pb
from raw import OPTIONS, Raw, main


class Broken(Raw):
    async def unknown(self, assignment: pb.Assignment) -> Any:
        self.up.put_nowait(b"\xff" * 40)  # type: ignore[arg-type]
        return await super().unknown(assignment)

    async def stream(self) -> None:
        self.streams += 1
        async with grpc.aio.insecure_channel(f"unix:{os.environ['ANTIPHON_SOCKET']}", options=OPTIONS) as channel:
            work = channel.stream_stream(
                "/antiphon.v1.AgentService/Work",
                request_serializer=lambda said: said if isinstance(said, bytes) else said.SerializeToString(),
                response_deserializer=pb.WorkResponse.FromString,
            )
            async for response in work(self.requests()):
                self.hear(response)


if __name__ == "__main__":
    main(Broken)
