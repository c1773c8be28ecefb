"""Blobs wherever obstore reaches, a folder or an object store: `<namespace>/<first two digits>/<digest>`.

Content is spooled, checked against its digest, and only then given its name, so a blob that can be seen is whole, and a
record that refers to it may be committed; in a folder it is synced before. What a crash leaves in the spool goes when
it is a day old. Content goes through in pieces, each a request with a deadline of its own, so that a slow reader or
sender costs no memory and keeps no request open.

obstore is loaded with the first blob: 6 MB that an orchestrator without large payloads does without.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from .port import BlobCorrupt, BlobDigestMismatch, BlobInfo, BlobNotFound, BlobsFull, BlobsUnavailable, BlobTooLarge

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_SPOOL = ".spool"
_USED = ".used"
"""Empty objects, by namespace and digest; when one was written is when its blob was last used."""
_TRASH = ".trash"
"""Blobs under removal, by namespace and digest."""
_IDENTITY = ".identity"
"""Tells this place from any other."""
_YOUNG = timedelta(minutes=10)
"""So long after it was put a blob is safe anyway, and its use is not noted."""
_SPOOL_AGE = timedelta(days=1)
_READ_BYTES = 4 << 20
_PART_BYTES = 5 << 20
"""Of an upload; object stores take no smaller parts."""
_CHUNK_BYTES = 1 << 20
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(rb"[0-9a-f]{32}")
_BLOB = re.compile(r"([^./][^/]*)/([0-9a-f]{2})/(\2[0-9a-f]{62})")
KEPT_FREE = 128 << 20
"""Bytes of a folder's disk that payloads leave free. More than what is kept back for runs that go on: whoever uploads
without an end is refused before anything else is."""
_PAGE = 1000
"""Files of a folder that one look into it brings."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCHEMES = ("file", "s3", "gs", "azure")
_REQUEST = timedelta(seconds=15)
_CONNECT = timedelta(seconds=5)
_RETRIES = 4


def check_url(url: str) -> None:
    """Raises ValueError, which holds no secret, for what is no place of payloads."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in _SCHEMES:
        raise ValueError("write file:///FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or azure://CONTAINER/PREFIX")
    if parts.scheme == "file" and (parts.netloc or len(parts.path) < 2):
        raise ValueError("write file:///FOLDER")
    if parts.scheme != "file" and not parts.netloc:
        raise ValueError(f"write {parts.scheme}://BUCKET/PREFIX")
    if "@" in parts.netloc or parts.query:
        raise ValueError("credentials and options of payloads come from the environment; write the URL without")


class ObjectBlobs:
    """A `Blobs` at a checked URL, which others may share. Use: `async with ObjectBlobs(url) as blobs`.

    Endpoint, region and credentials come from the variables that obstore knows (AWS_…, GOOGLE_…, AZURE_…).
    `request`: the deadline of one request; it is tried again for twice as long. `kept_free`: bytes that the disk of a
    folder keeps free.
    """

    def __init__(self, url: str, *, request: timedelta = _REQUEST, kept_free: int = KEPT_FREE) -> None:
        self._url = url
        self._request = request
        self._kept_free = kept_free
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self._tidied = False

    async def __aenter__(self) -> ObjectBlobs:
        """Makes the folder if needed, readable by this user only, and clears the spool of what is a day old. Raises
        BlobsUnavailable when there can be none."""
        if self._folder is not None:
            try:
                self._begin(self._folder)
            except OSError as error:
                unfit = f"{self._folder} cannot be used as a folder: {error.strerror}"
                raise BlobsUnavailable(f"payloads: {unfit}; give another one") from error
            self._tidied = True
        return self

    def _begin(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        oldest = time.time() - _SPOOL_AGE.total_seconds()
        for left in (folder / _SPOOL).glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process may share the folder
                if left.stat().st_mtime < oldest:
                    left.unlink()

    @cached_property
    def _store(self) -> ObjectStore:
        from obstore.store import LocalStore, from_url

        if self._folder is not None:
            return LocalStore(self._folder)
        with _told():
            return from_url(
                self._url,
                client_options={
                    "timeout": self._request,
                    "connect_timeout": min(_CONNECT, self._request),
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": 2 * self._request},
            )

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held open."""

    async def put_stream(
        self, namespace: str, expected_digest: str | None, chunks: AsyncIterator[bytes], limit: int
    ) -> BlobInfo:
        """See `Blobs.put_stream`."""
        if expected_digest is not None:
            _path(namespace, expected_digest)
        await self._tidy()
        spool = f"{_SPOOL}/{uuid4().hex}"
        content = _Measured(chunks, limit, self._look_for_room)
        part = _PART_BYTES if self._folder is None else _CHUNK_BYTES
        try:
            with _told():
                await self._store.put_async(spool, content.chunks(), chunk_size=part, max_concurrency=2)
            digest = content.digest.hexdigest()
            if expected_digest not in (None, digest):
                raise BlobDigestMismatch(f"the content has the digest {digest}, not {expected_digest}")
            path = _path(namespace, digest)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder / spool)
            again = await self._time(path) != _LONG_AGO
            with _told():
                await self._store.rename_async(spool, path)
                if again:  # it may be just the one under removal
                    await self._store.put_async(f"{_USED}/{path}", b"")
            if self._folder is not None:
                for folder in (self._folder / path).parents[:3]:  # each may have been made just now
                    await asyncio.to_thread(_sync, folder)
        except BaseException:
            with contextlib.suppress(BlobsUnavailable):  # what is left goes with the spool; the reason is told
                await self._discard(spool)
            raise
        try:
            return await self.stat(namespace, digest)
        except BlobNotFound as error:
            raise BlobsUnavailable(f"blob {digest} was being removed at the very moment: send it again") from error

    def _look_for_room(self) -> None:
        """Raises BlobsFull."""
        if self._folder is None:
            return
        free = shutil.disk_usage(self._folder).free
        if free < self._kept_free:
            kept = f"{free} bytes are free on the disk of {self._folder}, and {self._kept_free} are kept back"
            raise BlobsFull(f"{kept}; free some there")

    async def get_stream(self, namespace: str, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """See `Blobs.get_stream`."""
        size = (await self.stat(namespace, digest)).size
        if not 0 <= offset <= size:
            raise ValueError(f"offset {offset} is outside of the {size} bytes of {digest}")
        seen = hashlib.sha256() if offset == 0 else None
        held = b""
        for start in range(offset, size, _READ_BYTES):
            if held:
                yield held
            length = min(_READ_BYTES, size - start)
            with _told(), _not_found(namespace, digest):
                held = bytes(await self._store.get_range_async(_path(namespace, digest), start=start, length=length))
            if seen is not None:
                seen.update(held)
        if seen is not None and seen.hexdigest() != digest:
            raise BlobCorrupt(f"namespace {namespace!r} keeps something else as blob {digest}")
        if held:
            yield held

    async def stat(self, namespace: str, digest: str) -> BlobInfo:
        """See `Blobs.stat`."""
        with _told(), _not_found(namespace, digest):
            found = await self._store.head_async(_path(namespace, digest))
        return BlobInfo(digest, found["size"], found["last_modified"])

    async def delete(self, namespace: str, digest: str) -> None:
        """See `Blobs.delete`."""
        await self._discard(_path(namespace, digest))

    async def list(self, namespace: str) -> AsyncIterator[BlobInfo]:
        """See `Blobs.list`."""
        with _told():
            async for batch in self._store.list(prefix=_folder(namespace)):
                for found in batch:
                    yield BlobInfo(found["path"].rpartition("/")[2], found["size"], found["last_modified"])

    async def use(self, namespace: str, digest: str) -> BlobInfo:
        """See `Blobs.use`. First the note, then the look: a removal looks for notes after it has hidden the blob, so
        one of the two sees the other."""
        found = await self.stat(namespace, digest)
        if found.modify_time < datetime.now(UTC) - _YOUNG:
            with _told():
                await self._store.put_async(f"{_USED}/{_path(namespace, digest)}", b"")
            found = await self.stat(namespace, digest)
        return found

    async def all(self) -> AsyncIterator[tuple[str, BlobInfo]]:
        """See `Blobs.all`."""
        async for folder, found in self._blobs(""):
            yield unquote(folder), found

    async def remove_unused(self, namespace: str, digest: str, before: datetime) -> bool:
        """See `Blobs.remove_unused`. The blob is moved aside, so that nobody can begin to use it, and put back if
        somebody had begun by then."""
        path = _path(namespace, digest)
        hidden, note = f"{_TRASH}/{path}", f"{_USED}/{path}"
        if await self._time(path, before) >= before or await self._time(note) >= before:
            return False
        with _told():
            try:
                await self._store.rename_async(path, hidden)
            except FileNotFoundError:  # another replica removes it
                return False
            if await self._time(note) >= before:
                with contextlib.suppress(FileNotFoundError):  # another replica has put it back
                    await self._store.rename_async(hidden, path)
                return False
        await self._discard(hidden)
        await self._discard(note)
        return True

    async def recover(self) -> None:
        """See `Blobs.recover`. What another replica is just removing comes back as well, for the time being.

        It has its old time, and may come back over what is put at this very moment: it counts as used before that.
        """
        async for folder, found in self._blobs(_TRASH):
            path = f"{folder}/{found.digest[:2]}/{found.digest}"
            hidden = f"{_TRASH}/{path}"
            if await self._time(path) != _LONG_AGO:  # it was put again
                await self._discard(hidden)
                continue
            with _told():
                await self._store.put_async(f"{_USED}/{path}", b"")
                with contextlib.suppress(FileNotFoundError):
                    await self._store.rename_async(hidden, path)

    async def _blobs(self, root: str) -> AsyncIterator[tuple[str, BlobInfo]]:
        """The blobs below `root`, each with the folder of its namespace. Whatever else somebody keeps there is passed
        over; a folder is looked at without obstore, whose listing ends at what it may not read or cannot spell."""
        if self._folder is not None:
            files = _files(self._folder / root)
            page = await asyncio.to_thread(_some, files)
            while page:
                for one in page:
                    yield one
                page = await asyncio.to_thread(_some, files)
            return
        with _told():
            async for batch in self._store.list(prefix=root or None):
                for found in batch:
                    path = found["path"].removeprefix(f"{root}/")
                    if blob := _BLOB.fullmatch(path):
                        yield blob[1], BlobInfo(blob[3], found["size"], found["last_modified"])

    async def _time(self, path: str, absent: datetime = _LONG_AGO) -> datetime:
        """When an object was written."""
        with _told():
            try:
                time: datetime = (await self._store.head_async(path))["last_modified"]
            except FileNotFoundError:
                return absent
        return time

    async def probe(self) -> str:
        """See `Blobs.probe`; it need not have been entered, and makes a folder's last part alone."""
        if self._folder is not None and not self._folder.exists():
            return f"{self._url}: none yet, made when an orchestrator starts"
        # Not by obstore's coroutines: its threads still let go of the last one while whoever asked ends already, and an
        # interpreter that ends under them is aborted.
        await asyncio.to_thread(self._probe)
        return f"{self._url}: can be written and read"

    def _probe(self) -> None:
        path, content = f"{_SPOOL}/{uuid4().hex}", os.urandom(16)
        with _told():
            self._store.put(path, content)
            found = bytes(self._store.get_range(path, start=0, length=len(content)))
            self._store.delete(path)
        if found != content:
            raise BlobsUnavailable(f"{self._url} does not give back what was written")

    async def identity(self, *, make: bool) -> str:
        """See `Blobs.identity`; unless it is to make one, it need not have been entered."""
        if not make:
            if self._folder is not None and not self._folder.exists():
                return ""
            return await asyncio.to_thread(self._look_for_identity)  # as the probe: whoever asks may end at once
        with _told():
            try:
                found = await self._read_identity()
            except FileNotFoundError:
                await self._make_identity()
                found = await self._read_identity()
        if self._folder is not None:  # whoever is told may note it for good
            await asyncio.to_thread(_sync, self._folder)
        return found

    async def _make_identity(self) -> None:
        """Of several that make one at once the first does. In a folder it is given its name when it is whole and
        synced, as a blob is."""
        from obstore.exceptions import AlreadyExistsError

        content = uuid4().hex.encode()
        with contextlib.suppress(AlreadyExistsError):
            if self._folder is None:
                await self._store.put_async(_IDENTITY, content, mode="create")
                return
            spool = f"{_SPOOL}/{uuid4().hex}"
            try:
                await self._store.put_async(spool, content)
                await asyncio.to_thread(_sync, self._folder / spool)
                await self._store.rename_async(spool, _IDENTITY, overwrite=False)
            finally:
                await self._discard(spool)

    async def _read_identity(self) -> str:
        found = await self._store.get_async(_IDENTITY)
        return self._id_in(bytes(await found.bytes_async()))

    def _look_for_identity(self) -> str:
        with _told():
            try:
                return self._id_in(bytes(self._store.get(_IDENTITY).bytes()))
            except FileNotFoundError:
                return ""

    def _id_in(self, content: bytes) -> str:
        if not _ID.fullmatch(content):
            remedy = f"restore {_IDENTITY} in it from a copy, or delete it and go on as docs/cluster.md says"
            raise BlobCorrupt(f"payloads: the id of {self._url} was damaged: {remedy}")
        return content.decode()

    async def _tidy(self) -> None:
        """Once, with the first upload: a folder's spool was cleared at the beginning, without obstore."""
        if self._tidied:
            return
        oldest = datetime.now(UTC) - _SPOOL_AGE
        with _told():
            async for batch in self._store.list(prefix=_SPOOL):
                for found in batch:
                    if found["last_modified"] < oldest:
                        await self._discard(found["path"])
        self._tidied = True

    async def _discard(self, path: str) -> None:
        with _told(), contextlib.suppress(FileNotFoundError):
            await self._store.delete_async(path)


class _Measured:
    """Passes chunks on, taking their digest and stopping at a limit, or where `look` raises."""

    def __init__(self, chunks: AsyncIterator[bytes], limit: int, look: Callable[[], None]) -> None:
        self._chunks = chunks
        self._look = look
        self._limit = limit
        self._size = 0
        self.digest = hashlib.sha256()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self._size += len(chunk)
            if self._size > self._limit:
                raise BlobTooLarge(f"the content is larger than {self._limit} bytes")
            self._look()
            self.digest.update(chunk)
            yield chunk


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What obstore raises as BlobsUnavailable, in one line: the rest repeats the request. A bucket that is missing is
    reported like a blob that is, so that what means a blob has turned it into BlobNotFound before."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError, PermissionError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> BlobsUnavailable:
    """obstore gives the number of an error of the system in its text alone."""
    cause = str(error).partition("\n")[0]
    full = any(f"(os error {number})" in cause or f"[Errno {number}]" in cause for number in _FULL)
    return (BlobsFull if full else BlobsUnavailable)(f"payloads cannot be kept or read: {cause}")


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


def _files(root: Path) -> Iterator[tuple[str, BlobInfo]]:
    """The blobs below a folder, each with the folder of its namespace."""
    for path in root.glob("*/??/*"):
        blob = _BLOB.fullmatch(path.relative_to(root).as_posix())
        if blob is None:
            continue
        try:
            found = path.lstat()
        except (FileNotFoundError, PermissionError):  # it was just removed, or is not ours
            continue
        if not stat.S_ISREG(found.st_mode):  # a pipe would never be read, and who knows where a link leads
            continue
        yield blob[1], BlobInfo(blob[3], found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _some(files: Iterator[tuple[str, BlobInfo]]) -> list[tuple[str, BlobInfo]]:
    try:
        return list(islice(files, _PAGE))
    except OSError as error:
        raise _unavailable(error) from error


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unavailable(error) from error
