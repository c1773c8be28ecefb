"""Pages of a run's tasks: every one once and in order, at any page size; a token is good for its own query alone."""

from __future__ import annotations

import grpc
import pytest
from antiphon import Client, Graph
from antiphon.v1 import run_service_pb2, run_service_pb2_grpc
from antiphon_certs import Kind

from tests.harness import Mesh
from tests.harness.raw import channel, reason_of

pytest_plugins = ("tests.harness.fixtures",)

MEMBERS = 25


async def test_pages_of_tasks_are_whole_and_a_token_of_another_query_is_refused(bare: Mesh) -> None:
    async with bare.client("alice") as client:
        run = await submitted(client)
    async with channel(bare.orchestrator.address, bare.ca.issue(Kind.CLIENT, "alice")) as line:
        runs = run_service_pb2_grpc.RunServiceStub(line)
        for size in (1, 7, MEMBERS + 1):
            members, token = [], ""
            while True:
                request = run_service_pb2.ListTasksRequest(run_id=run, page_size=size, page_token=token)
                page = await runs.ListTasks(request, timeout=30)
                members += [task.key.member for task in page.tasks]
                assert len(page.tasks) <= size and len(members) <= MEMBERS + 1
                token = page.next_page_token
                if not token:
                    break
            assert members == list(range(MEMBERS + 1))
        first = await runs.ListTasks(run_service_pb2.ListTasksRequest(run_id=run, page_size=1), timeout=30)
        other = run_service_pb2.ListTasksRequest(run_id=run, states=[2], page_token=first.next_page_token)
        for wrong in (other, run_service_pb2.ListTasksRequest(run_id=run, page_token="nonsense")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await runs.ListTasks(wrong, timeout=30)
            assert reason_of(caught.value) == "PAGE_TOKEN_INVALID"


async def submitted(client: Client) -> str:
    graph = Graph("many")
    graph.task("t", "nobody.offers@1", for_each="input")
    return (await client.submit(graph, list(range(MEMBERS)))).run_id
