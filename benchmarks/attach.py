"""What an attached sidecar costs an orchestrator: a thousand streams of as many identities, each with one agent.

The streams are bare, opened by this process, since a thousand sidecars would measure this machine's memory.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.mesh.v1 import mesh_service_pb2_grpc
from antiphon.v1 import registry_pb2
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Authority, Grants, Identity, Kind, new_key_and_csr

from . import workload
from .process import Child, cpu, memory

AT_ONCE = 32
_OPTIONS = (("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME), ("grpc.use_local_subchannel_pool", 1))
_LIMIT = 180.0


async def measure(folder: Path, orchestrator: Child, address: str, sidecars: int) -> dict[str, float]:
    """Keys: sidecars, seconds (until the last was welcomed), cpu_ms and memory_kb of the orchestrator for each."""
    authority = Authority.load(folder / "ca")
    credentials = [_credentials(authority, number) for number in range(sidecars)]
    turns = asyncio.Semaphore(AT_ONCE)
    async with AsyncExitStack() as stack:

        async def attach(number: int) -> None:
            async with turns, asyncio.timeout(_LIMIT):
                channel = grpc.aio.secure_channel(address, credentials[number], _OPTIONS)
                await stack.enter_async_context(channel)
                stub: Any = mesh_service_pb2_grpc.MeshServiceStub(channel)
                call = stub.Attach(wait_for_ready=True)  # a busy machine may be too slow for a handshake at first
                await call.write(_hello(number))
                first = await call.read()
                if not isinstance(first, mesh.AttachResponse) or not first.HasField("welcome"):
                    raise ConnectionError(f"stream {number} of {sidecars} was not welcomed")
                calls.append(call)

        calls: list[Any] = []
        used, resident, begun = cpu(orchestrator.pid), memory(orchestrator.pid)[0], time.perf_counter()
        await asyncio.gather(*map(attach, range(sidecars)))
        seconds = time.perf_counter() - begun
        return {
            "sidecars": sidecars,
            "seconds": seconds,
            "cpu_ms": (cpu(orchestrator.pid) - used) / sidecars * 1e3,
            "memory_kb": (memory(orchestrator.pid)[0] - resident) / sidecars * 1024,
        }


def _credentials(authority: Authority, number: int) -> grpc.ChannelCredentials:
    identity = Identity(workload.TRUST_DOMAIN, workload.NAMESPACE, Kind.SIDECAR, f"crowd-{number}")
    key, request = new_key_and_csr(identity)
    certificate = authority.issue(request, identity, timedelta(hours=1), Grants(("crowd-*",), ("crowd.*",)))
    return grpc.ssl_channel_credentials(authority.bundle_pem, key, certificate)


def _hello(number: int) -> mesh.AttachRequest:
    request = mesh.AttachRequest()
    hello = request.hello
    hello.incarnation, hello.generation, hello.protocol_version = secrets.token_hex(8), 1, 1
    name = f"crowd-{number}"
    agent = registry_pb2.AgentDescription(name=name, concurrency=1)
    agent.capabilities.append(workload.capability())
    agent.capabilities[0].name = "crowd.echo"
    hello.agents.append(agent)
    hello.windows.add(agent=name, generation=1, slots=1)
    return request
