"""An existing program as an agent: a line of JSON on its standard input, JSON on its standard output.

Two modes. `per_call` starts a process for each attempt: the whole output is the answer, the exit code says whether it
succeeded, and the environment names attempt and idempotency key. `pool` keeps processes and speaks line by line; a
process that dies, or whose attempt is cancelled, is out of step and is replaced. A process group is killed as a whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress

from antiphon.v1 import agent_service_pb2, failure_pb2

from ..config import AgentConfig, CapabilityConfig
from .base import ExecutionFailed, excerpt, json_input, parsed

_STDERR_TAIL = 4_096


class ExecAdapter:
    """The program of one agent."""

    def __init__(self, config: AgentConfig) -> None:
        self._command = config.command
        self._most = config.max_output
        self._pooled = config.mode == "pool"
        self._idle: list[asyncio.subprocess.Process] = []

    async def execute(self, capability: CapabilityConfig, assignment: agent_service_pb2.Assignment) -> bytes:
        """The program's answer."""
        line = _one_line(json_input(assignment))
        return await (self._ask(line) if self._pooled else self._run_once(line, assignment))

    async def close(self) -> None:
        """Stop the kept processes."""
        idle, self._idle = self._idle, []
        for process in idle:
            await _stop(process)

    async def _run_once(self, line: bytes, assignment: agent_service_pb2.Assignment) -> bytes:
        environment = {
            **os.environ,
            "ANTIPHON_ATTEMPT_ID": assignment.attempt_id,
            "ANTIPHON_CAPABILITY": f"{assignment.capability}@{assignment.version}",
            "ANTIPHON_IDEMPOTENCY_KEY": assignment.idempotency_key,
            "TRACEPARENT": assignment.traceparent,
        }
        process = await self._start(environment, stderr=asyncio.subprocess.PIPE)
        assert process.stdout and process.stderr
        too_much = False  # raised below: what leaves an `except*` is wrapped in a group
        try:
            async with asyncio.TaskGroup() as streams:
                streams.create_task(_feed(process, line, close=True))
                answer = streams.create_task(_read(process.stdout, self._most))
                complaint = streams.create_task(_tail(process.stderr))
            await process.wait()
        except* _TooMuch:
            too_much = True
        finally:
            await _stop(process)
        if too_much:
            raise self._too_much()
        code = process.returncode or 0
        if code != 0:
            killed = code < 0
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_LOST if killed else failure_pb2.FAILURE_KIND_TRANSIENT,
                f"{self._command[0]} was killed by signal {-code}"
                if killed
                else f"{self._command[0]} exited with {code}",
                cause=excerpt(complaint.result()),
            )
        parsed(answer.result())
        return answer.result().strip()

    async def _ask(self, line: bytes) -> bytes:
        process = await self._kept()
        assert process.stdout
        in_step = too_much = False
        try:
            async with asyncio.TaskGroup() as streams:
                streams.create_task(_feed(process, line, close=False))
                reading = streams.create_task(process.stdout.readline())
            answer = reading.result()
            in_step = answer.endswith(b"\n")
        except* ValueError:  # how a StreamReader says that a line exceeds its limit
            too_much = True
        finally:
            if in_step:
                self._idle.append(process)
            else:
                await _stop(process)
        if too_much:
            raise self._too_much()
        if not in_step:
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_LOST, f"{self._command[0]} ended with {process.returncode} before it answered"
            )
        parsed(answer)
        return answer.strip()

    async def _kept(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await self._start(None, stderr=None)

    async def _start(self, environment: dict[str, str] | None, stderr: int | None) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr,
                env=environment, start_new_session=True, limit=self._most,
            )  # fmt: skip
        except OSError as error:
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_TRANSIENT, f"{self._command[0]} cannot be started: {error.strerror}"
            ) from error

    def _too_much(self) -> ExecutionFailed:
        return ExecutionFailed(
            failure_pb2.FAILURE_KIND_INVALID_OUTPUT, f"{self._command[0]} answered more than {self._most} bytes"
        )


class _TooMuch(Exception):
    """The output exceeds its limit."""


async def _feed(process: asyncio.subprocess.Process, line: bytes, *, close: bool) -> None:
    assert process.stdin
    try:
        process.stdin.write(line)
        await process.stdin.drain()
        if close:
            process.stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        return  # it need not read its input; whether it succeeded is seen otherwise


async def _read(stream: asyncio.StreamReader, most: int) -> bytes:
    content = bytearray()
    while chunk := await stream.read(65_536):
        content += chunk
        if len(content) > most:
            raise _TooMuch
    return bytes(content)


async def _tail(stream: asyncio.StreamReader) -> bytes:
    content = b""
    while chunk := await stream.read(65_536):
        content = (content + chunk)[-_STDERR_TAIL:]
    return content


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Kill the process group, also when the process itself has ended: it may have left others behind."""
    with suppress(ProcessLookupError, PermissionError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


def _one_line(text: bytes) -> bytes:
    if b"\n" in text or b"\r" in text:
        try:
            text = json.dumps(json.loads(text)).encode()
        except (ValueError, RecursionError) as error:
            raise ExecutionFailed(failure_pb2.FAILURE_KIND_INVALID_INPUT, f"the input is not JSON: {error}") from None
    return text + b"\n"
