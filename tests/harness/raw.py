"""Calls that no SDK of ours would make: stubs without deadlines, foreign certificates, bytes that are no gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from antiphon_certs import ORCHESTRATOR_DNS_NAME
from google.rpc import error_details_pb2
from grpc_status import rpc_status

Pem = tuple[bytes, bytes, bytes]
"""Key, chain and bundle."""


@asynccontextmanager
async def channel(address: str, pem: Pem | None, *, bundle: bytes = b"") -> AsyncIterator[grpc.aio.Channel]:
    """A channel that shows a certificate, or none, and trusts `bundle` (the certificate's own by default)."""
    if pem is None:
        credentials = grpc.ssl_channel_credentials(bundle)
    else:
        credentials = grpc.ssl_channel_credentials(bundle or pem[2], pem[0], pem[1])
    options: list[tuple[str, Any]] = [
        ("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", 64 << 20),
    ]
    async with grpc.aio.secure_channel(address, credentials, options) as opened:
        yield opened


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of a refused call; every refusal of ours has exactly one."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what is asked of a Call
    assert status is not None, f"no details: {error.code()} {error.details()}"
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert len(infos) == 1 and infos[0].domain == "antiphon.v1"
    return str(infos[0].reason)


async def say(address: str, data: bytes) -> bytes:
    """Open a connection (host:port or a socket's path), say `data`, and return what comes back until it is closed."""
    if ":" in address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    else:
        reader, writer = await asyncio.open_unix_connection(address)
    try:
        with suppress(OSError):  # it may have been closed in the middle of a sentence
            writer.write(data)
            await writer.drain()
            writer.write_eof()
        async with asyncio.timeout(10):
            with suppress(OSError):
                return await reader.read(1 << 20)
        return b""
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
