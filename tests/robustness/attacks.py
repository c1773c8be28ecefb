"""What callers do that mean harm, each by its name: a program, so that what it costs is not taken from who is honest.

It says `ready` once all of it is under way, answers each line of its input with one line of JSON, how often it was told
what, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from antiphon.mesh.v1 import mesh_service_pb2_grpc
from antiphon.v1 import graph_pb2, run_service_pb2, run_service_pb2_grpc

from tests.harness.raw import Pem, channel, reason_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4)) + bytes(5)
"""And settings, all of them the usual ones."""

PAUSE = 0.05
"""Seconds between two calls of one of those who call again and again: together some hundred a second."""

SAME = run_service_pb2.SubmitRunsRequest(
    submissions=256
    * [
        run_service_pb2.SubmitRunRequest(
            request_id="the same",
            inline=graph_pb2.Graph(name="x", tasks=[graph_pb2.GraphTask(id="t", capability="work.nobody@1")]),
        )
    ]
)
"""One submission, again and again."""


class Target:
    """Whom it is about: addresses, the attacker's certificate, and a run that does not end."""

    def __init__(self, address: str, join_address: str, folder: Path, run_id: str) -> None:
        self.address = address
        self.join_address = join_address
        self.run_id = run_id
        self.pem: Pem = tuple((folder / name).read_bytes() for name in ("key.pem", "chain.pem", "bundle.pem"))  # type: ignore[assignment]
        self.tls = ssl.create_default_context(cadata=self.pem[2].decode())
        self.tls.check_hostname = False
        (folder / "both.pem").write_bytes(self.pem[0] + self.pem[1])
        self.tls.load_cert_chain(folder / "both.pem")
        self.tls.set_alpn_protocols(["h2"])


async def again_and_again(
    told: Counter[str], count: int, one: Callable[[], Awaitable[str]], begun: asyncio.Event, pause: float = PAUSE
) -> None:
    """So many at once, each of which begins anew when it was told something; `begun` once all of them have."""

    left = count

    async def repeat() -> None:
        nonlocal left
        while True:
            task = asyncio.ensure_future(one())
            left -= 1
            if left <= 0:
                begun.set()
            told[await task] += 1
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(repeat())


async def _closed(target: Target, tls: ssl.SSLContext | None, first: bytes, then: bytes) -> str:
    """Opens a connection, says what is `first`, then one byte of `then` after another, and waits for its end."""
    host, port = target.address.split(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
    except OSError:
        return "refused"
    try:
        writer.write(first)
        for byte in then:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.2)
        while await reader.read(65_536):
            pass
    except OSError:
        pass
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return "closed"


async def silent_sockets(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Connections that say nothing."""
    await again_and_again(told, 300, lambda: _closed(target, None, b"", b""), begun)


async def silent_tls(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Connections of somebody who is known, and says nothing of HTTP/2."""
    await again_and_again(told, 50, lambda: _closed(target, target.tls, b"", b""), begun)


async def slow_headers(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Connections on which the headers of a call come byte by byte."""
    frame = struct.pack(">I", 16_000)[1:] + bytes((1, 0)) + struct.pack(">I", 1) + b"\x83" * 16_000
    await again_and_again(told, 50, lambda: _closed(target, target.tls, PREFACE, frame), begun)


async def large_metadata(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Calls with 200 KiB of metadata."""
    async with channel(target.address, target.pem) as opened:
        stub: Any = run_service_pb2_grpc.RunServiceStub(opened)
        request = run_service_pb2.GetRunRequest(run_id=target.run_id)

        async def one() -> str:
            return await _told(stub.GetRun(request, timeout=20, metadata=(("x-large", "y" * 204_800),)))

        await again_and_again(told, 4, one, begun)


async def unread_watches(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Watches that nobody reads, far more than one may have; those beyond are opened again and again."""
    async with channel(target.address, target.pem) as opened, channel(target.address, target.pem) as other:
        stubs: list[Any] = [run_service_pb2_grpc.RunServiceStub(each) for each in (opened, other)]
        request = run_service_pb2.WatchRunRequest(run_id=target.run_id)

        async def one() -> str:
            call = stubs[told.total() % 2].WatchRun(request)
            code = await call.code()  # it comes when the stream ends, whether or not it is read
            return await _told(call.read()) if code is not grpc.StatusCode.OK else "OK"

        await again_and_again(told, 200, one, begun, pause=1.0)


async def unread_submissions(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Streams of submissions, always the same one, whose answers nobody reads."""
    async with channel(target.address, target.pem) as opened:
        stub: Any = run_service_pb2_grpc.RunServiceStub(opened)

        async def one() -> str:
            call = stub.SubmitRuns()
            try:
                async with asyncio.timeout(5):
                    while True:
                        await call.write(SAME)
            except TimeoutError:
                return "not read any further"
            except grpc.aio.AioRpcError as error:
                return reason_of(error)
            finally:
                call.cancel()

        await again_and_again(told, 2, one, begun)


async def many_submissions(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Streams of submissions, always the same one, as quick as they are answered."""
    async with channel(target.address, target.pem) as opened:
        stub: Any = run_service_pb2_grpc.RunServiceStub(opened)

        async def one() -> str:
            call = stub.SubmitRuns()

            async def write() -> None:
                while True:
                    await call.write(SAME)

            async with asyncio.TaskGroup() as group:
                writer = group.create_task(write())
                while (answer := await call.read()) is not grpc.aio.EOF:
                    told[answer.results[0].WhichOneof("result")] += 1
                writer.cancel()
            return "ended"

        await again_and_again(told, 2, one, begun)


async def attaches_of_strangers(target: Target, told: Counter[str], begun: asyncio.Event) -> None:
    """Sidecars without a certificate, and with that of a client."""
    async with (
        channel(target.join_address, None, bundle=target.pem[2]) as nobody,
        channel(target.address, target.pem) as client,
    ):
        stubs: list[Any] = [mesh_service_pb2_grpc.MeshServiceStub(each) for each in (nobody, client)]

        async def one() -> str:
            # It says nothing: it is refused before it is read, and grpc.aio muddles a write with that.
            return await _told(stubs[told.total() % 2].Attach().read())

        await again_and_again(told, 4, one, begun)


async def _told(call: Awaitable[Any]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        with suppress(AssertionError):
            return reason_of(error)
        return f"{error.code().name}: {error.details()}"
    return "OK"


Attack = Callable[[Target, Counter[str], asyncio.Event], Awaitable[None]]
ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        silent_sockets,
        silent_tls,
        slow_headers,
        large_metadata,
        unread_watches,
        unread_submissions,
        many_submissions,
        attaches_of_strangers,
    )
}


async def main(targets: dict[str, Target]) -> None:
    """Plays attacks, each by somebody else, until the input ends."""
    told: dict[str, Counter[str]] = {name: Counter() for name in targets}
    begun = {name: asyncio.Event() for name in targets}
    attacks = [asyncio.ensure_future(ATTACKS[name](targets[name], told[name], begun[name])) for name in targets]
    ready = asyncio.gather(*(event.wait() for event in begun.values()))
    waited: list[asyncio.Future[Any]] = [ready, *attacks]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    for attack in attacks:
        if attack.done():
            attack.result()
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(told), flush=True)
    for attack in attacks:
        attack.cancel()
    await asyncio.wait(attacks)


if __name__ == "__main__":
    os.nice(10)  # it stands for other machines
    address, join_address, folder, run_id, *names = sys.argv[1:]
    asyncio.run(main({name: Target(address, join_address, Path(folder) / name, run_id) for name in names}))
