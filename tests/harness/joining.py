"""Joining a mesh with a token, as a sidecar or a command would, without keeping anything on disk."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import identity_service_pb2, identity_service_pb2_grpc
from antiphon_certs import JoinToken, new_key_and_csr

from .mesh import Mesh
from .raw import channel


async def new_token(mesh: Mesh, name: str = "joiner", **options: Any) -> JoinToken:
    """A token for a sidecar that may speak for the agent `joined`."""
    async with mesh.operator() as operator:
        answer = await operator.create_token("sidecar", name, agents=["joined"], capabilities=["work.*"], **options)
    return JoinToken.parse(answer.token)


async def join(mesh: Mesh, token: JoinToken, *, secret: bytes | None = None) -> identity_service_pb2.JoinResponse:
    """What joining with a fresh key answers."""
    _, request = new_key_and_csr(token.identity)
    async with channel(mesh.orchestrator.join_address, None, bundle=token.root_pem) as raw:
        stub: Any = identity_service_pb2_grpc.IdentityServiceStub(raw)
        answer: identity_service_pb2.JoinResponse = await stub.Join(
            identity_service_pb2.JoinRequest(
                token_id=token.token_id, secret=(secret or token.secret).hex(), signing_request=request.decode()
            ),
            timeout=30,
        )
        return answer
