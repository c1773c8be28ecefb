"""Bad input gets a status with a reason and the field at fault, and the mesh goes on as if nothing had been said."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest
from antiphon import (
    AccessDenied,
    Client,
    Graph,
    GraphInvalid,
    InputInvalid,
    MessageTooLarge,
    RequestInvalid,
    output_of,
    ref,
)
from antiphon.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    failure_pb2,
    graph_pb2,
    payload_pb2,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
)
from antiphon_certs import Kind

from tests.harness import Mesh
from tests.harness.raw import channel, reason_of, say

pytest_plugins = ("tests.harness.fixtures",)


def one_task(capability: str, input: Any = None, **options: Any) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input, **options)
    return graph


async def works(client: Client) -> bool:
    run = await client.submit(one_task("work.echo@1", "fine"), wait=True, timeout=timedelta(seconds=20))
    return bool(output_of(run) == {"t": "fine"})


async def test_who_speaks_no_tls_leaves_nothing_but_json_in_the_log(mesh: Mesh) -> None:
    host, _, port = mesh.orchestrator.address.rpartition(":")
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
    assert [json.loads(line)["event"] for line in mesh.orchestrator.said().splitlines()]


async def test_a_malformed_graph_is_refused_with_all_its_mistakes_and_their_places(client: Client) -> None:
    graph = Graph("broken", version="1", output="${tasks.nowhere.output}")
    graph.task("a", "work.echo@1", needs=["b"], when="1 +")
    graph.task("b", "work.echo@1", needs=["a", "missing"])
    graph.task("c", "no version", input="${tasks.a.output")
    with pytest.raises(GraphInvalid) as refused:
        await client.submit(graph)
    fields = {violation.field for violation in refused.value.violations}
    assert {"graph.tasks[0].when", "graph.tasks[1].needs[1]", "graph.output"} <= fields
    assert any(field.startswith("graph.tasks[2].") for field in fields)
    with pytest.raises(GraphInvalid):
        await client.register_graph(graph)
    assert await works(client)


async def test_rules_of_the_contract_are_checked_and_name_the_field(client: Client) -> None:
    proto = graph_pb2.Graph(name="Not A Name")
    proto.tasks.add(id="t", capability="work.echo@1")
    with pytest.raises(RequestInvalid) as refused:
        await client.submit(proto)
    assert [one.field for one in refused.value.violations] == ["inline.name"]


async def test_an_input_that_does_not_fit_the_graph_is_refused_at_the_door(client: Client) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    graph = Graph("typed", input_schema=schema)
    graph.task("t", "work.echo@1")
    with pytest.raises(InputInvalid) as refused:
        await client.submit(graph, {"name": 5})
    assert [one.field for one in refused.value.violations] == ["input/name"]
    with pytest.raises(InputInvalid):
        await client.submit(graph, payload_pb2.Payload(inline=b"\xff{"))


async def test_an_input_that_does_not_fit_the_capability_fails_its_task_without_reaching_an_agent(
    client: Client,
) -> None:
    run = await client.submit(one_task("work.double@1", "not a number"), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_INPUT
    assert (await client.get_task(run.run_id, "t")).attempt_count == 0


async def test_an_output_that_breaks_its_schema_is_a_failure_of_the_agent(client: Client) -> None:
    assert output_of(await client.submit(one_task("work.claim@1", 7), wait=True)) == {"t": 7}
    run = await client.submit(one_task("work.claim@1", "seven"), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT
    attempt = [one async for one in client.list_attempts(run.run_id, "t")][-1]
    assert attempt.state == run_pb2.ATTEMPT_STATE_FAILED
    assert "seven" in attempt.failure.message or "integer" in attempt.failure.message


async def test_an_output_that_is_too_large_is_a_failure_that_says_what_to_do(client: Client) -> None:
    run = await client.submit(one_task("work.large@1", 2 << 20), wait=True)
    assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_OUTPUT
    assert "upload" in run.failure.message


async def test_an_input_too_large_for_its_place_is_refused_and_so_is_a_message_too_large_for_the_server(
    client: Client,
) -> None:
    with pytest.raises(RequestInvalid) as refused:
        await client.submit(one_task("work.echo@1"), payload_pb2.Payload(inline=b'"' + b"x" * 70_000 + b'"'))
    assert [one.field for one in refused.value.violations] == ["input.inline"]
    with pytest.raises(MessageTooLarge):
        await client.submit(one_task("work.echo@1"), payload_pb2.Payload(inline=b"x" * (4 << 20)))
    assert await works(client)


async def test_an_expression_that_fails_is_a_failure_and_not_a_crash(client: Client) -> None:
    for expression in ("input.missing.deeper", "input[99]", "1 / (size(input) - 1)"):
        run = await client.submit(one_task("work.echo@1", ref(expression)), ["x"], wait=True)
        assert run.failure.kind == failure_pb2.FAILURE_KIND_INVALID_INPUT, expression
    run = await client.submit(one_task("work.echo@1", for_each="input.items"), {"items": 5}, wait=True)
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert await works(client)


async def test_a_unary_call_without_deadline_and_a_method_that_is_not_there_are_refused(
    client: Client, mesh: Mesh
) -> None:
    pem = mesh.ca.issue(Kind.CLIENT, "raw")
    async with channel(mesh.orchestrator.address, pem) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetRun(run_service_pb2.GetRunRequest(run_id="r"))
        assert reason_of(refused.value) == "DEADLINE_REQUIRED"
        as_they_are: dict[str, Any] = {"request_serializer": None, "response_deserializer": None}
        unknown = raw.unary_unary("/antiphon.v1.RunService/Unheard", **as_they_are)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unknown(b"", timeout=30)
        assert reason_of(refused.value) == "METHOD_UNKNOWN"
        garbled = raw.unary_unary("/antiphon.v1.RunService/SubmitRun", **as_they_are)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await garbled(b"\xff\xff\xff", timeout=30)
        assert reason_of(refused.value) == "REQUEST_INVALID"


async def test_garbage_on_every_socket_is_dropped_and_the_mesh_goes_on(client: Client, mesh: Mesh) -> None:
    noise = random.Random(7)
    agent_socket = str(mesh.sidecars[0].run_folder / "worker.sock")
    for address in (mesh.orchestrator.address, mesh.orchestrator.join_address, agent_socket):
        for data in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise.randbytes(4096),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise.randbytes(512),
            noise.randbytes(100_000),
            b"",
        ):
            await say(address, data)
    assert await works(client)


async def test_an_agent_that_breaks_the_protocol_hurts_only_itself(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("rude", command=("sleep", "1000"), granted=("rude",))
    path = sidecar.run_folder / "rude.sock"
    sidecar.wait_for_file(path)
    async with grpc.aio.insecure_channel(f"unix:{path}") as raw:
        stub: Any = agent_service_pb2_grpc.AgentServiceStub(raw)
        progress = agent_service_pb2.WorkRequest()
        progress.results.add(attempt_id="none/of/1/yours")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Work(iter([progress])):
                pass
        assert reason_of(refused.value) == "PROTOCOL_VIOLATION"
        hello = agent_service_pb2.WorkRequest()
        hello.hello.protocol_version = 1
        hello.hello.description.name = "somebody-else"
        hello.hello.description.concurrency = 1
        hello.hello.description.capabilities.add(name="work.rude", version="1")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Work(iter([hello])):
                pass
        assert reason_of(refused.value) == "NOT_GRANTED"
        hello.hello.description.name = ""
        stranger = agent_service_pb2.WorkRequest(results=[*progress.results])
        work = stub.Work(iter([hello, stranger]))
        welcome = await work.read()
        assert welcome.welcome.agent == "rude"
        work.cancel()
    assert await works(client)


async def test_an_input_with_a_name_that_no_message_can_hold_is_worked_on_like_any_other(client: Client) -> None:
    given = payload_pb2.Payload(inline=rb'{"name": "A", "\ud800": 1}')
    run = await client.submit(one_task("work.narrow@1", ref("input")), given, wait=True)
    assert output_of(run) == {"t": {"name": "A"}}
    (attempt,) = [made async for made in client.list_attempts(run.run_id, "t")]
    assert [part.pointer for part in attempt.decision.withheld] == ["/\\ud800"]
    assert await works(client)


async def test_an_agent_that_talks_nonsense_is_told_why_and_cut_off(client: Client, mesh: Mesh) -> None:
    sidecar = mesh.sidecar("nonsense", command=("sleep", "1000"), granted=("nonsense",))
    path = sidecar.run_folder / "nonsense.sock"
    sidecar.wait_for_file(path)
    hello = agent_service_pb2.WorkRequest()
    hello.hello.protocol_version = 1
    hello.hello.description.concurrency = 1
    hello.hello.description.capabilities.add(name="work.nonsense", version="1")
    newer = agent_service_pb2.WorkRequest()
    newer.CopyFrom(hello)
    newer.hello.protocol_version = 7
    too_many = agent_service_pb2.WorkRequest()
    for number in range(257):
        too_many.results.add(attempt_id=f"a/b/0/{number}")
    async with grpc.aio.insecure_channel(f"unix:{path}") as raw:
        stub: Any = agent_service_pb2_grpc.AgentServiceStub(raw)
        for said, cause in (
            ([newer], "speaks version 7 of the contract, this sidecar 1"),
            ([hello, too_many], "257 results; at most 256"),
            ([hello, hello], "hello came twice"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in stub.Work(iter(said)):
                    pass
            assert reason_of(refused.value) == "PROTOCOL_VIOLATION"
            assert cause in str(refused.value.details())
        garbage = raw.stream_stream("/antiphon.v1.AgentService/Work")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in garbage(iter([hello.SerializeToString(), b"\xff" * 40])):
                pass
        assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert await works(client)


async def test_kinds_of_identity_may_call_only_what_is_theirs(client: Client, mesh: Mesh) -> None:
    async with mesh.client("spy", kind=Kind.SIDECAR) as spy:
        with pytest.raises(AccessDenied):
            await spy.submit(one_task("work.echo@1"))
    with pytest.raises(AccessDenied):
        await client.suspend_agent("worker")
    assert await works(client)


async def test_a_stream_of_submissions_answers_bad_ones_one_by_one(client: Client) -> None:
    good, bad = one_task("work.echo@1", "fine"), one_task("work.echo@1", when="1 +")
    async with client.submitter() as submitter:
        answers = [await submitter.submit(graph, wait=True) for graph in (good, bad, good)]
        first = await answers[0]
        with pytest.raises(GraphInvalid):
            await answers[1]
        assert output_of(first) == output_of(await answers[2]) == {"t": "fine"}


async def test_a_submission_that_breaks_the_contract_is_answered_by_itself(client: Client) -> None:
    async with client.submitter() as submitter:
        good = [await submitter.submit(one_task("work.echo@1", "fine"), wait=True) for _ in range(2)]
        bad = await submitter.submit(one_task("work.echo@1"), labels={"x": "y" * 300})
        long = await submitter.submit(one_task("work.echo@1"), request_id="i" * 100)
        with pytest.raises(RequestInvalid) as refused:
            await bad
        assert [one.field for one in refused.value.violations] == ['labels["x"]']
        with pytest.raises(RequestInvalid):
            await long
        good.append(await submitter.submit(one_task("work.echo@1", "fine"), wait=True))
        assert [output_of(await run) for run in good] == [{"t": "fine"}] * 3


async def test_a_stream_of_submissions_ends_for_what_cannot_be_answered(client: Client, mesh: Mesh) -> None:
    async with channel(mesh.orchestrator.address, mesh.ca.issue(Kind.CLIENT, "raw")) as raw:
        stub: Any = run_service_pb2_grpc.RunServiceStub(raw)
        nameless = run_service_pb2.SubmitRunRequest(registered={"name": "g"})
        many = [run_service_pb2.SubmitRunRequest(request_id=str(n), registered={"name": "g"}) for n in range(257)]
        for submissions, field in (([nameless], "request_id"), ([], "submissions"), (many, "submissions")):
            call = stub.SubmitRuns()
            await call.write(run_service_pb2.SubmitRunsRequest(submissions=submissions))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert reason_of(refused.value) == "REQUEST_INVALID" and field in (refused.value.details() or "")
    assert await works(client)


async def test_submissions_that_are_too_large_fail_alone_whatever_they_travel_with(client: Client) -> None:
    def large(tasks: int) -> Graph:
        graph = Graph("large")
        for number in range(tasks):
            graph.task(f"t{number}", "work.nobody@1", input="y" * 50_000)
        return graph

    async with client.submitter() as submitter:
        # The last is too large for any message, and those before it together are.
        answers = [await submitter.submit(large(tasks)) for tasks in (1, 9, 9, 72, 100)]
        for answer in answers[3:]:
            with pytest.raises(MessageTooLarge):
                await answer
        for answer in answers[:3]:
            await client.cancel((await answer).run_id)


async def test_values_that_json_allows_and_people_forget_come_back_as_they_were(client: Client) -> None:
    value = {"": None, "ünï": "☃\u0000\u2028", "deep": [[[[[1.5e300, -0.0, 2**53]]]]], "${input}": "${}"}
    run = await client.submit(one_task("work.echo@1", "${input}"), value, wait=True)
    assert json.dumps(output_of(run)["t"], sort_keys=True) == json.dumps(value, sort_keys=True)


async def test_a_search_for_a_nul_is_refused_whatever_database_would_make_of_it(client: Client) -> None:
    searches: list[dict[str, Any]] = [{"failure": "\0"}, {"graph": "g\0"}, {"parent": "\0"}]
    for wanted in searches:
        with pytest.raises(RequestInvalid):
            [run async for run in client.list_runs(**wanted)]


@pytest.mark.parametrize("graph", ["one@", "@1", "one@x", "one@1@2", "one@1.2.3.4", "one@newest"])
async def test_a_search_for_what_names_no_graph_or_version_of_one_is_refused_and_not_answered_with_nothing(
    client: Client, graph: str
) -> None:
    with pytest.raises(RequestInvalid) as refused:
        [run async for run in client.list_runs(graph=graph)]
    assert [violation.field for violation in refused.value.violations] == ["graph_name"]
    assert "must be NAME or NAME@VERSION" in str(refused.value)
