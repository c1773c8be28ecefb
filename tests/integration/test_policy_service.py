"""Policies as users change them: activated, explained, rolled back, over real processes and restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from antiphon import (
    AccessDenied,
    Client,
    Graph,
    PolicyDenied,
    PolicyEpochChanged,
    PolicyEpochNotFound,
    PolicyInvalid,
    PolicyLocksOut,
    RequestIdReused,
    RequestInvalid,
    output_of,
)
from antiphon.v1 import run_pb2
from antiphon_certs import Kind

from tests.harness import Mesh

DEV = Path("orchestrator/antiphon_orchestrator/policy/profiles")
NO_ECHO = """
@id("no.echo") @reason("echo is closed")
forbid (principal, action == Action::"dispatch", resource == Capability::"team-a/work.echo");
"""


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture
async def operator(mesh: Mesh) -> AsyncIterator[Client]:
    async with mesh.operator() as made:
        yield made


def dev(*more: str) -> dict[str, str]:
    """The development profile as files, and more policies beside it."""
    files = {path.name: path.read_text() for path in DEV.iterdir()}
    return {**files, **{f"more{number}.cedar": text for number, text in enumerate(more)}}


def one(capability: str, input: Any = None) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input)
    return graph


async def test_policies_that_were_activated_decide_at_once_and_roll_back(mesh: Mesh, operator: Client) -> None:
    mesh.sidecar()
    async with mesh.client() as client:
        await mesh.attached(client)
        assert output_of(await client.submit(one("work.echo@1", "a"), wait=True))
        made = await operator.activate_policies(dev(NO_ECHO), expected_epoch=1)
        assert (made.epoch, made.active, made.creator) == (2, True, "spiffe://mesh.test/ns/team-a/operator/olga")
        run = await client.submit(one("work.echo@1", "b"), wait=True)
        assert run.state == run_pb2.RUN_STATE_FAILED and "echo is closed" in run.failure.message
        back = await operator.roll_back_policies(1, expected_epoch=2)
        assert (back.epoch, back.rolled_back_to) == (3, 1)
        assert output_of(await client.submit(one("work.echo@1", "c"), wait=True))
        assert [found.epoch async for found in operator.list_policies(page_size=2)] == [3, 2, 1]
        assert [found.active async for found in client.list_policies()] == [True, False, False]
        assert {file.name for file in (await operator.get_policy(2)).files} == set(dev(NO_ECHO))
        with pytest.raises(PolicyEpochNotFound):
            await operator.get_policy(9)


async def test_a_set_with_mistakes_changes_nothing_and_every_mistake_has_its_line(operator: Client) -> None:
    files = dev('\n@id("a") permit (principal, action == Action::"lunch", resource);\npermit (principal action);')
    files["roles.toml"] += 'king = ["client/*"]\n'
    with pytest.raises(PolicyInvalid) as refused:
        await operator.activate_policies(files, expected_epoch=1)
    places = {violation.field for violation in refused.value.violations}
    assert {"more0.cedar:3", "roles.toml:6"} <= places
    assert (await operator.get_policy()).epoch == 1


async def test_what_is_not_expected_changes_nothing(operator: Client) -> None:
    await operator.activate_policies(dev(NO_ECHO), expected_epoch=1, request_id="a")
    with pytest.raises(PolicyEpochChanged) as refused:
        await operator.activate_policies(dev(), expected_epoch=1, request_id="b")
    assert refused.value.metadata == {"expected": "1", "current": "2"}
    again = await operator.activate_policies(dev(NO_ECHO), expected_epoch=1, request_id="a")
    assert again.epoch == 2
    with pytest.raises(RequestIdReused):
        await operator.activate_policies(dev(), expected_epoch=2, request_id="a")
    with pytest.raises(PolicyEpochNotFound):
        await operator.roll_back_policies(7, expected_epoch=2)


async def test_nobody_locks_himself_out_and_clients_change_nothing(mesh: Mesh, operator: Client) -> None:
    with pytest.raises(PolicyLocksOut):
        await operator.activate_policies({"a.cedar": NO_ECHO}, expected_epoch=1)
    async with mesh.client() as client:
        with pytest.raises(AccessDenied):
            await client.activate_policies(dev(), expected_epoch=1)
    assert (await operator.get_policy()).epoch == 1


async def test_a_change_of_policy_is_itself_decided_by_policy(mesh: Mesh, operator: Client) -> None:
    only_olga = dev()
    only_olga["roles.toml"] = '[team-a]\nadmin = ["operator/olga"]\n'
    await operator.activate_policies(only_olga, expected_epoch=1)
    async with mesh.client("otto", kind=Kind.OPERATOR) as other:
        with pytest.raises(PolicyDenied):
            await other.activate_policies(dev(), expected_epoch=2)
    assert (await operator.activate_policies(dev(), expected_epoch=2)).epoch == 3


async def test_an_acknowledged_change_is_in_force_after_kill_9(mesh: Mesh, operator: Client) -> None:
    await operator.activate_policies(dev(NO_ECHO), expected_epoch=1)
    mesh.orchestrator.kill9()
    mesh.orchestrator.start()
    assert (await operator.get_policy()).epoch == 2
    record = await operator.check_policy("dispatch", "work.echo", principal="client/alice")
    assert not record.decision.permit and list(record.decision.policies) == ["no.echo"]
    assert list(record.places) == ["more0.cedar:2"]


async def test_another_folder_at_a_later_start_does_not_replace_what_is_in_force(tmp_path: Path) -> None:
    for name, text in dev(NO_ECHO).items():
        (tmp_path / name).write_text(text)
    with Mesh(policy=("--policy-folder", str(tmp_path))) as mesh:
        async with mesh.operator() as operator:
            assert (await operator.get_policy()).creator == "folder"
            (tmp_path / "more0.cedar").write_text(NO_ECHO.replace("no.echo", "none.echo"))
            mesh.orchestrator.restart()
            assert (await operator.get_policy()).epoch == 1
            said = mesh.orchestrator.said()
            assert "the store's policy epoch 1 is in force" in said and "antiphon policy activate DIR" in said


async def test_decisions_are_listed_with_their_reasons(mesh: Mesh, operator: Client) -> None:
    closed = '@id("closed") @reason("not today") forbid (principal, action == Action::"submit", resource);'
    await operator.activate_policies(dev(closed), expected_epoch=1)
    async with mesh.client() as client:
        with pytest.raises(PolicyDenied) as denied:
            await client.submit(one("work.echo@1"))
        decision_id = denied.value.metadata["decision_id"]
        found = [record async for record in client.list_decisions(decision_id=decision_id)]
        assert [record.action for record in found] == ["submit"]
        assert not found[0].decision.permit and found[0].decision.reason == "denied by policy closed: not today"
        denials = [record async for record in client.list_decisions(allowed=False, page_size=1)]
        assert decision_id in {record.decision.decision_id for record in denials}
        assert not [record async for record in client.list_decisions(principal="client/nobody")]


async def test_a_question_that_is_misspelt_is_refused_and_not_answered(operator: Client) -> None:
    with pytest.raises(RequestInvalid, match="write KIND/NAME"):
        await operator.check_policy("submit", "review", principal="ann")
    with pytest.raises(RequestInvalid, match="'user' is not an identity kind"):
        await operator.check_policy("submit", "review", principal="user/ann")
    with pytest.raises(RequestInvalid, match="'effect' is one of"):
        await operator.check_policy("dispatch", "work.echo", facts={"effect": ["foo"]})
    with pytest.raises(RequestInvalid, match="resolve is about a Run; name one"):
        await operator.check_policy("resolve")
    with pytest.raises(RequestInvalid, match="principal"):
        _ = [record async for record in operator.list_decisions(principal="ann")]
    with pytest.raises(RequestInvalid, match="there are submit, read"):
        _ = [record async for record in operator.list_decisions(action="typo")]
