"""The authority of a test mesh, which can certify anybody as anything: also those whom the product would not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from antiphon import Credentials
from antiphon_certs import Authority, CertificateFiles, Grants, Identity, Kind, Profile, new_key_and_csr

DOMAIN = "mesh.test"
NAMESPACE = "team-a"
HOUR = timedelta(hours=1)


class Ca:
    """A folder as `antiphon certs init` makes it, and the certificates of everybody else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.init(folder, DOMAIN)
        self._count = 0

    def issue(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = NAMESPACE,
        agents: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        lifetime: timedelta = HOUR,
        now: datetime | None = None,
    ) -> tuple[bytes, bytes, bytes]:
        """Key, chain and bundle, PEM."""
        identity = Identity(DOMAIN, namespace, kind, name)
        key, request = new_key_and_csr(identity)
        grants = Grants(tuple(agents), tuple(capabilities))
        return key, self.authority.issue(request, identity, lifetime, grants, now=now), self.authority.bundle_pem

    def store(self, folder: Path, pem: tuple[bytes, bytes, bytes]) -> Credentials:
        """Keep a credential as the commands do, in place of an earlier one."""
        CertificateFiles(folder).store(*pem)
        return Credentials.from_folder(folder)

    def client(self, name: str, *, kind: Kind = Kind.CLIENT, namespace: str = NAMESPACE) -> Credentials:
        """A credential folder of its own for a client or operator."""
        self._count += 1
        return self.store(self.folder.parent / f"id-{self._count}-{name}", self.issue(kind, name, namespace=namespace))

    def join_sidecar(self, state: Path, name: str, address: str, pem: tuple[bytes, bytes, bytes]) -> None:
        """Make a sidecar's state folder as it is after a join, without a token."""
        folder = state / "profiles" / "sidecar"
        self.store(folder / "credential", pem)
        Profile(folder, (address,), (address,), DOMAIN, NAMESPACE).save()
