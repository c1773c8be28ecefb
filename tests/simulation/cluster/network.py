"""Connections between processes, and gRPC over them: unary calls and streams with the outcomes that grpc.aio has.

A connection keeps what is sent on it in order. Where a way is cut, in one direction or both, what is sent waits, as TCP
would have it, until the way is repaired or a keepalive gives the connection up. A process that is killed resets its
connections; one that is stopped keeps them.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from antiphon_certs import Grants

from tests.simulation.cluster.loop import NOBODY, Process, SimulatedLoop

Metadata = Sequence[tuple[str, str | bytes]]
KEEPALIVE = (3.0, 12.0)
"""Seconds after which a connection whose way is cut is given up: from, to."""


class Peer:
    """Who a process is to those that it calls. `serial`: of its certificate."""

    def __init__(self, process: Process, principal: str, grants: Grants, serial: int) -> None:
        self.process = process
        self.principal = principal
        self.grants = grants
        self.serial = serial


class Network:
    """All hosts. Every chance in it comes from `rng`; `slow` is the most seconds that a message usually takes."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.slow = 0.003
        self._cuts: dict[tuple[str, str], int] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._connections: dict[Connection, None] = {}
        self._greeted: dict[asyncio.Future[None], Process] = {}

    def listen(self, address: str, process: Process, serve: Callable[[ServerCall], Awaitable[None]]) -> None:
        """Calls to this address go there from now on."""
        self._endpoints[address] = Endpoint(process, serve)

    def endpoint(self, address: str) -> Endpoint | None:
        found = self._endpoints.get(address)
        return found if found is not None and found.process.alive and not found.closed else None

    def close(self, address: str, process: Process) -> None:
        """Nobody listens there any more, and every connection to that process ends."""
        found = self._endpoints.get(address)
        if found is not None and found.process is process:
            found.closed = True
        self.reset(process)

    def opened(self, connection: Connection) -> None:
        self._connections[connection] = None

    def closed(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    def reset(self, process: Process) -> None:
        """The process is gone, and its connections with it."""
        for connection in list(self._connections):
            if process in (connection.client, connection.server):
                connection.break_("the connection was reset")
        for answer, greeted in list(self._greeted.items()):
            if greeted is process and not answer.done():
                answer.set_exception(ConnectionError("the connection was reset"))

    async def hello(self, server: Process) -> None:
        """Waits until a process has answered. Raises ConnectionError when it goes before it does."""
        answer: asyncio.Future[None] = self.loop.create_future()
        self._greeted[answer] = server
        server.call(lambda: None if answer.done() else answer.set_result(None))
        try:
            await answer
        finally:
            del self._greeted[answer]

    def break_some(self) -> None:
        """Resets a connection, whichever."""
        if self._connections:
            self.rng.choice(list(self._connections)).break_("the connection was reset")

    def latency(self) -> float:
        """Seconds that one message takes."""
        return self.rng.random() * self.slow * (50 if self.rng.random() < 0.02 else 1)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts

    def cut(self, source: str, target: str) -> None:
        """Nothing arrives there from here until the way is repaired."""
        self._cuts[source, target] = self._cuts.get((source, target), 0) + 1
        patience = self.rng.uniform(*KEEPALIVE)
        self.loop.call_later(patience, self._give_up, source, target, context=NOBODY)

    def repair(self, source: str, target: str) -> None:
        left = self._cuts.pop((source, target), 0) - 1
        if left > 0:
            self._cuts[source, target] = left
            return
        for connection in list(self._connections):
            connection.flush()

    def repair_all(self) -> None:
        self._cuts.clear()
        for connection in list(self._connections):
            connection.flush()

    def _give_up(self, source: str, target: str) -> None:
        if not self.is_cut(source, target):
            return
        for connection in list(self._connections):
            if {source, target} == {connection.client.host, connection.server.host}:
                connection.break_("keepalive watchdog timeout")


class Endpoint:
    """A listening process."""

    def __init__(self, process: Process, serve: Callable[[ServerCall], Awaitable[None]]) -> None:
        self.process = process
        self.serve = serve
        self.closed = False


class Lane:
    """One direction of a connection."""

    def __init__(self, connection: Connection, source: str, target: str) -> None:
        self._connection = connection
        self._way = source, target
        self._clear_at = 0.0
        self._sent = 0
        self._held: dict[int, Callable[[], None]] = {}
        """By their number, what waits for the way to be repaired; not in order, as some was on its way already."""

    def send(self, arrive: Callable[[], None]) -> None:
        """Has something arrive at the other side, after all that was sent before."""
        self._sent += 1
        self._send(self._sent, arrive)

    def _send(self, number: int, arrive: Callable[[], None]) -> None:
        connection = self._connection
        network = connection.network
        if connection.broken:
            return
        if self._held or network.is_cut(*self._way):
            self._held[number] = arrive
            return
        self._clear_at = max(self._clear_at, network.loop.now + network.latency())
        network.loop.call_at(self._clear_at, self._arrive, number, arrive, context=NOBODY)

    def _arrive(self, number: int, arrive: Callable[[], None]) -> None:
        if self._connection.broken:
            return
        if self._held or self._connection.network.is_cut(*self._way):
            self._held[number] = arrive  # it was cut while this was on its way
        else:
            arrive()

    def flush(self) -> None:
        if not self._connection.network.is_cut(*self._way):
            held, self._held = self._held, {}
            for number in sorted(held):
                self._send(number, held[number])


class Connection:
    """Between two processes, with the calls on it."""

    def __init__(self, network: Network, client: Process, endpoint: Endpoint) -> None:
        self.network = network
        self.client = client
        self.server = endpoint.process
        self.endpoint = endpoint
        self.up = Lane(self, client.host, self.server.host)
        self.down = Lane(self, self.server.host, client.host)
        self.broken = False
        self.calls: dict[ClientCall, ServerCall] = {}
        network.opened(self)

    def break_(self, why: str) -> None:
        if self.broken:
            return
        self.broken = True
        self.network.closed(self)
        calls, self.calls = self.calls, {}
        for call, served in calls.items():
            call.over(error(grpc.StatusCode.UNAVAILABLE, why))
            served.abandon()

    def flush(self) -> None:
        self.up.flush()
        self.down.flush()


class Channel:
    """What stands for a `grpc.aio.Channel`: one connection at a time, made when it is needed."""

    def __init__(self, network: Network, who: Peer, address: str) -> None:
        self._network = network
        self._who = who
        self._address = address
        self._connection: Connection | None = None
        self._dialling: asyncio.Future[Connection] | None = None

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        if self._connection is not None:
            self._connection.break_("the channel was closed")

    async def connected(self) -> Connection:
        """Waits for the other side's hello, which one that is stopped does not say. Raises ConnectionError."""
        if self._connection is not None and not self._connection.broken:
            return self._connection
        network, client = self._network, self._who.process
        await asyncio.sleep(2 * network.latency())
        endpoint = network.endpoint(self._address)
        if endpoint is None:
            raise ConnectionError("connection refused")
        server = endpoint.process
        while network.is_cut(client.host, server.host) or network.is_cut(server.host, client.host):  # noqa: ASYNC110 - a network has no event
            await asyncio.sleep(0.2)
        if not server.alive:
            raise ConnectionError("the connection was reset")
        await network.hello(server)
        if network.endpoint(self._address) is not endpoint:
            raise ConnectionError("connection refused")
        if self._connection is None or self._connection.broken:
            self._connection = Connection(network, client, endpoint)
        return self._connection

    def unary_unary(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> Any:  # noqa: ASYNC109 - as grpc
            under_way = ClientCall(self, path, metadata, timeout, request_serializer, response_deserializer)
            try:
                under_way.send(request)
                async with asyncio.timeout(timeout):
                    answer = await under_way.read()
            except TimeoutError:
                raise error(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded") from None
            finally:
                under_way.cancel()
            if answer is grpc.aio.EOF:
                raise error(grpc.StatusCode.INTERNAL, "no answer")
            return answer

        return call

    def unary_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., ClientCall]:
        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> ClientCall:
            under_way = ClientCall(self, path, metadata, timeout, request_serializer, response_deserializer)
            under_way.send(request)
            return under_way

        return call

    def stream_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., ClientCall]:
        def call(metadata: Metadata = ()) -> ClientCall:
            return ClientCall(self, path, metadata, None, request_serializer, response_deserializer)

        return call

    @property
    def network(self) -> Network:
        return self._network

    @property
    def who(self) -> Peer:
        return self._who


class ClientCall:
    """A call as its caller has it."""

    def __init__(
        self, channel: Channel, path: str, metadata: Metadata, timeout: float | None, serialize: Any, deserialize: Any
    ) -> None:
        self.path = path
        self.metadata = tuple(metadata)
        self.deadline = None if timeout is None else channel.network.loop.now + timeout
        self._serialize = serialize or _same
        self._deserialize = deserialize or _same
        self._waiting: deque[bytes] = deque()
        self._read: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._end: grpc.aio.AioRpcError | bool = False
        """What it ended with; True: well; False: it goes on."""
        self._cancelled = False
        self._connection: Connection | None = None
        self._opening = channel.network.loop.create_task(self._open(channel))

    async def _open(self, channel: Channel) -> None:
        try:
            connection = await channel.connected()
        except ConnectionError as refused:
            self.over(error(grpc.StatusCode.UNAVAILABLE, str(refused)))
            return
        served = ServerCall(connection, self, channel.who)
        self._connection = connection
        connection.calls[self] = served
        connection.up.send(served.begin)
        while self._waiting:
            self._up(self._waiting.popleft())

    def send(self, message: Any) -> None:
        data = self._serialize(message)
        if self._connection is None:
            self._waiting.append(data)
        else:
            self._up(data)

    def _up(self, data: bytes) -> None:
        assert self._connection is not None
        if (served := self._connection.calls.get(self)) is not None:
            self._connection.up.send(lambda: served.take(data))

    async def write(self, message: Any) -> None:
        if self._end is not False or self._cancelled:
            raise asyncio.InvalidStateError("the call is over")
        self.send(message)

    async def read(self) -> Any:
        """The next message; grpc.aio.EOF at a good end. Raises AioRpcError, CancelledError."""
        while not self._read:
            if self._cancelled:
                raise asyncio.CancelledError
            if self._end is True:
                return grpc.aio.EOF
            if self._end is not False:
                raise self._end
            self._news.clear()
            await self._news.wait()
        return self._deserialize(self._read.popleft())

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def cancel(self) -> bool:
        if self._end is not False or self._cancelled:
            return False
        self._cancelled = True
        self._opening.cancel()
        if self._connection is not None and (served := self._connection.calls.pop(self, None)) is not None:
            self._connection.up.send(served.abandon)
        self._news.set()
        return True

    def came(self, data: bytes) -> None:
        self._read.append(data)
        self._news.set()

    def over(self, end: grpc.aio.AioRpcError | bool) -> None:
        if self._end is False:
            self._end = end
            if self._connection is not None:
                self._connection.calls.pop(self, None)
        self._news.set()


class ServerCall:
    """A call as its server has it."""

    def __init__(self, connection: Connection, caller: ClientCall, peer: Peer) -> None:
        self.path = caller.path
        self.metadata = caller.metadata
        self.peer = peer
        self._deadline = caller.deadline
        self._connection = connection
        self._caller = caller
        self._requests: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._abandoned = False

    def begin(self) -> None:
        if self._abandoned:
            return
        self._task = self._connection.server.spawn(self._run())

    async def _run(self) -> None:
        await self._connection.endpoint.serve(self)

    def take(self, data: bytes) -> None:
        self._requests.put_nowait(data)

    def abandon(self) -> None:
        """The caller has gone."""
        self._abandoned = True
        if self._task is not None and self._connection.server.alive:
            self._task.cancel()

    def remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._connection.network.loop.now)

    async def request(self) -> bytes:
        """The next message."""
        return await self._requests.get()

    async def requests(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._requests.get()

    def answer(self, data: bytes) -> None:
        caller = self._caller
        self._connection.down.send(lambda: caller.came(data))

    def end(self, end: grpc.aio.AioRpcError | bool) -> None:
        caller = self._caller
        self._connection.down.send(lambda: caller.over(end))


def error(code: grpc.StatusCode, said: str, trailers: Metadata = ()) -> grpc.aio.AioRpcError:
    """The end of a call that went wrong."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), said)


def _same(data: Any) -> Any:
    return data
