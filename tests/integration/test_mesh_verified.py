"""A policy that lets no agent work which was not proven: over real processes, from the refusal to the run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from antiphon import Client, Graph, PolicyDenied, VerifyReportNotAccepted, output_of
from antiphon.v1 import verify_pb2 as pb
from antiphon_certs import Kind
from google.protobuf import json_format

from tests.harness import Mesh
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "orchestrator/antiphon_orchestrator/policy/profiles"
AGENT = (sys.executable, str(ROOT / "examples/hello_agent/agent.py"))
UNLESS_VERIFIED = """@id("agents.verified") @reason("no report of antiphon verify for this version of the agent")
forbid (principal, action == Action::"register", resource) unless { context.verified };"""


def verified(report: Path, *options: str) -> pb.VerifyReport:
    """The report of `antiphon verify` on the example."""
    words = ["verify", *options, "--seed", "1", "--report", str(report), "--", *AGENT]
    subprocess.run([str(Path(sys.executable).with_name("antiphon")), *words], check=True, capture_output=True)
    return json_format.Parse(report.read_text(), pb.VerifyReport())


async def test_an_agent_gets_work_once_its_version_is_proven_and_not_before(tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    shutil.copytree(PROFILE, policies)
    (policies / "verified.cedar").write_text(UNLESS_VERIFIED)
    with Mesh(policy=("--policy-folder", str(policies))) as mesh:
        sidecar = mesh.sidecar("hello", command=AGENT)
        async with mesh.client() as client, mesh.operator() as operator:

            async def refused() -> bool:
                return "no report of antiphon verify for this version" in sidecar.said()

            await eventually(refused)
            assert [agent.name async for agent in client.list_agents()] == []

            await _refuses_what_proves_nothing(client, operator, tmp_path)
            report = verified(tmp_path / "report.json")
            another = pb.VerifyReport()
            another.CopyFrom(report)
            another.capabilities_digest = "0" * 64
            await operator.put_verify_report(another)  # of other capabilities
            mesh.orchestrator.restart()
            assert [agent.name async for agent in client.list_agents()] == []

            await operator.put_verify_report(report)
            await operator.put_verify_report(report)  # as often as it is sent
            mesh.orchestrator.restart()
            await mesh.attached(client, "hello")
            graph = Graph("greet")
            graph.task("greet", "hello.greet@1", input={"name": "Ada"})
            run = await client.submit(graph, wait=True)
            assert output_of(run) == {"greet": "Hello, Ada!"}
            await _is_audited(operator)


async def _refuses_what_proves_nothing(client: Client, operator: Client, folder: Path) -> None:
    some = verified(folder / "some.json", "--case", "hello")
    with pytest.raises(VerifyReportNotAccepted, match="not all cases were played"):
        await operator.put_verify_report(some)
    some.complete = True
    some.cases[0].outcome = pb.VERIFY_OUTCOME_BROKEN
    with pytest.raises(VerifyReportNotAccepted, match="case hello did not pass"):
        await operator.put_verify_report(some)
    with pytest.raises(PolicyDenied):
        await client.put_verify_report(some)


async def _is_audited(operator: Client) -> None:
    records = [record async for record in operator.list_audit_records("calls")]
    acts = [record.action for record in records if record.resource.endswith("/hello")]
    assert acts.count("put_verify_report") == 3, acts


def test_the_command_uploads_a_report_and_names_what_is_none(tmp_path: Path) -> None:
    antiphon = str(Path(sys.executable).with_name("antiphon"))
    with Mesh() as mesh:
        credentials = mesh.ca.client("olga", kind=Kind.OPERATOR)
        home = tmp_path / "home"
        profile = home / "profiles/default"
        generation = profile / "credential/1"
        generation.mkdir(parents=True)
        for name, path in (("key", credentials.key), ("cert", credentials.cert), ("bundle", credentials.bundle)):
            shutil.copy(path, generation / f"{name}.pem")
        (profile / "credential/current").symlink_to("1")
        at = mesh.orchestrator
        (profile / "profile.toml").write_text(
            f'addresses = ["{at.address}"]\njoin_addresses = ["{at.join_address}"]\n'
            'trust_domain = "mesh.test"\nnamespace = "team-a"\n'
        )
        verified(tmp_path / "report.json")
        (tmp_path / "none.json").write_text("{}}")

        def upload(file: str) -> subprocess.CompletedProcess[str]:
            words = [antiphon, "agent", "verify-report", "upload", str(tmp_path / file)]
            environment = {"ANTIPHON_HOME": str(home), "PATH": "/usr/bin:/bin"}
            return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)

        done = upload("report.json")
        assert done.returncode == 0 and "hello without a version is verified" in done.stderr, done.stderr
        none = upload("none.json")
        assert none.returncode == 2 and "is no report" in none.stderr and "antiphon verify --report" in none.stderr
