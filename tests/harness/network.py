"""What lies between processes: proxies on loopback that can cut the way from one process to another, in one direction.

    with Network() as network:
        address = network.forward("etcd-0", "127.0.0.1:2379")   # dial this one in its place
        network.know(replica)                                   # who dials is known by its pid
        network.cut("orchestrator-0", "etcd-0", Way.HOLD)       # what the first says does not arrive
        network.heal()

The rules of a direction are those of its (source, target): the names of processes, `SOMEBODY` for one that is not
known, `ANY` for all. Everything one side learns of the other is a message: a connection that is made, data, its end.
What a direction does not let through, the other side never learns, as with packets that are lost and sent again.

All of it runs on an event loop of a thread of its own, so that it goes on while a test waits for something.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self

from .process import Process
from .waiting import LIMIT

ANY = "*"
SOMEBODY = "somebody"
HOST = "127.0.0.1"
_CHUNK = 65536

# Of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
_SOCK_DIAG, _BY_FAMILY, _REQUEST = 4, 20, 1
_ANY_STATE, _NO_COOKIE = (1 << 32) - 1, (1 << 64) - 1
_INODE_AT = 16 + 4 + 48 + 16


class Way(enum.Enum):
    """What becomes of what is said in one direction."""

    PASS = "pass"
    HOLD = "hold"
    """It waits, and arrives when the way is free: a partition, whose packets are sent again. What waits is bounded by
    the buffers of the sockets."""
    DROP = "drop"
    """It is lost for good; a connection that lost something ends when the way is free."""
    RESET = "reset"
    """Connections are reset, and so is each new one."""


class _Direction:
    """From one process to another, over all their connections."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._changed = asyncio.Event()

    def set(self, way: Way) -> None:
        self.way = way
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def free(self, *held_by: Way) -> None:
        """Returns when its way is none of these."""
        while self.way in held_by:
            await self._changed.wait()

    async def changed(self) -> None:
        await self._changed.wait()


class Network:
    """Use it with `with`. Its methods may be called from any thread."""

    def __init__(self, latency: float = 0.0) -> None:
        """`latency`: seconds that everything that is said takes, in each direction."""
        self._latency = latency
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._directions: dict[tuple[str, str], _Direction] = {}
        self._rules: dict[tuple[str, str], Way] = {}
        self._known: list[Process] = []
        self.dialled: set[tuple[str, str]] = set()
        """Who has dialled whom."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()

    def forward(self, target: str, real: str, host: str = HOST, port: int = 0) -> str:
        """An address in front of `real`, which is the process `target`; nobody has to listen there yet."""
        address: str = self._wait(self._listen(target, real, host, port))
        return address

    def know(self, *processes: Process) -> None:
        """From now on connections of these are told apart by their names; each may have several lives."""
        self._known += processes

    def cut(self, source: str, target: str, way: Way) -> None:
        """What `source` says to `target` meets this from now on; the other direction stays as it is."""
        self._wait(self._apply({**self._rules, (source, target): way}))

    def part(self, one: str, other: str, way: Way = Way.HOLD) -> None:
        """Both directions."""
        self._wait(self._apply({**self._rules, (one, other): way, (other, one): way}))

    def heal(self) -> None:
        """Everything passes again, and what was held arrives."""
        self._wait(self._apply({}))

    # On the loop.

    def _wait(self, work: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(LIMIT)

    async def _listen(self, target: str, real: str, host: str, port: int) -> str:
        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._serve(target, real, reader, writer))
            self._connections.add(task)  # the loop itself keeps no task alive
            task.add_done_callback(self._connections.discard)
            task.add_done_callback(lambda _: _reset(writer))  # also of one that is ended before it has begun

        server = await asyncio.start_server(serve, host, port)
        self._servers.append(server)
        return f"{host}:{server.sockets[0].getsockname()[1]}"

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        # Also what comes to be while the rest is ended: connections that were accepted a moment ago.
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        # A transport that was aborted is closed by the loop in one of its next rounds.
        for _ in range(3):
            await asyncio.sleep(0)

    async def _apply(self, rules: dict[tuple[str, str], Way]) -> None:
        self._rules = rules
        for (source, target), direction in self._directions.items():
            direction.set(self._way(source, target))

    def _way(self, source: str, target: str) -> Way:
        for key in ((source, target), (source, ANY), (ANY, target)):
            if key in self._rules:
                return self._rules[key]
        return Way.PASS

    def _direction(self, source: str, target: str) -> _Direction:
        found = self._directions.get((source, target))
        if found is None:
            found = self._directions[source, target] = _Direction(self._way(source, target))
        return found

    async def _serve(self, target: str, real: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = self._who(writer)
        self.dialled.add((source, target))
        there, back = self._direction(source, target), self._direction(target, source)
        host, _, port = real.rpartition(":")
        await there.free(Way.HOLD, Way.DROP)
        if Way.RESET in (there.way, back.way):
            return
        try:
            real_reader, real_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await back.free(Way.HOLD, Way.DROP)
            return
        await _between(self._latency, (reader, real_writer, there), (real_reader, writer, back))

    def _who(self, writer: asyncio.StreamWriter) -> str:
        """The process at the other end of a connection that was made here."""
        theirs, ours = (writer.get_extra_info(name) for name in ("peername", "sockname"))
        inode = _inode(theirs, ours)
        if inode is None:
            return SOMEBODY
        for process in self._known:
            if process.alive and f"socket:[{inode}]" in _open_files(process.pid):
                return process.name
        return SOMEBODY


_Pump = tuple[asyncio.StreamReader, asyncio.StreamWriter, _Direction]


async def _between(latency: float, *pumps: _Pump) -> None:
    """Until both directions have ended, or one of them is reset."""
    pumping = [asyncio.ensure_future(_pump(latency, *pump)) for pump in pumps]
    breaking = [asyncio.ensure_future(_broken(direction)) for _, _, direction in pumps]
    try:
        waiting = {*pumping, *breaking}
        while not waiting.isdisjoint(pumping):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not done.isdisjoint(breaking):
                return
    finally:
        for task in (*pumping, *breaking):
            task.cancel()
        for _, writer, _ in pumps:
            _reset(writer)


async def _pump(
    latency: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: _Direction
) -> None:
    """Everything that one side says, and that it has ended, to the other."""
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            await asyncio.sleep(latency)
            await direction.free(Way.HOLD)
            if direction.way is not Way.PASS:
                await direction.free(Way.DROP)
                break
            writer.write(data)
            await writer.drain()
    await direction.free(Way.HOLD, Way.DROP)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _broken(direction: _Direction) -> None:
    """Returns when a direction resets its connections."""
    while direction.way is not Way.RESET:
        await direction.changed()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection at once; the other side gets a reset if it still listens."""
    found: Callable[..., Any] | None = getattr(writer.get_extra_info("socket"), "setsockopt", None)
    if found is not None:
        with suppress(OSError):
            found(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _open_files(pid: int) -> Iterator[str]:
    """What a process has open, as /proc shows it; nothing of one that has just ended."""
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):
                yield os.readlink(f"{folder}/{name}")


def _inode(local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """The number of the socket that is bound to `local` and talks to `remote`; None when it is gone.

    The kernel is asked by netlink (sock_diag(7)) for this one: /proc/net/tcp lists those of the whole machine, which
    takes long where much is going on.
    """
    ports = struct.pack(">HH", local[1], remote[1])
    addresses = b"".join(socket.inet_aton(host) + bytes(12) for host in (local[0], remote[0]))
    question = struct.pack("=BBxxI", socket.AF_INET, socket.IPPROTO_TCP, _ANY_STATE) + ports + addresses
    question += struct.pack("=IQ", 0, _NO_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(question), _BY_FAMILY, _REQUEST, 1, 0) + question)
        answer = kernel.recv(8192)
    (kind,) = struct.unpack_from("=H", answer, 4)
    return int(struct.unpack_from("=I", answer, _INODE_AT)[0]) if kind == _BY_FAMILY else None
