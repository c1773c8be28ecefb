"""R, the yardstick: plain unary grpc.aio over mutual TLS between two processes, 256 bytes each way.

Run as a program it is the server. Same library, same certificates and same machine as the product; no interceptor, no
deadline, nothing but a protobuf message that comes back.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from antiphon.v1.payload_pb2 import Payload
from antiphon_certs import ORCHESTRATOR_DNS_NAME

from . import identity, process
from .statistic import percentile_ms

METHOD = "/bench.Echo/Call"
IN_FLIGHT = 64
BYTES = 256


@dataclass(slots=True)
class Reference:
    """All rounds of a run together."""

    calls: int = 0
    seconds: float = 0.0
    sequential: list[float] = field(default_factory=list)

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.seconds

    @property
    def p50_ms(self) -> float:
        return percentile_ms(self.sequential, 0.5)

    @property
    def p99_ms(self) -> float:
        return percentile_ms(self.sequential, 0.99)


async def measure(folder: Path, into: Reference, *, seconds: float, sequential: int) -> None:
    """One round: `sequential` calls one after another, then IN_FLIGHT at a time for `seconds`."""
    address = folder / "r.address"
    address.unlink(missing_ok=True)
    async with process.child("R", ["-m", "benchmarks.r", str(folder)], folder / "r.log") as server:
        await server.until(address.exists, "no address")
        credentials = grpc.ssl_channel_credentials(*identity.files(folder, "client").read())
        options = [("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME)]
        async with grpc.aio.secure_channel(address.read_text(), credentials, options=options) as channel:
            call = channel.unary_unary(
                METHOD, request_serializer=Payload.SerializeToString, response_deserializer=Payload.FromString
            )
            payload = Payload(inline=b"x" * (BYTES - 3))  # 3: the field's tag and length
            for _ in range(50):
                await call(payload)
            for _ in range(sequential):
                begun = time.perf_counter()
                await call(payload)
                into.sequential.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            end = begun + seconds

            async def keep_calling() -> None:
                while time.perf_counter() < end:
                    await call(payload)
                    into.calls += 1

            await asyncio.gather(*(keep_calling() for _ in range(IN_FLIGHT)))
            into.seconds += time.perf_counter() - begun


async def serve(folder: Path) -> None:
    """Answers every call with its request, until SIGTERM."""

    async def echo(request: Payload, context: object) -> Payload:
        return request

    handler = grpc.unary_unary_rpc_method_handler(
        echo, request_deserializer=Payload.FromString, response_serializer=Payload.SerializeToString
    )
    service, _, method = METHOD.strip("/").partition("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    roots, key, chain = identity.files(folder, "orchestrator").read()
    credentials = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    scratch = folder / "r.address.new"
    scratch.write_text(f"127.0.0.1:{port}")
    scratch.rename(folder / "r.address")
    await stopped.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
