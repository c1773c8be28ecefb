"""Which versions of agents were proven by `antiphon verify`, on the word of whoever uploaded the report.

A report counts for the version and the capabilities that it names, and for nothing else: an agent that changes a schema
has to be proven again. Read from the store whenever an agent attaches, so that every replica sees what any has taken.
"""

from __future__ import annotations

from collections.abc import Callable

from antiphon.store.v1 import records_pb2 as records
from antiphon.v1 import registry_pb2, verify_pb2
from antiphon.verify.digest import digest_of

from ..store import keys
from ..store.port import Compare, Put, Store, Target, Txn

MOST_VERSIONS = 8
"""Of one agent; the oldest goes."""


class NotProven(Exception):
    """The report does not say that every case passed; the text says why not."""


class Verified:
    """The reports of all agents. `now` is in microseconds since 1970."""

    def __init__(self, store: Store, now: Callable[[], int]) -> None:
        self._store = store
        self._now = now

    async def put(self, namespace: str, principal: str, report: verify_pb2.VerifyReport) -> None:
        """Keep a report in place of an older one about the same. Raises `NotProven`."""
        if not report.complete:
            raise NotProven("not all cases were played")
        for case in report.cases:
            if case.outcome != verify_pb2.VERIFY_OUTCOME_PASSED:
                raise NotProven(f"case {case.name} did not pass")
        key = keys.verified(namespace, report.agent)
        while True:
            record, revision = await self._read(key)
            others = [one for one in record.versions if _about(one.report) != _about(report)]
            version = records.VerifiedVersion(report=report, principal=principal, create_time=self._now())
            kept = records.VerifiedAgent(versions=[*others, version][-MOST_VERSIONS:])
            compare = Compare(key, Target.MOD_REVISION, revision)
            if (await self._store.commit(Txn((compare,), (Put(key, kept.SerializeToString()),)))).succeeded:
                return

    async def holds(self, namespace: str, description: registry_pb2.AgentDescription) -> bool:
        """Whether this version of the agent, with these capabilities, was proven."""
        record, _ = await self._read(keys.verified(namespace, description.name))
        if not record.versions:
            return False
        about = (description.version, digest_of(description))
        return any(_about(one.report) == about for one in record.versions)

    async def latest(self, namespace: str, agent: str) -> tuple[int, int]:
        """When the last report about an agent was taken, in microseconds since 1970, and the revision of its reports;
        0 and 0 when there is none."""
        record, revision = await self._read(keys.verified(namespace, agent))
        return max((one.create_time for one in record.versions), default=0), revision

    async def _read(self, key: bytes) -> tuple[records.VerifiedAgent, int]:
        found = (await self._store.range(key)).kvs
        if not found:
            return records.VerifiedAgent(), 0
        return records.VerifiedAgent.FromString(found[0].value), found[0].mod_revision


def _about(report: verify_pb2.VerifyReport) -> tuple[str, str]:
    return report.version, report.capabilities_digest
