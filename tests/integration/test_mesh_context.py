"""Shared context in a whole mesh: clients by mutual TLS, agents through their sidecar with the rights of their task."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import antiphon
import pytest
import pytest_asyncio
from antiphon import Client, Graph, entry_value, output_of
from antiphon.mesh.v1 import mesh_service_pb2, mesh_service_pb2_grpc
from antiphon.v1 import (
    context_pb2,
    context_request_pb2,
    context_service_pb2,
    error_pb2,
    failure_pb2,
    payload_pb2,
    run_pb2,
)
from antiphon_certs import Kind

from tests.harness import Mesh, eventually
from tests.harness.process import stall
from tests.harness.raw import Pem, channel

AGENT = (sys.executable, "-m", "tests.harness.context_agent")


@pytest.fixture(scope="module")
def module_mesh() -> Iterator[Mesh]:
    with Mesh() as mesh:
        mesh.sidecar(command=AGENT)
        yield mesh


@pytest.fixture
def mesh(module_mesh: Mesh) -> Iterator[Mesh]:
    yield module_mesh
    module_mesh.show()


@pytest_asyncio.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    async with mesh.client() as client:
        await mesh.attached(client)
        yield client


def steps(*them: dict[str, Any], name: str = "team") -> Graph:
    graph = Graph(name)
    graph.task("t", "team.script@1", input=list(them))
    return graph


async def done(client: Client, *them: dict[str, Any], name: str = "team") -> list[Any]:
    run = await client.submit(steps(*them, name=name), wait=True, timeout=timedelta(seconds=30))
    answers: list[Any] = output_of(run)["t"]
    return answers


async def test_what_a_client_puts_another_gets(client: Client, mesh: Mesh) -> None:
    put = await client.put_entry("plan/summary", {"steps": 3}, labels=["pii", "region=eu"])
    async with mesh.client("bob") as bob:
        entry = await bob.get_entry("plan/summary")
    assert entry_value(entry) == {"steps": 3} and entry.revision == put.revision
    assert entry.provenance.principal.endswith("/client/alice") and entry.provenance.policy_decision_id
    labels = {(label.key, label.value, label.asserted_by) for label in entry.value.labels}
    assert labels == {("pii", "", entry.provenance.principal), ("region", "eu", entry.provenance.principal)}


async def test_another_namespace_shares_nothing(client: Client, mesh: Mesh) -> None:
    await client.put_entry("secret", 1)
    async with mesh.client("eve", namespace="team-b") as eve:
        with pytest.raises(antiphon.EntryNotFound):
            await eve.get_entry("secret")
        assert [one async for one in eve.list_entries()] == []


async def test_an_expected_revision_that_is_not_there_is_a_conflict_that_tells_the_present_one(client: Client) -> None:
    first = await client.put_entry("counter", 1, expected_revision=0)
    with pytest.raises(antiphon.EntryConflict) as caught:
        await client.put_entry("counter", 2, expected_revision=0)
    assert caught.value.remedy is antiphon.Remedy.REREAD
    assert caught.value.metadata["revision"] == str(first.revision)
    second = await client.put_entry("counter", 2, expected_revision=first.revision)
    with pytest.raises(antiphon.EntryConflict):
        await client.delete_entry("counter", expected_revision=first.revision)
    assert await client.delete_entry("counter", expected_revision=second.revision) > second.revision
    assert await client.delete_entry("counter") == 0


async def test_the_same_request_is_written_once_and_another_content_is_refused(client: Client) -> None:
    first = await client.put_entry("once", 1, request_id="once-1")
    await client.put_entry("once", 2)
    assert (await client.put_entry("once", 1, request_id="once-1")).revision == first.revision
    assert entry_value(await client.get_entry("once")) == 2
    with pytest.raises(antiphon.RequestIdReused):
        await client.put_entry("once", 3, request_id="once-1")


async def test_a_task_that_is_tried_again_writes_once_what_it_writes_under_its_idempotency_key(client: Client) -> None:
    put = {"do": "put_once", "key": "once-a-task", "value": 1}
    graph = Graph("tried-again")
    steps = [put, {"do": "fail_at_first"}]
    graph.task("t", "team.script@1", input=steps, retry=[antiphon.Retry(on=["TRANSIENT"], max_attempts=2)])
    run = await client.submit(graph, wait=True, timeout=timedelta(seconds=30))
    entry = await client.get_entry("once-a-task")
    assert output_of(run)["t"] == [entry.revision, None]
    assert entry.provenance.attempt_id == f"{run.run_id}/t/0/1", "the first attempt's, which the second was told of"
    assert (await done(client, put))[0] > entry.revision, "another task has a key of its own"


async def test_a_large_value_travels_by_reference_and_an_unknown_reference_is_refused(client: Client) -> None:
    text = "x" * 100_000
    await client.put_entry("large", text)
    entry = await client.get_entry("large")
    assert entry.value.HasField("blob")
    assert await client.download_payload(entry.value) == f'"{text}"'.encode()
    unknown = payload_pb2.Payload(blob=payload_pb2.BlobReference(digest="0" * 64, size=1))
    with pytest.raises(antiphon.PayloadNotFound):
        await client.put_entry("large", unknown)


async def test_pages_and_prefixes_hold_all_entries_once(client: Client) -> None:
    for number in range(7):
        await client.put_entry(f"paged/{number}", number)
    await client.put_entry("paged-not", 0)
    found = [one.key async for one in client.list_entries("paged/", page_size=3)]
    assert found == [f"paged/{number}" for number in range(7)]


async def test_a_snapshot_and_a_watch_from_it_miss_nothing_and_repeat_nothing(client: Client) -> None:
    await client.put_entry("watched/a", 1)
    entries, revision = await client.snapshot_entries("watched/")
    await client.put_entry("watched/b", 2)
    await client.delete_entry("watched/a")
    await client.put_entry("elsewhere", 0)
    await client.put_entry("watched/b", 3)
    seen = []
    async for event in client.watch_entries("watched/", from_revision=revision):
        seen.append(_told(event))
        if len(seen) == 3:
            break
    assert [one.key for one in entries] == ["watched/a"]
    assert seen == [("watched/b", b"2"), ("watched/a", None), ("watched/b", b"3")]


async def test_a_task_reads_and_writes_for_its_principal_and_its_story_is_kept(client: Client) -> None:
    await client.put_entry("facts/input", "known", labels=["pii"])
    run = await client.submit(
        steps({"do": "get", "key": "facts/input"}, {"do": "put", "key": "facts/made", "value": [1]}), wait=True
    )
    assert output_of(run)["t"][0] == "known"
    entry = await client.get_entry("facts/made")
    told = entry.provenance
    assert (told.agent, told.run_id, told.task_id) == ("worker", run.run_id, "t")
    assert told.attempt_id == f"{run.run_id}/t/0/1" and len(told.input_digest) == 64
    assert told.principal == run.principal
    source = await client.get_entry("facts/input")
    assert [(one.key, one.revision) for one in told.sources] == [("facts/input", source.revision)]
    assert {label.key for label in entry.value.labels} == {"pii"}, "labels of what was read join what is written"
    assert "pii" in {label.key for label in run.output.labels} | {
        label.key for label in (await client.get_task(run.run_id, "t")).output.labels
    }, "and what is answered"
    nodes = (await client.lineage("facts/made")).nodes
    assert [(one.entry.key, one.distance) for one in nodes] == [("facts/made", 0), ("facts/input", 1)]
    assert nodes[1].provenance.principal == run.principal
    await client.put_entry("facts/input", "anew")
    assert not (await client.lineage("facts/made")).nodes[1].HasField("provenance"), "that revision is gone"


async def test_scopes_of_run_and_graph_are_the_tasks_own(client: Client) -> None:
    run = await client.submit(
        steps(
            {"do": "put", "key": "mine", "value": "of the run", "scope": "run"},
            {"do": "put", "key": "mine", "value": "of the graph", "scope": "graph"},
            {"do": "call", "capability": "team.script@1", "input": [{"do": "get", "key": "mine", "scope": "run"}]},
            {"do": "call", "capability": "team.script@1", "input": [{"do": "get", "key": "mine", "scope": "graph"}]},
            name="scoped",
        ),
        wait=True,
    )
    assert output_of(run)["t"][2:] == [["of the run"], ["of the graph"]], "whoever is called within it shares them"
    assert entry_value(await client.get_entry("mine", scope=f"run:{run.run_id}")) == "of the run"
    assert entry_value(await client.get_entry("mine", scope="graph:scoped")) == "of the graph"
    with pytest.raises(antiphon.EntryNotFound):
        await client.get_entry("mine")
    answers = await done(
        client,
        {"do": "get", "key": "mine", "scope": f"run:{run.run_id}"},
        {"do": "put", "key": "mine", "value": 1, "scope": "graph:scoped"},
    )
    assert [one["error"] for one in answers] == ["POLICY_DENIED", "POLICY_DENIED"], "another run's and graph's are not"
    with pytest.raises(antiphon.RequestInvalid):
        await client.get_entry("mine", scope="run")


async def test_what_is_labelled_restricted_is_shown_to_nobody(client: Client) -> None:
    await client.put_entry("hidden/one", 1, labels=["restricted"])
    await client.put_entry("hidden/two", 2)
    with pytest.raises(antiphon.PolicyDenied):
        await client.get_entry("hidden/one")
    assert [one.key async for one in client.list_entries("hidden/")] == ["hidden/two"]
    assert (await done(client, {"do": "keys", "prefix": "hidden/"})) == [["hidden/two"]]
    assert (await done(client, {"do": "get", "key": "hidden/one"}))[0]["error"] == "POLICY_DENIED"


async def test_an_operator_reads_and_does_not_write(client: Client, mesh: Mesh) -> None:
    await client.put_entry("seen", 1)
    async with mesh.operator() as operator:
        assert entry_value(await operator.get_entry("seen")) == 1
        with pytest.raises(antiphon.PolicyDenied):
            await operator.put_entry("seen", 2)


async def test_errors_reach_the_handler_as_the_clients_do(client: Client) -> None:
    answers = await done(
        client,
        {"do": "get", "key": "nothing/there"},
        {"do": "put", "key": "ours", "value": 1, "expected_revision": 7},
        {"do": "put", "key": "no key", "value": 1},
        {"do": "delete", "key": "nothing/there"},
    )
    assert [one["error"] for one in answers[:3]] == ["ENTRY_NOT_FOUND", "ENTRY_CONFLICT", "REQUEST_INVALID"]
    assert answers[3] == 0


async def test_a_task_sees_changes_as_they_happen(client: Client, mesh: Mesh) -> None:
    ready = mesh.path("ready")
    _, revision = await client.snapshot_entries()
    watching = {"do": "changes", "prefix": "news/", "count": 3, "ready": str(ready), "from_revision": revision}
    run = await client.submit(steps(watching))
    await eventually(ready.exists)
    await client.put_entry("news/a", 1)
    await client.put_entry("other", 1)
    await client.delete_entry("news/a")
    await client.put_entry("news/b", 1)
    ended = await client.wait(run.run_id, timeout=timedelta(seconds=30))
    assert output_of(ended)["t"] == [["news/a", "-news/a", "news/b"]]


async def test_of_two_who_claim_one_holds_and_the_other_is_told_by_whom(client: Client, mesh: Mesh) -> None:
    async with mesh.client("bob") as bob, client.claim("plan") as claim:
        with pytest.raises(antiphon.ClaimHeld) as caught:
            async with bob.claim("plan"):
                pytest.fail("two hold it")
        assert caught.value.metadata["holder"].endswith("/client/alice")
        await client.put_entry("plan", 1, claim=claim)
        with pytest.raises(antiphon.ClaimLost):
            await bob.put_entry("plan", 2, claim=claim)
    async with mesh.client("bob") as bob, bob.claim("plan") as later:
        assert later.claim.fence > claim.claim.fence
        with pytest.raises(antiphon.ClaimLost):
            await client.put_entry("plan", 3, claim=claim)
        with pytest.raises(antiphon.ClaimLost):
            await client.delete_entry("plan", claim=claim)
    assert entry_value(await client.get_entry("plan")) == 1


async def test_a_contender_gets_the_claim_once_it_is_given_up(client: Client, mesh: Mesh) -> None:
    order: list[str] = []

    async def hold(who: Client, name: str) -> None:
        async with who.claim("turns", wait=timedelta(seconds=20)):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    async with mesh.client("bob") as bob, mesh.client("carol") as carol:
        await asyncio.gather(hold(client, "a"), hold(bob, "b"), hold(carol, "c"))
    assert len(order) == 6
    assert all(order[place].split()[0] == order[place + 1].split()[0] for place in (0, 2, 4)), order


async def test_the_claim_of_a_task_ends_with_its_attempt(client: Client, mesh: Mesh) -> None:
    mark, never = mesh.path("mark"), mesh.path("never")
    run = await client.submit(steps({"do": "claimed", "name": "dies", "mark": str(mark), "until": str(never)}))
    await eventually(mark.exists)
    with pytest.raises(antiphon.ClaimHeld) as caught:
        async with client.claim("dies"):
            pytest.fail("a task holds it")
    assert caught.value.metadata["holder"] == f"{run.run_id}/t/0/1"
    await client.cancel(run.run_id)
    async with client.claim("dies", wait=timedelta(seconds=20)):
        pass


async def test_a_task_that_did_not_renew_is_told_that_its_claim_is_lost(client: Client, mesh: Mesh) -> None:
    mark, never = mesh.path("mark"), mesh.path("never")
    held = {"do": "claimed", "name": "slow", "ttl": 1, "renew": False, "mark": str(mark), "until": str(never)}
    run = await client.submit(steps(held))
    ended = await client.wait(run.run_id, timeout=timedelta(seconds=30))
    assert mark.exists() and output_of(ended)["t"] == ["lost"]


async def test_a_task_that_stood_still_beyond_its_claim_cannot_write_what_its_successor_owns() -> None:
    with Mesh() as mesh:
        sidecar = mesh.sidecar(command=AGENT)
        async with mesh.client() as client:
            await mesh.attached(client)
            mark, until = mesh.path("mark"), mesh.path("until")
            held = {"do": "claimed", "name": "slow", "ttl": 1, "key": "slow", "value": 1}
            run = await client.submit(steps({**held, "mark": str(mark), "until": str(until)}))
            await eventually(mark.exists)
            stall(*sidecar.agent_pids())
            async with client.claim("slow", wait=timedelta(seconds=20)) as claim:
                until.touch()  # it would write at once now
                for pid in sidecar.agent_pids():
                    os.kill(pid, signal.SIGCONT)
                ended = await client.wait(run.run_id, timeout=timedelta(seconds=30))
                await client.put_entry("slow", 2, claim=claim)
            answer = output_of(ended)["t"][0]
            assert answer == "lost" or answer["error"] == "CLAIM_LOST"
            assert entry_value(await client.get_entry("slow")) == 2


async def test_a_wrong_token_and_an_attempt_that_is_not_running_are_refused_by_the_sidecar(client: Client) -> None:
    answers = await done(client, {"do": "forged"}, {"do": "forged", "attempt_id": "r0000000000000000/t/0/1"})
    assert [one["error"] for one in answers] == ["ATTEMPT_TOKEN_INVALID", "ATTEMPT_NOT_FOUND"]


async def test_the_orchestrator_believes_no_sidecar_without_the_attempts_token_nor_with_anothers(
    client: Client, mesh: Mesh
) -> None:
    stolen, gate = mesh.path("token"), mesh.path("gate")
    run = await client.submit(steps({"do": "leak", "path": str(stolen)}, {"do": "hold", "path": str(gate)}))
    await eventually(lambda: stolen.exists() and bool(stolen.read_bytes()))
    attempt_id = f"{run.run_id}/t/0/1"
    pem = mesh.ca.issue(Kind.SIDECAR, "thief", agents=("thief",), capabilities=("*",))
    answers = await _ask_as_sidecar(mesh, pem, attempt_id, (b"x" * 16, stolen.read_bytes()))
    gate.touch()
    assert [error_pb2.ErrorReason.Name(answer.error.reason) for answer in answers] == [
        "ERROR_REASON_ATTEMPT_TOKEN_INVALID",  # guessed
        "ERROR_REASON_ATTEMPT_NOT_FOUND",  # the right one, but the attempt is out to another sidecar
    ]
    await client.wait(run.run_id, timeout=timedelta(seconds=30))


async def test_labels_of_what_was_read_outlive_a_crash_of_the_orchestrator() -> None:
    with Mesh() as mesh:
        mesh.sidecar(command=AGENT)
        async with mesh.client(timeout=timedelta(seconds=30)) as client:
            await mesh.attached(client)
            await client.put_entry("secret", 1, labels=["pii"])
            mark, gate = mesh.path("mark"), mesh.path("gate")
            run = await client.submit(
                steps(
                    {"do": "get", "key": "secret"},
                    {"do": "mark", "path": str(mark)},
                    {"do": "hold", "path": str(gate)},
                    {"do": "put", "key": "made", "value": 2},
                )
            )
            await eventually(mark.exists)
            mesh.orchestrator.restart()
            gate.touch()
            await client.wait(run.run_id, timeout=timedelta(seconds=30))
            entry = await client.get_entry("made")
            assert [label.key for label in entry.value.labels] == ["pii"]
            assert [source.key for source in entry.provenance.sources] == ["secret"]


async def test_a_request_that_waits_while_the_orchestrator_crashes_is_answered_after_it() -> None:
    with Mesh() as mesh:
        mesh.sidecar(command=AGENT)
        async with mesh.client(timeout=timedelta(seconds=30)) as client:
            await mesh.attached(client)
            mark, gate = mesh.path("mark"), mesh.path("gate")
            run = await client.submit(
                steps(
                    {"do": "mark", "path": str(mark)},
                    {"do": "hold", "path": str(gate)},
                    {"do": "put", "key": "made", "value": 1, "expected_revision": 0},
                    {"do": "get", "key": "made"},
                )
            )
            await eventually(mark.exists)
            mesh.orchestrator.kill9()
            gate.touch()  # it puts while nobody is there
            mesh.orchestrator.start()
            ended = await client.wait(run.run_id, timeout=timedelta(seconds=30))
            assert output_of(ended)["t"][3] == 1


async def _ask_as_sidecar(
    mesh: Mesh, pem: Pem, attempt_id: str, tokens: tuple[bytes, ...]
) -> list[context_request_pb2.ContextResponse]:
    """What the orchestrator answers a sidecar of one's own, by token."""
    async with channel(mesh.orchestrator.address, pem) as opened:
        stub: Any = mesh_service_pb2_grpc.MeshServiceStub(opened)
        call = stub.Attach()
        hello = mesh_service_pb2.AttachRequest()
        hello.hello.incarnation, hello.hello.generation, hello.hello.protocol_version = "ab" * 8, 1, 1
        await call.write(hello)
        answers: list[context_request_pb2.ContextResponse] = []
        for number, token in enumerate(tokens):
            request = mesh_service_pb2.AttachRequest()
            request.context_requests.add(
                request_id=str(number),
                attempt_id=attempt_id,
                attempt_token=token,
                get=context_service_pb2.GetEntryRequest(key="any"),
            )
            await call.write(request)
            async with asyncio.timeout(20):
                while len(answers) <= number:
                    answers.extend((await call.read()).context_responses)
        call.cancel()
    return answers


def _told(event: context_pb2.EntryEvent) -> tuple[str, bytes | None]:
    if event.HasField("put"):
        return event.put.key, event.put.value.inline
    return event.deleted.key, None


# What expressions of graphs read.


async def test_a_graph_reads_what_the_team_knows_and_the_record_says_which_revision(client: Client) -> None:
    put = await client.put_entry("steer/limits", {"most": 2})
    graph = Graph(
        "steered", output={"most": "${context.namespace['steer/limits'].most}", "seen": "${tasks.use.output}"}
    )
    writes = [{"do": "put", "key": "found", "value": 5, "scope": "run"}]
    graph.task("write", "team.script@1", input=writes)
    graph.task(
        "use",
        "team.plain@1",
        needs=["write"],
        when="context.namespace['steer/limits'].most == 2 && !has(context.graph.stop)",
        input={"most": "${context.namespace['steer/limits'].most}", "found": "${context.run.found}"},
    )
    run = await client.submit(graph, wait=True, timeout=timedelta(seconds=30))
    assert output_of(run) == {"most": 2, "seen": {"most": 2, "found": 5}}
    told = await client.explain(run.run_id, "use")
    reads = {(read.scope.WhichOneof("kind"), read.key): read.revision for read in told.task.reads}
    assert reads.pop(("run_id", "found")) > put.revision
    assert reads == {(None, "steer/limits"): put.revision, ("graph", "stop"): 0}
    assert [(read.key, read.revision) for read in run.output_reads] == [("steer/limits", put.revision)]
    events = [event async for event in client.watch(run.run_id)]
    assert [event.key.task_id for event in events if event.reads] == ["use", ""]


async def test_an_entry_that_is_not_there_fails_the_task_that_reads_it(client: Client) -> None:
    graph = Graph("reads-nothing")
    graph.task("t", "team.plain@1", input="${context.namespace.nowhere}")
    with pytest.raises(antiphon.RunFailed, match=r"context\.namespace\.nowhere is not in shared context"):
        output_of(await client.submit(graph, wait=True, timeout=timedelta(seconds=30)))


async def test_a_task_that_is_tried_again_reads_what_is_there_by_then(client: Client, mesh: Mesh) -> None:
    graph = Graph("reads-again", output="${tasks.absent.output}")
    graph.task("absent", "team.plain@1", input="${context.namespace.again}", on_failure="escalate")
    entries = [f"context.namespace.again{number}" for number in range(5)]
    for entry in entries:
        await client.put_entry(entry.rpartition(".")[2], "x" * 60_000)
    large = " && ".join(f"size({entry}) > 0" for entry in entries)
    graph.task("large", "team.plain@1", when=large, on_failure="escalate")
    run = await client.submit(graph)

    async def asked() -> bool:
        return (await client.get_run(run.run_id)).totals.escalated == 2

    await eventually(asked)
    told = (await client.get_task(run.run_id, "large")).failure.message
    assert told == "its expressions read 300030 bytes of shared context; 262144 is the most"
    await client.put_entry("again", 7)
    await client.put_entry("again0", "small")
    async with mesh.operator() as operator:
        for task in ("absent", "large"):
            await operator.retry(run.run_id, task)
    assert output_of(await client.wait(run.run_id, timeout=timedelta(seconds=30))) == 7


async def test_expressions_read_with_the_rights_of_the_runs_principal(client: Client) -> None:
    await client.put_entry("hidden", 1, labels=["restricted"])
    graph = Graph("reads-hidden")
    graph.task("t", "team.plain@1", input="${context.namespace.hidden}")
    run = await client.submit(graph, wait=True, timeout=timedelta(seconds=30))
    assert run.state == run_pb2.RUN_STATE_FAILED
    task = (await client.explain(run.run_id, "t")).task
    assert task.failure.kind == failure_pb2.FAILURE_KIND_POLICY and task.failure.code
    assert "context.namespace['hidden'] cannot be read" in task.failure.message


async def test_what_was_read_before_a_crash_is_not_read_again(client: Client, mesh: Mesh) -> None:
    await client.put_entry("steady", "before", labels=["pii"])
    graph = Graph("steady")
    graph.task("wait", "nobody.offers@1", input="${context.namespace.steady}", schedule_timeout=timedelta(minutes=5))
    run = await client.submit(graph)

    async def ready() -> bool:
        return (await client.explain(run.run_id, "wait")).task.state == run_pb2.TASK_STATE_READY

    await eventually(ready)
    await client.put_entry("steady", "after")
    mesh.orchestrator.kill9()
    mesh.orchestrator.restart()
    task = (await client.explain(run.run_id, "wait")).task
    assert task.input.inline == b'"before"' and [label.key for label in task.input.labels] == ["pii"]
    await client.cancel(run.run_id)
