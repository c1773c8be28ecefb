"""An agent on generated stubs alone that keeps the contract. Each program beside it is this one with one fault."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import agent_service_pb2_grpc, capability_pb2
from antiphon.v1 import failure_pb2 as failures

OPTIONS = (("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1))
INTEGER = {"type": "integer", "minimum": -1_000_000, "maximum": 1_000_000}
INPUT = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "required": ["a"], "additionalProperties": False}
OUTPUT = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}


class Failed(Exception):
    def __init__(self, kind: failures.FailureKind.ValueType, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


class Raw:
    """Its methods are what faults replace."""

    concurrency, prefetch = 8, 8
    again = True
    """Dial again after a stream has ended."""

    def __init__(self) -> None:
        self.up: asyncio.Queue[pb.WorkRequest | None] = asyncio.Queue()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.calls: dict[str, asyncio.Future[pb.CallResponse]] = {}
        self.draining = False
        self.streams = 0
        self.attached = False

    # What it says

    def hello(self) -> pb.WorkRequest:
        hello = pb.WorkRequest()
        hello.hello.protocol_version = 1
        description = hello.hello.description
        description.name, description.runtime = "raw", "raw"
        description.concurrency, description.prefetch = self.concurrency, self.prefetch
        description.capabilities.add(
            name="sum.add",
            version="1",
            input_schema=json.dumps(INPUT),
            output_schema=json.dumps(OUTPUT),
            effect=capability_pb2.EFFECT_PURE,
        )
        description.capabilities.add(name="sum.ask", version="1", input_schema=json.dumps({"type": "boolean"}))
        return hello

    def say(self, request: pb.WorkRequest) -> None:
        self.up.put_nowait(request)

    def answer(self, result: pb.Result) -> None:
        self.say(pb.WorkRequest(results=[result]))

    # What it does

    async def handle(self, assignment: pb.Assignment) -> Any:
        offered = {("sum.add", "1"): self.add, ("sum.ask", "1"): self.ask}
        work = offered.get((assignment.capability, assignment.version))
        if work is None:
            return await self.unknown(assignment)
        if assignment.input.HasField("blob") or assignment.input.media_type not in ("", "application/json"):
            raise Failed(failures.FAILURE_KIND_INVALID_INPUT, "not JSON that came inline")
        try:
            value = json.loads(assignment.input.inline)
        except ValueError as error:
            raise Failed(failures.FAILURE_KIND_INVALID_INPUT, str(error)) from None
        return await work(assignment, value)

    async def unknown(self, assignment: pb.Assignment) -> Any:
        raise Failed(failures.FAILURE_KIND_PERMANENT, "this agent has no such capability")

    async def add(self, assignment: pb.Assignment, value: Any) -> Any:
        if not isinstance(value, dict) or set(value) - {"a", "b"} or "a" not in value:
            raise Failed(failures.FAILURE_KIND_INVALID_INPUT, "not an object of a and b")
        for number in value.values():
            if type(number) is not int or abs(number) > 1_000_000:
                raise Failed(failures.FAILURE_KIND_INVALID_INPUT, "not an integer within a million")
        return self.added(value)

    def added(self, value: dict[str, int]) -> Any:
        return {"sum": value["a"] + value.get("b", 0)}

    async def ask(self, assignment: pb.Assignment, value: Any) -> Any:
        if type(value) is not bool:
            raise Failed(failures.FAILURE_KIND_INVALID_INPUT, "not a boolean")
        self.progress(assignment)
        call = self.call(assignment)
        future = self.calls[call.attempt_id] = asyncio.get_running_loop().create_future()
        self.say(pb.WorkRequest(calls=[call]))
        return (await future).HasField("output")

    def progress(self, assignment: pb.Assignment) -> None:
        update = pb.ProgressUpdate(attempt_id=assignment.attempt_id)
        update.progress.fraction = 0.5
        self.say(pb.WorkRequest(progress=[update]))

    def call(self, assignment: pb.Assignment) -> pb.CallRequest:
        return pb.CallRequest(
            call_id="1",
            attempt_id=assignment.attempt_id,
            attempt_token=assignment.attempt_token,
            capability="other.thing@1",
        )

    async def work(self, assignment: pb.Assignment) -> None:
        result = pb.Result(attempt_id=assignment.attempt_id)
        try:
            result.output.inline = json.dumps(await self.handle(assignment)).encode()
        except asyncio.CancelledError:
            self.cancelled(result)
            return
        except Failed as failed:
            result.failure.kind, result.failure.message = failed.kind, failed.message
        self.tasks.pop(assignment.attempt_id, None)
        self.answer(result)
        self.finished()

    def cancelled(self, result: pb.Result) -> None:
        self.tasks.pop(result.attempt_id, None)
        result.failure.kind, result.failure.message = failures.FAILURE_KIND_CANCELLED, "as told"
        self.answer(result)
        self.finished()

    def finished(self) -> None:
        if self.draining and not self.tasks:
            self.up.put_nowait(None)

    # What it hears

    def assigned(self, assignment: pb.Assignment) -> None:
        if assignment.attempt_id not in self.tasks:
            self.tasks[assignment.attempt_id] = asyncio.create_task(self.work(assignment))

    def cancel(self, cancel: pb.AttemptCancel) -> None:
        if task := self.tasks.get(cancel.attempt_id):
            # Later, so that it has begun: a task that has not would end without an outcome.
            asyncio.get_running_loop().call_soon(task.cancel)

    def drain(self) -> None:
        self.draining = True
        self.finished()

    def hear(self, response: pb.WorkResponse) -> None:
        self.attached = True
        for assignment in response.assignments:
            self.assigned(assignment)
        for cancel in response.cancels:
            self.cancel(cancel)
        for answer in response.call_results:
            if (future := self.calls.pop(answer.attempt_id, None)) and not future.done():
                future.set_result(answer)
        if response.drain:
            self.drain()

    # Its life

    async def requests(self) -> AsyncIterator[pb.WorkRequest]:
        up = self.up  # of this stream: the next one has its own
        yield self.hello()
        while (request := await up.get()) is not None:
            yield request

    async def stream(self) -> None:
        self.streams += 1
        options = [*OPTIONS, *self.options()]
        async with grpc.aio.insecure_channel(f"unix:{os.environ['ANTIPHON_SOCKET']}", options=options) as channel:
            async for response in agent_service_pb2_grpc.AgentServiceStub(channel).Work(self.requests()):
                self.hear(response)

    def options(self) -> list[tuple[str, int]]:
        return []

    async def run(self) -> None:
        while True:
            try:
                await self.stream()
            except grpc.aio.AioRpcError as error:
                if self.attached and not self.again:
                    sys.exit(f"the stream broke: {error.code().name}")
            if self.draining:
                return
            await self.forget()
            await asyncio.sleep(0.05)

    async def forget(self) -> None:
        """What was under way belongs to the stream that is gone; it comes again."""
        for task in list(self.tasks.values()):
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        self.up = asyncio.Queue()

    def terminated(self) -> None:
        os._exit(0)


def main(agent: type[Raw] = Raw) -> None:
    signal.signal(signal.SIGTERM, lambda *_: made.terminated())
    made = agent()
    asyncio.run(made.run())


if __name__ == "__main__":
    main()
