"""The agent and its graph on a real mesh, in the process of the test."""

from pathlib import Path

import pytest
from agent import agent
from antiphon import load_graph, output_of
from antiphon.testing import Mesh
from antiphon.v1.run_pb2 import RUN_STATE_FAILED

pytest_plugins = ("antiphon.testing.fixtures",)

GRAPH = load_graph(Path(__file__).with_name("graph.yaml")).graph


@pytest.mark.asyncio
async def test_each_text_has_a_vector(mesh: Mesh) -> None:
    embedder = mesh.add(agent)
    run = await mesh.client.submit(GRAPH, {"texts": ["abba", "zz"]}, wait=True)
    abba, zz = output_of(run)
    assert (abba["values"][:2], zz["values"][-1]) == ([0.5, 0.5], 1.0)
    assert [one.state for one in embedder.attempts()] == ["SUCCEEDED", "SUCCEEDED"]


@pytest.mark.asyncio
async def test_a_text_without_letters_fails_its_run(mesh: Mesh) -> None:
    mesh.add(agent)
    run = await mesh.client.submit(GRAPH, {"texts": ["abba", "42"]}, wait=True)
    assert run.state == RUN_STATE_FAILED and "no letter" in run.failure.message


@pytest.mark.asyncio
async def test_what_fails_is_tried_again_after_a_minute_that_nobody_waits_for(mesh: Mesh) -> None:
    embedder = mesh.add(agent)
    embedder.fail("text.embed@1", attempts=2)
    async with mesh.hurry():
        run = await mesh.client.submit(GRAPH, {"texts": ["abba"]}, wait=True)
    assert len(output_of(run)) == 1
    assert [one.state for one in embedder.attempts()] == ["FAILED", "FAILED", "SUCCEEDED"]


@pytest.mark.asyncio
async def test_another_agent_finishes_what_one_was_lost_with(mesh: Mesh) -> None:
    first = mesh.add(agent)
    first.hold("text.embed@1")
    run = await mesh.client.submit(GRAPH, {"texts": ["abba"]})
    await first.begun()
    await first.lose()
    second = mesh.add(agent)
    async with mesh.hurry():
        run = await mesh.client.wait(run.run_id)
    assert len(output_of(run)) == 1 and len(second.attempts()) == 1
