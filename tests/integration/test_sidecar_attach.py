"""A sidecar and its agent as processes, attached to an orchestrator double over mutual TLS."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import failure_pb2
from antiphon_certs import Authority, Grants

from tests.fakes.mesh import FakeMesh, keep, serving
from tests.integration.sidecar_process import RAW_AGENT, sidecar

GRANTS = Grants(("echo",), ("text.*",))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def orchestrator(authority: Authority) -> FakeMesh:
    async with serving(authority) as fake:
        yield fake


@pytest.fixture
def state(tmp_path: Path, authority: Authority, orchestrator: FakeMesh) -> str:
    keep(tmp_path / "state", authority, [orchestrator.address], GRANTS)
    return str(tmp_path / "state")


async def test_an_offer_reaches_the_agent_and_its_output_comes_back(
    orchestrator: FakeMesh, tmp_path: Path, state: str
) -> None:
    async with sidecar(tmp_path, "--state", state, "--", *RAW_AGENT):
        stream = await orchestrator.attachment()
        await stream.window("echo", 2)
        stream.offer("r/a/0/1", "r/b/0/1")
        for attempt_id in ("r/a/0/1", "r/b/0/1"):
            report = await stream.outcome(attempt_id)
            assert json.loads(report.output.inline) == "hello"
            assert report.agent == "echo"
