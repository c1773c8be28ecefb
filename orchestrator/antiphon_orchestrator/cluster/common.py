"""What all replicas on one store have in common. Kept in the store, written by the first of them.

Whom they trust, their archive, and their place of payloads.

A replica of another authority would be given shards, and neither the others nor their clients could reach it: what
falls to it would stand still. So it is refused before it is there. Some root has to be shared and not all, since a
root is replaced with old and new trusted side by side; the record follows each step of that.

One with another archive or another place of payloads would split history, and lose payloads for the others. Each has an
id of its own, which is compared. While one is away a replica does without it, as it does for all the rest, and compares
it as soon as it answers.

A store in a file has one process, which has nobody to differ from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

from antiphon.store.v1 import records_pb2 as records
from antiphon_certs import Credential, root_fingerprints

from .. import telemetry
from ..archive import Archive, ArchiveUnavailable
from ..blobs import Blobs, BlobsUnavailable
from ..shards.log import settle
from ..store import keys
from ..store.port import Compare, Put, Store, StoreUnavailable, Target, Txn

log = telemetry.logger("cluster")

LOOK = 2.0
"""Seconds between two looks at what is trusted here, and at what was away."""

PATIENCE = 3.0
"""Seconds that a start waits for the place of payloads, which takes a minute to say that it is away."""

_KEY = keys.common()
_REMEDY = "copy their authority here; docs/cluster.md says what to do when all have been given another one on purpose"


class NotInCommon(Exception):
    """This replica differs from those on its store in what has to be the same for all; the text says in what."""


async def check(
    store: Store, setting: str, trust_domain: str, bundle_pem: bytes, archive: Archive, blobs: Blobs
) -> None:
    """Raises NotInCommon for whoever is of another trust domain than the replicas on this store, trusts none of their
    roots, or has another archive or another place of payloads, a new one too; ArchiveUnavailable and BlobsUnavailable.

    `setting`: where it was told whom to trust. Changes nothing; a new store has nothing to say.
    """
    found, _ = await _read(store)
    _compare(found, setting, trust_domain, root_fingerprints(bundle_pem))
    _compare_places(found, {"archive": await archive.identity(), "payloads": await blobs.identity(make=False)})


class Common:
    """`begin` before anything else is put; `run` in the task group."""

    def __init__(
        self, store: Store, setting: str, credential: Callable[[], Credential], archive: Archive, blobs: Blobs
    ) -> None:
        """`setting`: where we were told whom to trust."""
        self._store = store
        self._setting = setting
        self._credential = credential
        self._bundle = credential().bundle_pem
        self._archive = archive
        self._blobs = blobs
        self._places: dict[str, str] = {}
        """Ids by setting of what has been compared."""

    async def begin(self) -> None:
        """Adds what is trusted here to what all trust, and which archive and place of payloads are here. Raises
        NotInCommon, and BlobCorrupt for a place whose id is none."""
        trust_domain = self._credential().identity.trust_domain
        ours = root_fingerprints(self._bundle)
        places = await self._identify(PATIENCE)

        def joined(found: records.CommonRecord) -> records.CommonRecord:
            _compare(found, self._setting, trust_domain, ours)
            _compare_places(found, places)
            return _with(found, places, trust_domain=trust_domain, roots=sorted({*found.roots, *ours}))

        await self._change(joined)
        self._places |= places

    async def run(self) -> None:
        """Follows what is trusted here, until cancelled: all replicas take each step of a rotation, and the last one to
        take it has no more to say than the first. What was away at the start is compared, and may raise as `begin`."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._follow()
                await self._compare_late()
            except StoreUnavailable as error:
                log.warning("common_not_followed", cause=str(error))

    async def _follow(self) -> None:
        credential = self._credential()
        if credential.bundle_pem == self._bundle:
            return
        trust_domain, roots = credential.identity.trust_domain, sorted(root_fingerprints(credential.bundle_pem))
        # With the places: a replica of a version without them leaves them out when it takes the step.
        await self._change(lambda found: _with(found, self._places, trust_domain=trust_domain, roots=roots))
        self._bundle = credential.bundle_pem

    async def _compare_late(self) -> None:
        places = await self._identify(None)

        def compared(found: records.CommonRecord) -> records.CommonRecord:
            _compare_places(found, places)
            return _with(found, places, trust_domain=found.trust_domain, roots=found.roots)

        if places:
            await self._change(compared)
            self._places |= places

    async def _identify(self, patience: float | None) -> dict[str, str]:
        """Ids by setting of what has not been compared yet, as far as it answers, payloads within `patience`."""
        found = {}
        if "archive" not in self._places:
            with _away("archive"):
                found["archive"] = await self._archive.identity()
        if "payloads" not in self._places:
            with _away("payloads"):
                async with asyncio.timeout(patience):
                    found["payloads"] = await self._blobs.identity(make=True)
        return {setting: here for setting, here in found.items() if here}

    async def _change(self, change: Callable[[records.CommonRecord], records.CommonRecord]) -> None:
        while True:
            found, revision = await _read(self._store)
            new = change(found)
            if new == found:
                return
            compare = Compare(_KEY, Target.MOD_REVISION, revision)
            if (
                await settle(self._store, Txn((compare,), (Put(_KEY, new.SerializeToString()),), spare=True))
            ).succeeded:
                return


async def _read(store: Store) -> tuple[records.CommonRecord, int]:
    """What is in common, and since which revision; empty, and 0, in a store that is new."""
    found = (await store.range(_KEY)).kvs
    if not found:
        return records.CommonRecord(), 0
    return records.CommonRecord.FromString(found[0].value), found[0].mod_revision


@contextlib.contextmanager
def _away(setting: str) -> Iterator[None]:
    """Tells of what is away, and goes on without it."""
    try:
        yield
    except (ArchiveUnavailable, BlobsUnavailable, TimeoutError) as error:
        cause = str(error) or f"no answer for {PATIENCE} s"
        telemetry.tell_seldom(log.warning, f"{setting}_not_compared", cause=cause)


def _with(
    found: records.CommonRecord, places: Mapping[str, str], *, trust_domain: str, roots: Collection[str]
) -> records.CommonRecord:
    """The record with these ids as well."""
    return records.CommonRecord(
        trust_domain=trust_domain,
        roots=roots,
        archive_id=found.archive_id or places.get("archive", ""),
        payloads_id=found.payloads_id or places.get("payloads", ""),
    )


def _compare(found: records.CommonRecord, setting: str, trust_domain: str, roots: Collection[str]) -> None:
    """Raises NotInCommon."""
    if found.trust_domain and found.trust_domain != trust_domain:
        raise NotInCommon(
            f"{setting}: the trust domain is {trust_domain}, and that of all replicas on this store "
            f"{found.trust_domain}: {_REMEDY}"
        )
    if found.roots and not set(roots) & set(found.roots):
        raise NotInCommon(
            f"{setting}: the replicas on this store trust another root ({_shown(found.roots)}, here {_shown(roots)}): "
            f"{_REMEDY}"
        )


def _compare_places(found: records.CommonRecord, places: Mapping[str, str]) -> None:
    """Raises NotInCommon. `places`: ids by setting; "" for what is new."""
    for setting, theirs in (("archive", found.archive_id), ("payloads", found.payloads_id)):
        here = places.get(setting, theirs)
        if theirs and here != theirs:
            differ = f"{theirs[:16]}, here {here[:16] or 'a new one'}"
            raise NotInCommon(
                f"{setting}: the replicas on this store use another one ({differ}): "
                "give all of them the same; docs/cluster.md says what to do when it was replaced on purpose"
            )


def _shown(roots: Collection[str]) -> str:
    """The beginnings of fingerprints, which is enough for people to tell them apart."""
    return ", ".join(root[:16] for root in sorted(roots))
