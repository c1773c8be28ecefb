"""The part of the client that revokes certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator

from antiphon.v1 import identity_service_pb2

from ._client_base import ClientBase


class IdentityCalls(ClientBase):
    """Revocations of certificates. For operators."""

    async def revoke_certificates(
        self, kind: str = "", name: str = "", *, serial: str = "", cause: str, namespace: str = ""
    ) -> None:
        """End what certificates may do, on live connections too: all of an identity so far, or one by its serial.

        An identity, by `kind` (sidecar, client or operator) and `name`, comes back with a token that is made later.
        `serial` is hexadecimal; `cause` is for people, and told to whoever is refused. `namespace`: the caller's when
        empty. Raises `RevocationsExhausted`.
        """
        request = identity_service_pb2.RevokeCertificatesRequest(namespace=namespace, cause=cause)
        if serial:
            request.serial = serial
        else:
            request.identity.kind, request.identity.name = kind, name
        await self._ask(lambda to: to.identity.RevokeCertificates, request)

    def list_revocations(self, *, page_size: int = 0) -> AsyncIterator[identity_service_pb2.Revocation]:
        """What is revoked in the caller's namespace, until nothing is left of it."""
        request = identity_service_pb2.ListRevocationsRequest(page_size=page_size)
        return self._pages(lambda to: to.identity.ListRevocations, request, lambda page: page.revocations)
