"""Payloads by digest: the port. A blob is named by the SHA-256 of its content, within one namespace.

BlobError
├── BlobNotFound        no such blob in this namespace
├── BlobDigestMismatch  the content is not what its sender said it is; nothing was kept
├── BlobTooLarge        the content exceeds its limit; nothing was kept
├── BlobCorrupt         what is kept is not what was put there
└── BlobsUnavailable    where blobs are kept cannot be used now
    └── BlobsFull       there is no room
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class BlobError(Exception):
    """Root of everything a blob store raises."""


class BlobNotFound(BlobError):
    """No such blob in this namespace."""


class BlobDigestMismatch(BlobError):
    """The content is not what its sender said it is. Nothing was kept."""


class BlobTooLarge(BlobError):
    """The content exceeds its limit. Nothing was kept."""


class BlobCorrupt(BlobError):
    """What is kept is no longer what was put there. Somebody must look at where it is kept."""


class BlobsUnavailable(BlobError):
    """Where blobs are kept does not answer, or refuses us. Every call may be repeated."""


class BlobsFull(BlobsUnavailable):
    """There is no room for it. Nothing was kept."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """`digest`: SHA-256 in lower-case hexadecimal. `size` in bytes. `modify_time`: when it was last put."""

    digest: str
    size: int
    modify_time: datetime


class Blobs(Protocol):
    """What every blob store offers. Every method may raise BlobsUnavailable; a malformed digest or an empty namespace
    is a ValueError."""

    async def put_stream(
        self, namespace: str, expected_digest: str | None, chunks: AsyncIterator[bytes], limit: int
    ) -> BlobInfo:
        """Keeps a blob of at most `limit` bytes, durably; it appears whole or not at all. Raises BlobDigestMismatch,
        BlobTooLarge, BlobsFull, and what `chunks` raises. Putting a blob again renews its modify time."""

    def get_stream(self, namespace: str, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yields the content from `offset` on. Raises BlobNotFound; an offset beyond the end is a ValueError.

        From 0 on its digest is checked: the end is held back until it is right, else BlobCorrupt is raised. Whoever
        goes on from somewhere else has the beginning, and checks the whole.
        """

    async def stat(self, namespace: str, digest: str) -> BlobInfo:
        """Raises BlobNotFound."""

    async def delete(self, namespace: str, digest: str) -> None:
        """Deletes a blob. That there is none is no error."""

    def list(self, namespace: str) -> AsyncIterator[BlobInfo]:
        """Yields every blob of a namespace, in no order."""

    async def use(self, namespace: str, digest: str) -> BlobInfo:
        """Whoever is about to record a reference calls this first: the blob counts as used now, and is there.

        Raises BlobNotFound.
        """

    def all(self) -> AsyncIterator[tuple[str, BlobInfo]]:
        """Yields every blob with its namespace, in no order."""

    async def remove_unused(self, namespace: str, digest: str, before: datetime) -> bool:
        """Deletes a blob that was neither put nor used since `before`, whoever may be using it at this very moment.

        Returns whether it did.
        """

    async def recover(self) -> None:
        """Puts back what a crash left half removed."""

    async def probe(self) -> str:
        """Writes, reads and deletes something small, and says where."""

    async def identity(self, *, make: bool) -> str:
        """The id of the place, the same for whoever uses it, kept beside the blobs. "": it has none, and is not to be
        given one (`make`). Raises BlobCorrupt when what is kept there is no id."""
