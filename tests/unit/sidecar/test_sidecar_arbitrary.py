"""Whatever an agent, an orchestrator or a file of a former life says: it is refused, or what goes up keeps the rules.

An orchestrator ends a stream for one message that breaks a rule, and that stream carries every agent of the sidecar.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import registry_pb2
from antiphon_certs import Grants
from antiphon_orchestrator.api.image import Image
from antiphon_sidecar.agents import _Servicer, _Session
from antiphon_sidecar.attempts import Attempt, State
from antiphon_sidecar.errors import Refused
from antiphon_sidecar.node import Node
from antiphon_sidecar.spool import Spool
from antiphon_sidecar.upstream import Directory, Upstream, _Stream
from antiphon_sidecar.wire import hello, next_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.messages import messages

LONG = os.environ.get("ANTIPHON_ROBUST") == "1"
IMAGE = Image.load()
ATTACH = IMAGE.methods["/antiphon.mesh.v1.MeshService/Attach"]
KNOWN = {
    "attempt_id": ("a", "b"),
    "attempt_token": (b"token",),
    "agent": ("echo",),
    "shard": (0,),
    "epoch": (1,),
    "Capability.name": ("text.echo",),
}
EXAMPLES = settings(
    max_examples=3_000 if LONG else 60,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Bench:
    """The middle of a sidecar, with an agent that works on the attempts a and b, and a replica; no sockets."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.node = Node("team-a", Grants(("echo",), ("text.*",)), lambda: self.time)
        self.seat = _Servicer(self.node, "echo").seat
        self.session = _Session(self.node, self.seat)
        self.upstream = Upstream(self.node, Directory(lambda _: None, lambda: None), "one:1", _nobody)
        self.stream = _Stream(self.upstream)
        self.link = self.upstream.link()
        self.upstream.welcomed(self.stream, mesh.Welcome(replica_id="one"), {})
        description = registry_pb2.AgentDescription(concurrency=2)
        description.capabilities.add(name="text.echo", version="1")
        self.node.announce(self.seat, description)
        self.hear(mesh.AttachResponse(claims=[mesh.ShardClaim(shard=0, epoch=1)]))
        offers = mesh.AttachResponse()
        for attempt_id in ("a", "b"):
            offers.offers.add(agent="echo", epoch=1).assignment.attempt_id = attempt_id
            offers.offers[-1].assignment.attempt_token = b"token"
        self.hear(offers)
        assert self.session._next() is not None and set(self.seat.running) == {"a", "b"}

    def hear(self, response: mesh.AttachResponse) -> None:
        """What a replica says."""
        self.stream._receive(response, self.link)

    def said(self) -> list[mesh.AttachRequest]:
        """What goes up, as each message is taken out."""
        self.time += 1.0
        self.node.inflight.sweep(self.time)
        found = []
        while (request := next_request(self.node.inflight, self.link, self.node.descriptions)) is not None:
            found.append(request)
        return found


def _nobody() -> Any:
    raise AssertionError("nothing is dialled here")


def keeps_the_rules(requests: list[mesh.AttachRequest]) -> None:
    for request in requests:
        IMAGE.check(ATTACH, request.SerializeToString())


@EXAMPLES
@given(st.lists(messages(pb.WorkRequest, None, KNOWN, ("WorkRequest.hello",)), min_size=1, max_size=4))
def test_what_an_agent_says_is_refused_or_goes_up_within_the_rules(said: list[pb.WorkRequest]) -> None:
    bench = Bench()
    try:
        for request in said:
            bench.session._receive(request)
            bench.session._next()
            keeps_the_rules(bench.said())
    except Refused:
        bench.node.depart(bench.seat)
    keeps_the_rules(bench.said())


@EXAMPLES
@given(messages(registry_pb2.AgentDescription, None, {**KNOWN, "name": ("echo", "text.echo")}))
def test_an_agent_that_announces_itself_is_refused_or_announced_within_the_rules(
    description: registry_pb2.AgentDescription,
) -> None:
    bench = Bench()
    try:
        bench.node.announce(bench.seat, description)
    except Refused:
        return
    keeps_the_rules([hello("0" * 32, 1, bench.node.inflight.hello(bench.link), bench.node.descriptions)[0]])
    keeps_the_rules(bench.said())


@EXAMPLES
@given(st.lists(messages(mesh.AttachResponse, None, KNOWN), min_size=1, max_size=4))
def test_what_a_replica_says_breaks_no_stream_and_the_agent_goes_on(said: list[mesh.AttachResponse]) -> None:
    bench = Bench()
    for response in said:
        bench.hear(response)
        bench.said()
        bench.session._next()
    bench.session._receive(pb.WorkRequest(results=[pb.Result(attempt_id="a")]))
    bench.said()


@settings(parent=EXAMPLES, max_examples=500 if LONG else 40)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.data())
def test_of_a_spool_that_was_damaged_what_comes_before_the_damage_is_found(
    outputs: list[bytes], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        life = Spool(folder, "one", lambda call: None)
        assert list(life.former()) == []
        for number, output in enumerate(outputs):
            attempt = Attempt(str(number), 0, "echo")
            attempt.state, attempt.busy = State.REPORTED, 1.0
            attempt.result = pb.Result(attempt_id=str(number))
            attempt.result.output.inline = output
            life.keep(attempt)
        life.close()
        (path,) = folder.iterdir()
        whole = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:place] + data.draw(st.binary(max_size=40)) + data.draw(st.sampled_from((b"", whole[place:])))
        path.write_bytes(damaged)
        second = Spool(folder, "two", lambda call: None)
        found = [bytes(outcome.result.output.inline) for outcome, _ in second.former()]
        second.close()
        assert found == outputs[: len(found)]
        assert found == outputs or damaged != whole
