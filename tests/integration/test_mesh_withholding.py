"""What agents and clients get of a payload, over real processes: minimised by schema, redacted by policy, explained."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from antiphon import Client, Graph, Payload, PolicyDenied, RequestInvalid, output_of
from antiphon.cli.run_view import failure_line
from antiphon.v1 import failure_pb2, payload_pb2, run_pb2

from tests.harness import Mesh, eventually

pytest_plugins = ("tests.harness.fixtures",)

PROFILE = Path(__file__).parents[2] / "orchestrator/antiphon_orchestrator/policy/profiles"
CARD = b'{"name": "Ada", "phone": "1", "ssn": "2"}'


@pytest.fixture
async def operator(mesh: Mesh) -> AsyncIterator[Client]:
    async with mesh.operator() as made:
        yield made
        await activate(made)


async def activate(operator: Client, *more: str) -> None:
    files = {path.name: path.read_text() for path in PROFILE.iterdir()}
    files |= {f"more{number}.cedar": text for number, text in enumerate(more)}
    await operator.activate_policies(files, expected_epoch=(await operator.get_policy()).epoch)


def card() -> Graph:
    graph = Graph("card")
    graph.task("a", "work.card@1", input="${input}")
    return graph


def labelled(pointer: str) -> Payload:
    payload = Payload(inline=CARD)
    payload.field_labels.add(pointer=pointer).labels.add(key="pii")
    return payload


async def test_an_agent_gets_the_fields_it_declares_and_explain_says_what_it_did_not_get(client: Client) -> None:
    run = await client.submit(card(), Payload(inline=CARD), wait=True)
    assert output_of(run) == {"a": {"name": "Ada", "phone": "1"}}
    told = await client.explain(run.run_id, "a")
    (attempt,) = told.attempts
    assert [(part.pointer, part.reason) for part in attempt.decision.withheld] == [("/ssn", "schema")]
    assert told.task.input.inline == CARD


async def test_a_policy_redacts_for_a_named_agent_by_label(client: Client, operator: Client) -> None:
    await activate(
        operator,
        """@id("hide.pii") @obligation("redact") @labels("pii")
        permit (principal, action == Action::"dispatch", resource) when { context.agent == "worker" };""",
    )
    run = await client.submit(card(), labelled("/phone"), wait=True)
    assert output_of(run) == {"a": {"name": "Ada", "phone": ""}}
    told = await client.explain(run.run_id, "a")
    reasons = {part.pointer: part.reason for part in told.attempts[0].decision.withheld}
    assert reasons == {"/ssn": "schema", "/phone": "hide.pii"}
    failed = await client.submit(card(), labelled("/name"), wait=True)
    assert "policy hide.pii redacts what work.card@1 cannot do without" in failed.failure.message


async def test_a_client_reads_what_is_released_to_it_wherever_it_looks(client: Client, operator: Client) -> None:
    await activate(
        operator,
        """@id("no.phone") @obligation("redact") @fields("phone")
        permit (principal, action == Action::"release", resource == Capability::"team-a/work.card");""",
    )
    graph = card()
    graph.task("b", "work.echo@1", input="${tasks.a.output}")
    run = await client.submit(graph, Payload(inline=CARD))
    ended = await client.wait(run.run_id)
    shown = [ended, await client.get_run(run.run_id), await client.get_task(run.run_id, "a")]
    shown += [await client.get_task(run.run_id, "b"), await client.explain(run.run_id, "b")]
    shown += [task async for task in client.list_tasks(run.run_id, include_payloads=True)]
    # The echo is another capability, whose release demands nothing; what it was given is not shown.
    assert output_of(ended) == {"b": {"name": "Ada", "phone": "1"}}
    first, second = shown[2], shown[3]
    assert first.output.inline == b'{"name":"Ada"}' and not second.HasField("input")
    assert "redacted" in first.withheld and "input is not shown" in second.withheld


async def test_a_call_between_agents_is_decided_by_policy(client: Client, operator: Client) -> None:
    graph = Graph("caller")
    graph.task("t", "work.call@1", input={"capability": "work.double@1", "input": 4})
    assert output_of(await client.submit(graph, wait=True)) == {"t": 8}
    await activate(
        operator,
        '@id("no.calls") forbid (principal, action == Action::"call", resource) when { context.agent == "worker" };',
    )
    denied = output_of(await client.submit(graph, wait=True))["t"]
    assert denied["kind"] == failure_pb2.FAILURE_KIND_POLICY


def caller(capability: str, **how: object) -> Graph:
    graph = Graph("caller")
    graph.task("t", capability, input={"capability": "work.person@1", "input": "Ada", **how})
    return graph


def keys(payload: payload_pb2.Payload) -> list[str]:
    return [label.key for label in payload.labels]


async def test_an_answer_with_labels_is_not_for_a_caller_without_clearance(client: Client, operator: Client) -> None:
    told = output_of(await client.submit(caller("work.call@1"), wait=True))["t"]
    assert told["kind"] == failure_pb2.FAILURE_KIND_POLICY and "no clearance for labels of the answer: pii" in str(told)
    await activate(
        operator,
        """@id("hide.pii") @obligation("redact") @labels("pii")
        permit (principal, action == Action::"release", resource == Capability::"team-a/work.person");""",
    )
    run = await client.submit(caller("work.call@1"), wait=True)
    assert output_of(run)["t"] == {"name": "Ada"}, "what is struck out needs no clearance"


async def test_what_is_made_of_an_answer_carries_its_labels(client: Client) -> None:
    run = await client.submit(caller("work.cleared-call@1"), wait=True)
    assert output_of(run)["t"] == {"name": "Ada", "phone": "555-1234"}
    assert keys((await client.get_task(run.run_id, "t")).output) == ["pii"]
    graph = caller("work.cleared-call@1")
    graph.task("u", "work.echo@1", input="${tasks.t.output.name}", schedule_timeout=timedelta(seconds=0.5))
    run = await client.submit(graph, wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_NO_AGENT, "the echo has no clearance for it"
    passed_over = "no agent fits: 1 by clearance; 1 considered; refused: 1 clearance"
    explained = await client.explain(run.run_id, "u")
    assert explained.task.failure.cause == passed_over and not explained.HasField("pending")
    assert f"({passed_over})" in failure_line(explained.task.failure).plain


async def test_what_a_person_answers_is_held_to_what_an_agent_could_have_answered(
    client: Client, operator: Client
) -> None:
    graph = Graph("asks")
    graph.task("a", "work.secret@1", input="${input}", on_failure="escalate")
    given = Payload(inline=b'"Ada"', labels=[payload_pb2.Label(key="pii")])

    async def escalated() -> str:
        run = await client.submit(graph, given)

        async def waits() -> bool:
            return (await client.get_task(run.run_id, "a")).state == run_pb2.TASK_STATE_ESCALATED

        await eventually(waits)
        return run.run_id

    run_id = await escalated()
    with pytest.raises(RequestInvalid, match="does not fit work"):
        await operator.resolve(run_id, "a", output="no number")
    task = await operator.resolve(run_id, "a", output=5)
    assert task.state == run_pb2.TASK_STATE_SUCCEEDED and keys(task.output) == ["pii"], "those of its input"
    assert keys((await client.wait(run_id)).output) == ["pii"]

    release = 'action == Action::"release", resource) when { context.labels.contains("pii") };'
    await activate(operator, f'@id("no.release") @reason("it stays here") forbid (principal, {release}')
    run_id = await escalated()
    with pytest.raises(PolicyDenied, match="it stays here"):
        await operator.resolve(run_id, "a", output=5)
    assert (await client.get_task(run_id, "a")).state == run_pb2.TASK_STATE_ESCALATED

    await activate(operator, f'@id("hide") @obligation("redact") @labels("pii") permit (principal, {release}')
    task = await operator.resolve(run_id, "a", output=5)
    assert task.output.inline == b"null" and "redact(label:pii)" in task.withheld
