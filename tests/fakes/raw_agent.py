"""An agent over raw stubs, as any language would write it: a program, so that it can be killed.

Run with the socket in ANTIPHON_SOCKET. What it does with an assignment is said by its input, JSON: a text is echoed;
{"sleep": s}, {"until": path} (until there is that file), {"fail": kind}, {"call": capability}, {"large": bytes},
{"exit": code}, {"hang": true} (ignores cancels).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import agent_service_pb2_grpc, failure_pb2


class RawAgent:
    def __init__(self, concurrency: int, prefetch: int) -> None:
        self.up: asyncio.Queue[pb.WorkRequest | None] = asyncio.Queue()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.calls: dict[str, asyncio.Future[pb.CallResponse]] = {}
        hello = pb.WorkRequest()
        description = hello.hello.description
        description.concurrency, description.prefetch, description.runtime = concurrency, prefetch, "raw"
        description.capabilities.add(name=os.environ.get("CAPABILITY", "text.echo"), version="1")
        hello.hello.protocol_version = 1
        self.up.put_nowait(hello)

    async def requests(self) -> AsyncIterator[pb.WorkRequest]:
        while (request := await self.up.get()) is not None:
            yield request

    def answer(self, result: pb.Result) -> None:
        self.up.put_nowait(pb.WorkRequest(results=[result]))

    async def work(self, assignment: pb.Assignment) -> None:
        result = pb.Result(attempt_id=assignment.attempt_id)
        try:
            output = await self.handle(assignment, json.loads(assignment.input.inline))
            result.output.inline = json.dumps(output).encode()
        except asyncio.CancelledError:
            result.failure.kind = failure_pb2.FAILURE_KIND_CANCELLED
        except ValueError as error:
            result.failure.kind, result.failure.message = failure_pb2.FailureKind.Value(str(error)), "as asked"
        self.answer(result)

    async def handle(self, assignment: pb.Assignment, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "hang" in value:
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    continue
        if "exit" in value:
            os._exit(value["exit"])
        if "fail" in value:
            raise ValueError(value["fail"])
        if "large" in value:
            return "x" * value["large"]
        if "call" in value:
            call = pb.CallRequest(
                call_id="1", attempt_id=assignment.attempt_id, attempt_token=assignment.attempt_token,
                capability=value["call"],
            )  # fmt: skip
            future = self.calls["1" + assignment.attempt_id] = asyncio.get_running_loop().create_future()
            self.up.put_nowait(pb.WorkRequest(calls=[call]))
            return json.loads((await future).output.inline)
        if "until" in value:
            while not Path(value["until"]).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
                await asyncio.sleep(0.01)
        await asyncio.sleep(value.get("sleep", 0))
        return "done"

    async def run(self, path: str) -> None:
        async with grpc.aio.insecure_channel(
            f"unix:{path}", options=[("grpc.default_authority", "localhost")]
        ) as channel:
            async for response in agent_service_pb2_grpc.AgentServiceStub(channel).Work(self.requests()):
                for assignment in response.assignments:
                    self.tasks[assignment.attempt_id] = asyncio.create_task(self.work(assignment))
                for cancel in response.cancels:
                    if task := self.tasks.get(cancel.attempt_id):
                        task.cancel()
                for result in response.call_results:
                    self.calls.pop(result.call_id + result.attempt_id).set_result(result)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    concurrency, prefetch = int(os.environ.get("CONCURRENCY", "2")), int(os.environ.get("PREFETCH", "0"))
    if marker := os.environ.get("MARKER"):
        with open(marker, "a") as file:
            file.write(f"{os.getpid()}\n")
    try:
        asyncio.run(RawAgent(concurrency, prefetch).run(os.environ["ANTIPHON_SOCKET"]))
    except grpc.aio.AioRpcError as error:
        print(error.details(), file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
