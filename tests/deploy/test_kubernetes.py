"""The rendered manifests: each object keeps its schema, and no pod may more than it must."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from antiphon_orchestrator.app import LEAVING
from antiphon_orchestrator.config import load

from tests.harness.linters import linter

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MANIFESTS = ("orchestrators.yaml", "agent.yaml")
OLDEST, NEWEST = "1.29", "1.37"
SELECTING = ("StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy")
Object = dict[str, Any]


def objects(name: str) -> list[Object]:
    return [one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()) if one]


def pods(name: str) -> list[Object]:
    return [one["spec"]["template"]["spec"] for one in objects(name) if one["kind"] == "StatefulSet"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("version", (OLDEST, NEWEST))
@pytest.mark.parametrize("name", MANIFESTS)
def test_each_object_keeps_its_schema(name: str, version: str) -> None:
    command = [linter("kubernetes-validate"), "--strict", "--kubernetes-version", version]
    done = subprocess.run(
        [*command, str(DEPLOY / "kubernetes" / name)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_container_may_more_than_it_must(name: str) -> None:
    (pod,) = pods(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in containers(pod):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["privileged"] is False
        assert rights["readOnlyRootFilesystem"] is True and rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
    assert not any("hostPath" in volume for volume in pod["volumes"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_volume_that_is_mounted_is_there_and_none_is_left(name: str) -> None:
    (statefulset,) = [one for one in objects(name) if one["kind"] == "StatefulSet"]
    (pod,) = pods(name)
    claims = {claim["metadata"]["name"] for claim in statefulset["spec"].get("volumeClaimTemplates", [])}
    mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]} | claims


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_selects_pods_selects_these(name: str) -> None:
    (statefulset,) = [one for one in objects(name) if one["kind"] == "StatefulSet"]
    labels = statefulset["spec"]["template"]["metadata"]["labels"].items()
    specs = [one["spec"] for one in objects(name) if one["kind"] in SELECTING]
    selectors = [spec.get("selector") or spec["podSelector"] for spec in specs]
    assert all(selector.get("matchLabels", selector).items() <= labels for selector in selectors)
    services = [one for one in objects(name) if one["kind"] == "Service"]
    headless = {one["metadata"]["name"] for one in services if one["spec"].get("clusterIP") == "None"}
    assert statefulset["spec"]["serviceName"] in headless


def test_agents_may_call_orchestrators_and_others_may_not() -> None:
    (policy,) = [one["spec"] for one in objects("orchestrators.yaml") if one["kind"] == "NetworkPolicy"]
    (agent,) = [one for one in objects("agent.yaml") if one["kind"] == "StatefulSet"]
    calls = next(rule for rule in policy["ingress"] if {"port": 7443} in rule["ports"])
    allowed = [peer["podSelector"]["matchLabels"] for peer in calls["from"]]
    labels = agent["spec"]["template"]["metadata"]["labels"]
    assert policy["policyTypes"] == ["Ingress", "Egress"] and all(allowed)
    assert any(peer.items() <= labels.items() for peer in allowed)


def test_a_pod_has_time_to_hand_over_and_one_at_a_time_is_away() -> None:
    (pod,) = pods("orchestrators.yaml")
    (container,) = pod["containers"]
    (disruption,) = [one["spec"] for one in objects("orchestrators.yaml") if one["kind"] == "PodDisruptionBudget"]
    waits = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > waits + LEAVING + 2 and disruption["maxUnavailable"] == 1
    for probe, more in (("startupProbe", []), ("readinessProbe", []), ("livenessProbe", ["--live"])):
        assert container[probe]["exec"]["command"] == ["antiphon", "orchestrator", "health", *more]


def test_orchestrators_understand_what_the_chart_tells_them() -> None:
    (pod,) = pods("orchestrators.yaml")
    given = {one["name"]: one["value"] for one in pod["containers"][0]["env"] if "value" in one}
    names = {"$(POD_NAME)": "antiphon-0", "$(POD_NAMESPACE)": "antiphon"}
    for name, value in given.items():
        for variable, content in names.items():
            value = value.replace(variable, content)
        given[name] = value
    config = load({}, given)
    assert config.advertised == "antiphon-0.antiphon-replicas.antiphon.svc.cluster.local:7443"
    assert "antiphon.antiphon.svc" in config.certificate_hosts
    assert config.etcd is not None and "sslmode=verify-full" in config.archive_url
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    files = [config.authority, config.store_ca, config.store_cert, config.store_key, config.archive_password_file]
    assert all(path is not None and {str(path), str(path.parent)} & mounts for path in files)
