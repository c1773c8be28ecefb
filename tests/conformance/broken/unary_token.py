"""Reports progress by a call of its own, with a token of its own making."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import grpc
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import agent_service_pb2_grpc
from raw import OPTIONS, Raw, main


class Broken(Raw):
    async def ask(self, assignment: pb.Assignment, value: Any) -> Any:
        request = pb.ReportProgressRequest(attempt_token=b"let me in")
        request.update.attempt_id = assignment.attempt_id
        async with grpc.aio.insecure_channel(f"unix:{os.environ['ANTIPHON_SOCKET']}", options=OPTIONS) as channel:
            with suppress(grpc.aio.AioRpcError):
                await agent_service_pb2_grpc.AgentServiceStub(channel).ReportProgress(request, timeout=5)
        return await super().ask(assignment, value)


if __name__ == "__main__":
    main(Broken)
