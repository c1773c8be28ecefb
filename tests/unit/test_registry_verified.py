"""Which versions of an agent count as proven."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from antiphon.v1 import registry_pb2
from antiphon.v1 import verify_pb2 as pb
from antiphon.verify.digest import digest_of
from antiphon_orchestrator.registry.verified import MOST_VERSIONS, NotProven, Verified
from antiphon_orchestrator.store import SqliteStore

OLGA = "spiffe://mesh.test/ns/team-a/operator/olga"


@pytest.fixture
async def verified(tmp_path: Path) -> AsyncIterator[Verified]:
    async with SqliteStore(tmp_path / "store.db") as store:
        yield Verified(store, lambda: 7)


def agent(version: str = "1", schema: str = "", name: str = "hello") -> registry_pb2.AgentDescription:
    made = registry_pb2.AgentDescription(name=name, version=version)
    made.capabilities.add(name="b.two", version="1")
    made.capabilities.add(name="a.one", version="1", input_schema=schema)
    return made


def report(of: registry_pb2.AgentDescription) -> pb.VerifyReport:
    made = pb.VerifyReport(agent=of.name, version=of.version, capabilities_digest=digest_of(of), complete=True)
    made.cases.add(name="hello", outcome=pb.VERIFY_OUTCOME_PASSED)
    return made


async def test_a_report_counts_for_the_version_and_capabilities_it_names(verified: Verified) -> None:
    assert not await verified.holds("team-a", agent())
    await verified.put("team-a", OLGA, report(agent()))
    assert await verified.holds("team-a", agent())
    assert not await verified.holds("team-b", agent())
    assert not await verified.holds("team-a", agent(version="2"))
    assert not await verified.holds("team-a", agent(schema='{"type": "string"}'))
    assert not await verified.holds("team-a", agent(name="other"))


async def test_several_versions_count_while_they_are_rolled_out_and_the_oldest_goes(verified: Verified) -> None:
    for number in range(MOST_VERSIONS + 1):
        await verified.put("team-a", OLGA, report(agent(version=str(number))))
        await verified.put("team-a", OLGA, report(agent(version=str(number))))  # again changes nothing
    held = [await verified.holds("team-a", agent(version=str(number))) for number in range(MOST_VERSIONS + 1)]
    assert held == [False] + [True] * MOST_VERSIONS


@pytest.mark.parametrize("outcome", [pb.VERIFY_OUTCOME_UNSPECIFIED, pb.VERIFY_OUTCOME_FAILED, pb.VERIFY_OUTCOME_BROKEN])
async def test_what_did_not_pass_proves_nothing(verified: Verified, outcome: pb.VerifyOutcome.ValueType) -> None:
    made = report(agent())
    made.cases.add(name="drain", outcome=outcome)
    with pytest.raises(NotProven, match="case drain did not pass"):
        await verified.put("team-a", OLGA, made)
    assert not await verified.holds("team-a", agent())


def test_the_digest_is_of_what_is_offered_in_any_order() -> None:
    turned = agent()
    turned.capabilities.reverse()
    assert digest_of(turned) == digest_of(agent())
    assert digest_of(agent(schema="{}")) != digest_of(agent())
