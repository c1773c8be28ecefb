"""The socket between a sidecar and an agent in one pod: a volume of their group, users of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

MANIFEST = Path(__file__).resolve().parents[2] / "deploy/kubernetes/agent.yaml"
PLAY = """
import os, socket, sys
from pathlib import Path
from antiphon_sidecar.config import SocketConfig
from antiphon_sidecar.socket import RunFolder

folder, sidecar, agent, group = Path(sys.argv[1]), *map(int, sys.argv[2:])

def be(user, group):
    os.seteuid(0)
    os.setgroups([group])
    os.setegid(group)
    os.seteuid(user)

def reaches(path):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
    except PermissionError:
        return "no"
    return "yes"

be(sidecar, group)
run_folder = RunFolder(folder, SocketConfig(mode=0o660))
with run_folder.locked():
    path = run_folder.agent("hello")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    run_folder.open_to_others(path)
    be(agent, group)
    print("agent", reaches(path))
    be(agent, group + 1)
    print("stranger", reaches(path))
    be(sidecar, group)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: it changes users, which needs root")
def test_the_agent_of_the_example_reaches_its_socket_and_a_stranger_does_not() -> None:
    objects = yaml.safe_load_all(MANIFEST.read_text())
    pod = next(one for one in objects if one["kind"] == "StatefulSet")["spec"]["template"]["spec"]
    (sidecar,), (agent,) = pod["initContainers"], pod["containers"]
    group = pod["securityContext"]["fsGroup"]
    assert pod["securityContext"]["runAsGroup"] == group
    users = [one["securityContext"]["runAsUser"] for one in (sidecar, agent)]
    assert users[0] != users[1] and agent["env"][0]["value"] == "/run/antiphon/agents/hello.sock"
    with tempfile.TemporaryDirectory(prefix="anti-") as volume:
        os.chown(volume, 0, group)
        os.chmod(volume, 0o2777)  # as Kubernetes gives an emptyDir to an fsGroup
        command = [sys.executable, "-W", "ignore", "-c", PLAY, f"{volume}/agents", *map(str, users), str(group)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["agent yes", "stranger no"], done.stderr
