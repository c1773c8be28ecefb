"""The network of these tests does to connections what it says: else all tests that cut it would prove nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from antiphon import Client

from tests.harness import Mesh, Process, eventually
from tests.harness.network import ANY, SOMEBODY, Network, Way

DIAL = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"hello")
connection.recv(100)
time.sleep(60)
"""
MOMENT = 0.3


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
async def heard() -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of a server that answers in capitals, and what it has heard."""
    heard: list[bytes] = []
    talking: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(writer)
        try:
            while data := await reader.read(100):
                heard.append(data)
                writer.write(data.upper())
            heard.append(b"")
        except ConnectionResetError:
            heard.append(b"reset")
        writer.close()
        talking.remove(writer)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
        await eventually(lambda: not talking)


class Talk:
    """A connection through the network."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, address: str) -> Talk:
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def nothing_comes(self) -> bool:
        """Whether it stays silent for a moment: a quick answer would fail, a slow machine passes."""
        try:
            async with asyncio.timeout(MOMENT):
                return not await self.reader.readexactly(1)
        except TimeoutError:
            return True


async def test_what_is_held_arrives_later_and_the_other_direction_goes_on(
    network: Network, heard: tuple[str, list[bytes]]
) -> None:
    address, said = heard
    talk = await Talk.to(network.forward("server", address))
    talk.writer.write(b"a")
    assert await talk.reader.readexactly(1) == b"A"
    network.cut("server", SOMEBODY, Way.HOLD)
    talk.writer.write(b"b")
    await eventually(lambda: said == [b"a", b"b"])
    assert await talk.nothing_comes()
    network.heal()
    assert await talk.reader.readexactly(1) == b"B"
    network.cut(SOMEBODY, "server", Way.HOLD)
    talk.writer.write(b"c")
    talk.writer.close()
    later = await Talk.to(network.forward("server", address))
    later.writer.write(b"d")
    assert await later.nothing_comes()
    assert said == [b"a", b"b"], "neither what was said, nor that it has ended, nor a new connection is known there"
    network.heal()
    later.writer.close()
    await eventually(lambda: {b"c", b"d"} < set(said) and len(said) == 6)  # the two ends are told as well


async def test_what_is_dropped_never_arrives_and_its_connection_ends(
    network: Network, heard: tuple[str, list[bytes]]
) -> None:
    address, said = heard
    talk = await Talk.to(network.forward("server", address))
    talk.writer.write(b"a")
    assert await talk.reader.readexactly(1) == b"A"
    network.cut(SOMEBODY, "server", Way.DROP)
    talk.writer.write(b"b")
    assert await talk.nothing_comes()
    network.heal()
    with suppress(ConnectionResetError):
        assert await talk.reader.read() == b""
    assert b"b" not in said
    talk.writer.close()


async def test_a_reset_ends_connections_and_refuses_new_ones_until_it_is_over(
    network: Network, heard: tuple[str, list[bytes]]
) -> None:
    address, _ = heard
    proxy = network.forward("server", address)
    talk = await Talk.to(proxy)
    talk.writer.write(b"a")
    assert await talk.reader.readexactly(1) == b"A"
    network.part(ANY, "server", Way.RESET)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await talk.reader.readexactly(1)
    talk.writer.close()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        refused = await Talk.to(proxy)  # it may be reset before it is known to be there
        try:
            await refused.reader.readexactly(1)
        finally:
            refused.writer.close()
    network.heal()
    again = await Talk.to(proxy)
    again.writer.write(b"a")
    assert await again.reader.readexactly(1) == b"A"
    again.writer.close()


async def test_processes_are_told_apart_by_who_dials(
    network: Network, heard: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    address, said = heard
    port = network.forward("server", address).rpartition(":")[2]
    dialler = Process("dialler", tmp_path)
    network.know(dialler)
    network.cut("dialler", "server", Way.HOLD)
    dialler.spawn([sys.executable, "-c", DIAL, port], {})
    try:
        await eventually(lambda: ("dialler", "server") in network.dialled)
        mine = await Talk.to(f"127.0.0.1:{port}")
        mine.writer.write(b"mine")
        assert await mine.reader.readexactly(4) == b"MINE"
        mine.writer.close()
        assert b"hello" not in said
        network.heal()
        await eventually(lambda: b"hello" in said)
    finally:
        dialler.close()


async def test_a_client_connects_where_each_message_takes_half_a_second() -> None:
    """Four of them are a handshake: whoever gave up an attempt sooner would never connect."""
    with Network(latency=0.5) as network, Mesh() as mesh:
        address = network.forward("orchestrator", mesh.orchestrator.address)
        connected = Client.connect(address=address, credentials=mesh.ca.client("far"), timeout=timedelta(seconds=60))
        async with connected as client:
            assert [run async for run in client.list_runs()] == []
