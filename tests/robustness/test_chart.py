"""The Helm chart, by Helm itself: what it makes of its values keeps its schemas, and the manifests are what it makes.

Only in the long form: Helm has to be built first. The manifests are judged in tests/deploy, without it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.linters import helm, linter

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm/antiphon"
EXAMPLE = DEPLOY / "helm/example.yaml"

pytestmark = pytest.mark.long_form

FORMS: dict[str, dict[str, Any]] = {
    "cert-manager makes the authority": {
        "authority": {
            "certManager": {"enabled": True, "trustDomain": "mesh.example", "issuerRef": {"name": "root"}},
        }
    },
    "policies of one's own": {"policyProfile": "", "policies": {"mesh.cedar": "permit (principal, action, resource);"}},
    "payloads on a volume": {
        "payloads": {
            "url": "file:///var/lib/antiphon-payloads", "existingClaim": "payloads", "credentialsSecretName": "",
        }
    },
    "closed to nobody, spread by preference": {
        "networkPolicy": {"enabled": False},
        "antiAffinity": "preferred",
        "podDisruptionBudget": None,
        "metrics": {"enabled": False},
    },
    "all that a cluster may ask for": {
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "mesh", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "antiphon"}},
            }
        ],
        "priorityClassName": "high",
        "podAnnotations": {"a": "b"},
        "serviceAccount": {"annotations": {"a": "b"}},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "settings": {"shards": 64, "api.call_burst": 8000},
        "store": {"endpoints": ["etcd:2379"], "maxBytes": 2000000000},
        "archive": {"url": "postgresql://antiphon@db/antiphon?target_session_attrs=read-write", "retention": "90d"},
    },
}  # fmt: skip


def template(tmp_path: Path, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    command = [helm(), "template", "antiphon", str(CHART), "--namespace", "antiphon", "--values", str(EXAMPLE)]
    if values is not None:
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        command += ["--values", str(tmp_path / "values.yaml")]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_manifests_are_what_the_chart_makes(tmp_path: Path) -> None:
    assert template(tmp_path).stdout == (DEPLOY / "kubernetes/orchestrators.yaml").read_text()


def test_helm_finds_nothing_wrong_with_the_chart() -> None:
    command = [helm(), "lint", "--strict", "--quiet", str(CHART), "--values", str(EXAMPLE)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_chart_keeps_the_schemas(form: str, tmp_path: Path) -> None:
    done = template(tmp_path, FORMS[form])
    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all(done.stdout) if one]
    of_others = [one for one in objects if one["apiVersion"].startswith("cert-manager.io/")]
    assert len(of_others) == ("cert-manager" in form)
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all([one for one in objects if one not in of_others]))
    command = [linter("kubernetes-validate"), "--strict", "--kubernetes-version", "1.29", str(path)]
    judged = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert judged.returncode == 0, judged.stdout


def test_settings_of_every_kind_reach_the_orchestrator(tmp_path: Path) -> None:
    settings = {
        "shards": 64,
        "payload_limit": 2_147_483_648,
        "schedule.breaker_share": 0.7,
        "schedule.weights": ["team-a=2", "team-b=1"],
        "telemetry.tracing": True,
        "api.shutdown_grace": "30s",
    }
    done = template(tmp_path, {"settings": settings, "store": {"maxBytes": 8_589_934_592}})
    assert done.returncode == 0, done.stderr
    (pod,) = [
        one["spec"]["template"]["spec"] for one in yaml.safe_load_all(done.stdout) if one["kind"] == "StatefulSet"
    ]
    given = {one["name"]: one["value"] for one in pod["containers"][0]["env"] if "value" in one}
    said = {
        key: given[f"ANTIPHON_ORCHESTRATOR_{key.replace('.', '_').upper()}"] for key in (*settings, "store_max_bytes")
    }
    assert said == {
        "shards": "64",
        "payload_limit": "2147483648",
        "schedule.breaker_share": "0.7",
        "schedule.weights": "team-a=2,team-b=1",
        "telemetry.tracing": "true",
        "api.shutdown_grace": "30s",
        "store_max_bytes": "8589934592",
    }


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"settings": {"schedule.weights": {"team-a": 2}}}, "schedule.weights: [team-a=2, team-b=1]"),
        ({"settings": {"api": {"call_burst": 8000}}}, "settings: api is a table"),
        ({"store": {"endpoints": []}}, "endpoints"),
        ({"archive": {"url": "postgresql://antiphon:secret@db/antiphon"}}, "archive"),
        ({"archive": {"url": "sqlite:///archive.db"}}, "archive"),
        ({"payloads": {"url": "file:///tmp"}}, "payloads"),
        ({"payloads": {"url": "file:///var/lib/antiphon-payloads"}}, "existingClaim"),
        ({"policies": {"mesh.cedar": "permit (principal, action, resource);"}}, "policyProfile"),
        ({"authority": {"certManager": {"enabled": True}}}, "trustDomain"),
        ({"replicas": 5}, "replicas"),
    ],
)
def test_values_that_cannot_be_right_are_refused_by_name(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    done = template(tmp_path, values)
    assert done.returncode != 0 and named in done.stderr
