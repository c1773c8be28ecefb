"""An authority of this run's own, and certificates from it as files, so that every measured byte crosses mutual TLS."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from antiphon_certs import Authority, Grants, Identity, Kind, new_key_and_csr

from . import workload

_LIFETIME = timedelta(hours=6)
_KINDS = {
    "orchestrator": Kind.ORCHESTRATOR,
    "sidecar": Kind.SIDECAR,
    "client": Kind.CLIENT,
    "operator": Kind.OPERATOR,
}


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of one PEM credential."""

    key: Path
    cert: Path
    bundle: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Roots, key, chain: the order in which gRPC takes them."""
        return self.bundle.read_bytes(), self.key.read_bytes(), self.cert.read_bytes()


def make(folder: Path) -> None:
    """An authority in `folder`/ca and a credential of each kind beside it."""
    authority = Authority.init(folder / "ca", workload.TRUST_DOMAIN)
    for name, kind in _KINDS.items():
        identity = Identity(workload.TRUST_DOMAIN, workload.NAMESPACE, kind, "bench")
        key, request = new_key_and_csr(identity)
        grants = Grants(("bench", "bench-*"), ("echo", "echo-*")) if kind is Kind.SIDECAR else None
        target = files(folder, name)
        target.key.parent.mkdir(mode=0o700)
        target.key.write_bytes(key)
        target.cert.write_bytes(authority.issue(request, identity, _LIFETIME, grants))
        target.bundle.write_bytes(authority.bundle_pem)


def files(folder: Path, name: str) -> Files:
    """The credential of one kind: orchestrator, sidecar, client, operator."""
    return Files(folder / name / "key.pem", folder / name / "cert.pem", folder / name / "bundle.pem")
