"""The authority of a test mesh, which can certify anybody as anything: also those whom the product would not."""

from __future__ import annotations

from pathlib import Path

from antiphon.testing._identities import Identities
from antiphon_certs import Profile

DOMAIN = "mesh.test"
NAMESPACE = "team-a"


class Ca(Identities):
    """A folder as `antiphon certs init` makes it, and the certificates of everybody else."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, DOMAIN, NAMESPACE)

    def join_sidecar(
        self, state: Path, name: str, address: str, pem: tuple[bytes, bytes, bytes], *, join_address: str = ""
    ) -> None:
        """Make a sidecar's state folder as it is after a join, without a token."""
        folder = state / "profiles" / "sidecar"
        self.store(folder / "credential", pem)
        Profile(folder, (address,), (join_address or address,), DOMAIN, NAMESPACE).save()
