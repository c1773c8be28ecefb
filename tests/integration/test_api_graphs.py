"""Graphs are registered once and for ever, found by number, and refused with every mistake."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.v1 import graph_pb2, graph_service_pb2, graph_service_pb2_grpc
from antiphon_certs import Authority, Kind
from antiphon_orchestrator.admission.compile import MOST_MISTAKES
from antiphon_orchestrator.store import SqliteStore
from api_harness import TIMEOUT, Running, details, reason_of, serving, status_of
from google.rpc import error_details_pb2

Stub: Any = graph_service_pb2_grpc.GraphServiceStub


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def api(authority: Authority, tmp_path: Path) -> AsyncIterator[Running]:
    async with SqliteStore(tmp_path / "store.db") as store, serving(authority, store=store) as running:
        yield running


@pytest.fixture
def graphs(api: Running) -> Any:
    return Stub(api.dial())


def graph(name: str = "review", version: str = "1", **task: Any) -> graph_pb2.Graph:
    node = graph_pb2.GraphTask(**{"id": "first", "capability": "text.summarize@1", **task})
    return graph_pb2.Graph(name=name, version=version, tasks=[node])


async def register(graphs: Any, content: graph_pb2.Graph, request_id: str = "") -> Any:
    request = graph_service_pb2.RegisterGraphRequest(request_id=request_id or uuid.uuid4().hex, graph=content)
    return await graphs.RegisterGraph(request, timeout=TIMEOUT)


async def listed(graphs: Any, **fields: Any) -> tuple[list[str], str]:
    page = await graphs.ListGraphs(graph_service_pb2.ListGraphsRequest(**fields), timeout=TIMEOUT)
    return [f"{item.graph.name}@{item.graph.version}" for item in page.graphs], page.next_page_token


async def refused(call: Any, reason: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == reason
    return caught.value


async def test_the_same_content_again_gives_the_same_answer_and_other_content_is_refused(graphs: Any) -> None:
    first = await register(graphs, graph())
    assert first.graph.creator == "spiffe://mesh.test/ns/team-a/client/alice"
    assert [warning.field for warning in first.warnings] == ["tasks[0].capability"]  # nobody offers it
    assert (await register(graphs, graph())).graph == first.graph
    error = await refused(register(graphs, graph(when="true")), "GRAPH_VERSION_EXISTS")
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    found = await graphs.GetGraph(graph_service_pb2.GetGraphRequest(name="review", version="1"), timeout=TIMEOUT)
    assert found.graph == first.graph


async def test_a_request_id_stands_for_one_content_alone(graphs: Any) -> None:
    first = await register(graphs, graph(), "one")
    assert (await register(graphs, graph(), "one")).graph == first.graph
    await refused(register(graphs, graph(version="2"), "one"), "REQUEST_ID_REUSED")
    assert await listed(graphs) == (["review@1"], "")


async def test_the_highest_version_is_the_highest_number(graphs: Any) -> None:
    for version in ("2", "10", "9.9.9", "1"):
        await register(graphs, graph(version=version))
    found = await graphs.GetGraph(graph_service_pb2.GetGraphRequest(name="review"), timeout=TIMEOUT)
    assert found.graph.graph.version == "10"


async def test_pages_go_by_name_and_number_without_gap_or_repeat(graphs: Any) -> None:
    for name in ("b", "a", "a-b"):
        for version in ("10", "2", "1.5"):
            await register(graphs, graph(name, version))
    everything = [f"{name}@{version}" for name in ("a", "a-b", "b") for version in ("1.5", "2", "10")]
    assert await listed(graphs) == (everything, "")
    seen, token = await listed(graphs, page_size=2)
    while token:
        more, token = await listed(graphs, page_size=2, page_token=token)
        seen += more
    assert seen == everything
    assert await listed(graphs, name="a") == (everything[:3], "")


async def test_a_page_token_of_another_query_is_refused(graphs: Any) -> None:
    for version in ("1", "2"):
        await register(graphs, graph(version=version))
    _, token = await listed(graphs, page_size=1)
    await refused(listed(graphs, page_size=1, name="review", page_token=token), "PAGE_TOKEN_INVALID")
    await refused(listed(graphs, page_token="nonsense"), "PAGE_TOKEN_INVALID")


async def test_every_mistake_of_a_graph_is_told_with_its_path(graphs: Any) -> None:
    bad = graph(when="tasks.nobody.output == 1", for_each="1 +")
    error = await refused(register(graphs, bad), "GRAPH_INVALID")
    violations = details(status_of(error), error_details_pb2.BadRequest)[0].field_violations
    assert {violation.field for violation in violations} == {"graph.tasks[0].when", "graph.tasks[0].for_each"}
    answer = await graphs.ValidateGraph(graph_service_pb2.ValidateGraphRequest(graph=bad), timeout=TIMEOUT)
    assert {mistake.field for mistake in answer.mistakes} == {"tasks[0].when", "tasks[0].for_each"}
    assert all(mistake.code and mistake.message for mistake in answer.mistakes)


async def test_a_status_with_a_thousand_mistakes_still_arrives(graphs: Any) -> None:
    bad = graph()
    del bad.tasks[:]
    for index in range(1000):
        bad.tasks.add(id=f"t{index}", capability="text.summarize@1", when="nonsense +")
    error = await refused(register(graphs, bad), "GRAPH_INVALID")
    violations = details(status_of(error), error_details_pb2.BadRequest)[0].field_violations
    assert violations[-1].description.startswith("and ")
    answer = await graphs.ValidateGraph(graph_service_pb2.ValidateGraphRequest(graph=bad), timeout=TIMEOUT)
    assert len(answer.mistakes) == MOST_MISTAKES  # more help nobody


async def test_a_version_is_needed_and_namespaces_do_not_meet(api: Running, graphs: Any) -> None:
    await refused(register(graphs, graph(version="")), "REQUEST_INVALID")
    await register(graphs, graph())
    other = Stub(api.dial(api.credential(namespace="team-b")))
    request = graph_service_pb2.GetGraphRequest(name="review")
    await refused(other.GetGraph(request, timeout=TIMEOUT), "GRAPH_NOT_FOUND")
    assert await listed(other) == ([], "")
    await refused(register(Stub(api.dial(api.credential(Kind.SIDECAR))), graph()), "ACCESS_DENIED")
