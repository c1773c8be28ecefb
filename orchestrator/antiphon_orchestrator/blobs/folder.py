"""Blobs in a folder, through obstore: `<namespace>/<first two digits>/<digest>`.

Content is spooled, checked against its digest, synced and only then renamed into place, so a blob that can be seen is
whole, and a record that refers to it may be committed. What a crash leaves in the spool goes at the next opening.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import uuid4

from .port import BlobDigestMismatch, BlobInfo, BlobNotFound, BlobTooLarge

if TYPE_CHECKING:
    from obstore.store import LocalStore

_SPOOL = ".spool"
_SPOOL_AGE = timedelta(days=1)
_CHUNK_BYTES = 1_048_576
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FolderBlobs:
    """A `Blobs` in one folder, which may be shared. Use: `async with FolderBlobs(folder) as blobs`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __aenter__(self) -> FolderBlobs:
        """Makes the folder if needed, readable by this user only, and clears the spool of what is a day old."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        oldest = time.time() - _SPOOL_AGE.total_seconds()
        for left in (self._folder / _SPOOL).glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process may share the folder
                if left.stat().st_mtime < oldest:
                    left.unlink()
        return self

    @cached_property
    def _store(self) -> LocalStore:
        from obstore.store import LocalStore  # 6 MB that an orchestrator without large payloads does without

        return LocalStore(self._folder)

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held open."""

    async def put_stream(
        self, namespace: str, expected_digest: str | None, chunks: AsyncIterator[bytes], limit: int
    ) -> BlobInfo:
        """See `Blobs.put_stream`."""
        if expected_digest is not None:
            _path(namespace, expected_digest)
        spool = f"{_SPOOL}/{uuid4().hex}"
        content = _Measured(chunks, limit)
        try:
            await self._store.put_async(spool, content.chunks(), chunk_size=_CHUNK_BYTES, max_concurrency=2)
            digest = content.digest.hexdigest()
            if expected_digest not in (None, digest):
                raise BlobDigestMismatch(f"the content has the digest {digest}, not {expected_digest}")
            path = _path(namespace, digest)
            await asyncio.to_thread(_sync, self._folder / spool)
            await self._store.rename_async(spool, path)
            folders = (self._folder / path).parents[:3]  # each may have been made just now
            for folder in folders:
                await asyncio.to_thread(_sync, folder)
        except BaseException:
            await self._discard(spool)
            raise
        return await self.stat(namespace, digest)

    async def get_stream(self, namespace: str, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """See `Blobs.get_stream`."""
        size = (await self.stat(namespace, digest)).size
        if not 0 <= offset <= size:
            raise ValueError(f"offset {offset} is outside of the {size} bytes of {digest}")
        if offset < size:
            with _not_found(namespace, digest):
                found = await self._store.get_async(_path(namespace, digest), options={"range": {"offset": offset}})
            async for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    async def stat(self, namespace: str, digest: str) -> BlobInfo:
        """See `Blobs.stat`."""
        with _not_found(namespace, digest):
            found = await self._store.head_async(_path(namespace, digest))
        return BlobInfo(digest, found["size"], found["last_modified"])

    async def delete(self, namespace: str, digest: str) -> None:
        """See `Blobs.delete`."""
        await self._discard(_path(namespace, digest))

    async def list(self, namespace: str) -> AsyncIterator[BlobInfo]:
        """See `Blobs.list`."""
        async for batch in self._store.list(prefix=_folder(namespace)):
            for found in batch:
                yield BlobInfo(found["path"].rpartition("/")[2], found["size"], found["last_modified"])

    async def _discard(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._store.delete_async(path)


class _Measured:
    """Passes chunks on, taking their digest and stopping at a limit."""

    def __init__(self, chunks: AsyncIterator[bytes], limit: int) -> None:
        self._chunks = chunks
        self._limit = limit
        self._size = 0
        self.digest = hashlib.sha256()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self._size += len(chunk)
            if self._size > self._limit:
                raise BlobTooLarge(f"the content is larger than {self._limit} bytes")
            self.digest.update(chunk)
            yield chunk


@contextlib.contextmanager
def _not_found(namespace: str, digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BlobNotFound(f"namespace {namespace!r} has no blob {digest}") from error


def _folder(namespace: str) -> str:
    """One path segment a namespace: never empty, "." or "..", and never the spool."""
    if not namespace:
        raise ValueError("a blob needs a namespace")
    return quote(namespace, safe="").replace(".", "%2E")


def _path(namespace: str, digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a SHA-256 digest in lower-case hexadecimal")
    return f"{_folder(namespace)}/{digest[:2]}/{digest}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
