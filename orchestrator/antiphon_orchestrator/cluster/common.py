"""What all replicas on one store have in common: whom they trust. Kept in the store, written by the first of them.

A replica of another authority would be given shards, and neither the others nor their clients could reach it: what
falls to it would stand still. So it is refused before it is there. Some root has to be shared and not all, since a
root is replaced with old and new trusted side by side; the record follows each step of that.

A store in a file has one process, which has nobody to differ from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from antiphon.store.v1 import records_pb2 as records
from antiphon_certs import Credential, root_fingerprints

from .. import telemetry
from ..shards.log import settle
from ..store import keys
from ..store.port import Compare, Put, Store, StoreUnavailable, Target, Txn

log = telemetry.logger("cluster")

LOOK = 2.0
"""Seconds between two looks at what is trusted here."""

_KEY = keys.common()
_REMEDY = "copy their authority here; docs/cluster.md says what to do when all have been given another one on purpose"


class NotInCommon(Exception):
    """This replica differs from those on its store in what has to be the same for all; the text says in what."""


async def check(store: Store, setting: str, trust_domain: str, bundle_pem: bytes) -> None:
    """Raises NotInCommon for whoever is of another trust domain than the replicas on this store, or trusts none of
    their roots. `setting`: where it was told whom to trust. Changes nothing; a new store has nothing to say."""
    found, _ = await _read(store)
    _compare(found, setting, trust_domain, root_fingerprints(bundle_pem))


class Common:
    """`begin` before anything else is put; `run` in the task group."""

    def __init__(self, store: Store, setting: str, credential: Callable[[], Credential]) -> None:
        """`setting`: where we were told whom to trust."""
        self._store = store
        self._setting = setting
        self._credential = credential
        self._bundle = credential().bundle_pem

    async def begin(self) -> None:
        """Adds what is trusted here to what all trust. Raises NotInCommon."""
        trust_domain = self._credential().identity.trust_domain
        ours = root_fingerprints(self._bundle)

        def joined(found: records.CommonRecord) -> records.CommonRecord:
            _compare(found, self._setting, trust_domain, ours)
            return _record(trust_domain, {*found.roots, *ours})

        await self._change(joined)

    async def run(self) -> None:
        """Follows what is trusted here, until cancelled: all replicas take each step of a rotation, and the last one to
        take it has no more to say than the first."""
        while True:
            await asyncio.sleep(LOOK)
            credential = self._credential()
            if credential.bundle_pem == self._bundle:
                continue
            record = _record(credential.identity.trust_domain, root_fingerprints(credential.bundle_pem))
            try:
                await self._change(lambda _, new=record: new)  # type: ignore[misc]
            except StoreUnavailable as error:
                log.warning("common_not_followed", cause=str(error))
            else:
                self._bundle = credential.bundle_pem

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
    return (records.CommonRecord.FromString(found[0].value), found[0].mod_revision) if found else (_record("", ()), 0)


def _record(trust_domain: str, roots: Collection[str]) -> records.CommonRecord:
    return records.CommonRecord(trust_domain=trust_domain, roots=sorted(roots))


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


def _shown(roots: Collection[str]) -> str:
    """The beginnings of fingerprints, which is enough for people to tell them apart."""
    return ", ".join(root[:16] for root in sorted(roots))
