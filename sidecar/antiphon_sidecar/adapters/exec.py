"""An existing program as an agent: a line of JSON on its standard input, JSON on its standard output.

Two modes. `per_call` starts a process for each attempt: the whole output is the answer, the exit code says whether it
succeeded, and the environment names attempt and idempotency key. `pool` keeps processes and speaks line by line; a
process that dies, whose attempt is cancelled, or that prints anything but one line of JSON for each of its input is
out of step and is replaced: what it says next could be another attempt's answer. A process group is killed as a whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from contextlib import suppress

from antiphon.v1 import agent_service_pb2, failure_pb2

from ..config import AgentConfig, CapabilityConfig
from ..supervise import environment, leashed
from .base import ExecutionFailed, excerpt, json_input, parsed, said

_STDERR_TAIL = 4_096
_HELD_OPEN = 0.5
"""Seconds after a program's end for the rest of its output, which something it has left behind may hold open."""


class ExecAdapter:
    """The program of one agent."""

    def __init__(self, config: AgentConfig) -> None:
        self._command = config.command
        self._most = config.max_output
        self._pooled = config.mode == "pool"
        self._idle: list[_Program] = []
        self._programs: set[_Program] = set()

    async def execute(self, capability: CapabilityConfig, assignment: agent_service_pb2.Assignment) -> bytes:
        """The program's answer."""
        line = _one_line(json_input(assignment))
        return await (self._ask(line) if self._pooled else self._run_once(line, assignment))

    async def close(self) -> None:
        """Stop the kept processes."""
        idle, self._idle = self._idle, []
        for program in idle:
            await self._stop(program)

    def kill(self) -> None:
        """SIGKILL to all processes, for nobody can wait any more."""
        for program in self._programs:
            program.kill()

    async def _run_once(self, line: bytes, assignment: agent_service_pb2.Assignment) -> bytes:
        own = {
            "ANTIPHON_ATTEMPT_ID": assignment.attempt_id,
            "ANTIPHON_CAPABILITY": f"{assignment.capability}@{assignment.version}",
            "ANTIPHON_IDEMPOTENCY_KEY": assignment.idempotency_key,
            "TRACEPARENT": assignment.traceparent,
        }
        program = await self._start(own, stderr=asyncio.subprocess.PIPE)
        assert program.stderr
        too_much = False  # raised below: what leaves an `except*` is wrapped in a group
        try:
            async with asyncio.TaskGroup() as streams:
                streams.create_task(_feed(program, line, close=True))
                answer = streams.create_task(_read(program.stdout, self._most))
                complaint = streams.create_task(_tail(program.stderr))
                await program.ended()
                await asyncio.wait([answer, complaint], timeout=_HELD_OPEN)
                await self._stop(program)  # the readers come to an end
        except* _TooMuch:
            too_much = True
        finally:
            await self._stop(program)
        if too_much:
            raise self._too_much()
        code = program.returncode or 0
        if code != 0:
            killed = code < 0
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_LOST if killed else failure_pb2.FAILURE_KIND_TRANSIENT,
                f"{self._command[0]} was killed by signal {-code}"
                if killed
                else f"{self._command[0]} exited with {code}",
                cause=excerpt(complaint.result()),
            )
        output = said(answer.result())
        parsed(output)
        return output

    async def _ask(self, line: bytes) -> bytes:
        program = await self._kept()
        in_step = False
        try:
            answer = await _exchange(program, line)
            if answer is not None and answer.endswith(b"\n"):
                parsed(answer)
                in_step = True
        finally:
            if in_step:
                program.listen()
                self._idle.append(program)
            else:
                await self._stop(program)
        if answer is None:
            raise self._too_much()
        if not in_step:
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_LOST, f"{self._command[0]} ended with {program.returncode} before it answered"
            )
        return answer.strip()

    async def _kept(self) -> _Program:
        """A process that waits for a line, and has said nothing since its last answer."""
        while self._idle:
            program = self._idle.pop()
            in_step = False
            try:
                in_step = await program.quiet()
            finally:
                if not in_step:
                    await self._stop(program)
            if in_step:
                return program
        program = await self._start({}, stderr=None)
        program.listen()
        return program

    async def _start(self, own: dict[str, str], stderr: int | None) -> _Program:
        if shutil.which(self._command[0]) is None:
            # It was there when the sidecar started. Other instances may have it, and this one's breaker has to open,
            # which what is PERMANENT does not bring about.
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_TRANSIENT, f"{self._command[0]} cannot be started: there is no such program"
            )
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: _Protocol(self._most, loop), *leashed(self._command),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr,
                env=environment(own), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_TRANSIENT, f"{self._command[0]} cannot be started: {error.strerror}"
            ) from error
        program = _Program(transport, protocol)
        self._programs.add(program)
        return program

    async def _stop(self, program: _Program) -> None:
        if program in self._programs:
            self._programs.remove(program)
            await program.stop()

    def _too_much(self) -> ExecutionFailed:
        return ExecutionFailed(
            failure_pb2.FAILURE_KIND_INVALID_OUTPUT, f"{self._command[0]} answered more than {self._most} bytes"
        )


class _TooMuch(Exception):
    """The output exceeds its limit."""


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Also tells the end of the process itself: asyncio waits for that of its pipes, which children may hold."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.exited: asyncio.Future[None] = loop.create_future()

    def process_exited(self) -> None:
        self.exited.set_result(None)
        super().process_exited()


class _Program:
    """A process that runs, with its process group."""

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
        assert protocol.stdin and protocol.stdout
        self.stdin, self.stdout, self.stderr = protocol.stdin, protocol.stdout, protocol.stderr
        self._transport = transport
        self._exited = protocol.exited
        self._first: asyncio.Task[bytes] | None = None

    @property
    def returncode(self) -> int | None:
        return self._transport.get_returncode()

    async def ended(self) -> None:
        """Return when the process has ended, whatever it has left behind."""
        await asyncio.shield(self._exited)

    def listen(self) -> None:
        """Notice from now on when it prints anything."""
        self._first = asyncio.create_task(self.stdout.read(1))

    async def quiet(self) -> bool:
        """Whether it has neither printed anything since `listen` nor ended."""
        assert self._first
        await asyncio.wait([self._first], timeout=0)  # lets the loop look at the pipe
        return not self._first.done() and self.returncode is None

    async def line(self) -> bytes:
        """The line that it prints after `listen`; without its end when there was none."""
        assert self._first
        first = await self._first
        return first if first in (b"", b"\n") else first + await self.stdout.readline()

    def kill(self) -> None:
        """SIGKILL to the group, also when the process itself has ended: it may have left others behind."""
        with suppress(ProcessLookupError, PermissionError):  # nothing is left of it
            os.killpg(self._transport.get_pid(), signal.SIGKILL)

    async def stop(self) -> None:
        """Kill it and let go of its pipes; it is gone when this returns."""
        if self._first:
            self._first.cancel()
        self.kill()
        self._exited.add_done_callback(lambda _: self._transport.close())
        await self.ended()


async def _exchange(program: _Program, line: bytes) -> bytes | None:
    """The line that a kept process answers; None when it exceeds the limit."""
    answer: bytes | None
    try:
        async with asyncio.TaskGroup() as streams:
            streams.create_task(_feed(program, line, close=False))
            reading = streams.create_task(program.line())
        answer = reading.result()
    except* ValueError:  # how a StreamReader says that a line exceeds its limit
        answer = None
    return answer


async def _feed(program: _Program, line: bytes, *, close: bool) -> None:
    try:
        program.stdin.write(line)
        await program.stdin.drain()
        if close:
            program.stdin.close()
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


def _one_line(text: bytes) -> bytes:
    if b"\n" in text or b"\r" in text:
        try:
            text = json.dumps(json.loads(text)).encode()
        except (ValueError, RecursionError) as error:
            raise ExecutionFailed(failure_pb2.FAILURE_KIND_INVALID_INPUT, f"the input is not JSON: {error}") from None
    return text + b"\n"
