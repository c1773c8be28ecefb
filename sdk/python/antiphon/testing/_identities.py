"""The authority of a mesh of tests, which can certify anybody as anything: also those whom the product would not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from antiphon_certs import Authority, CertificateFiles, Grants, Identity, Kind, new_key_and_csr

from antiphon._credentials import Credentials

_HOUR = timedelta(hours=1)


class Identities:
    """A folder as `antiphon certs init` makes it, and the certificates of everybody else beside it."""

    def __init__(self, folder: Path, domain: str, namespace: str) -> None:
        self.folder = folder
        self.domain = domain
        self.namespace = namespace
        self.authority = Authority.init(folder, domain)
        self._count = 0

    def issue(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        agents: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        lifetime: timedelta = _HOUR,
        now: datetime | None = None,
    ) -> tuple[bytes, bytes, bytes]:
        """Key, chain and bundle, PEM; in the namespace of the mesh unless it is told another."""
        identity = Identity(self.domain, namespace or self.namespace, kind, name)
        key, request = new_key_and_csr(identity)
        grants = Grants(tuple(agents), tuple(capabilities))
        return key, self.authority.issue(request, identity, lifetime, grants, now=now), self.authority.bundle_pem

    def store(self, folder: Path, pem: tuple[bytes, bytes, bytes]) -> Credentials:
        """Keep a credential as the commands do, in place of an earlier one."""
        CertificateFiles(folder).store(*pem)
        return Credentials.from_folder(folder)

    def client(self, name: str, *, kind: Kind = Kind.CLIENT, namespace: str = "") -> Credentials:
        """A credential folder of its own for a client or operator."""
        self._count += 1
        return self.store(self.folder.parent / f"id-{self._count}-{name}", self.issue(kind, name, namespace=namespace))
