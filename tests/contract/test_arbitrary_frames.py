"""A sidecar that says whatever the contract lets it say, in any order, and of attempts that it never had.

Its stream ends with a reason of the registry, or what it says is refused or counts for nothing. It meets no bug,
changes no record but of what it was given, and leaves every record readable.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.mesh.v1 import mesh_service_pb2_grpc
from antiphon.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Kind
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.contract.contract import Contract
from tests.contract.judging import Answer, wrong_with_refusals
from tests.contract.world import World
from tests.harness.messages import messages

LONG = os.environ.get("ANTIPHON_ROBUST") == "1"
LIMIT = 20.0
CONTRACT = Contract()
ATTACH = CONTRACT.methods["/antiphon.mesh.v1.MeshService/Attach"]
ITEMS = replace(ATTACH, errors=frozenset(CONTRACT.reasons))
"""What is refused within a stream is the matter of the call that it stands for."""
NO_HELLO = ("AttachRequest.hello",)
CAPABILITY = "evil.work"
EXAMPLES = settings(
    max_examples=500 if LONG else 40,
    derandomize=not LONG,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
INCARNATIONS = st.integers(0, (1 << 128) - 1).map(lambda number: f"{number:032x}")

Rest = Callable[[Callable[[], mesh.Offer]], list[mesh.AttachRequest]]


class Stage:
    """A mesh with runs of others, a hostile sidecar's stub, and what clients see."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs: Any = run_service_pb2_grpc.RunServiceStub(self._channel(Kind.CLIENT, "alice"))
        self.mesh: Any = mesh_service_pb2_grpc.MeshServiceStub(
            self._channel(Kind.SIDECAR, "mallory", agents=("evil",), capabilities=("evil.*",))
        )
        runs = self.runs.ListRuns(run_service_pb2.ListRunsRequest(), timeout=LIMIT).runs
        self.others = [run.run_id for run in runs]
        self.count = 0
        attempt = str(world.facts["agent_socket"]["attempt_id"])
        self._at_rest(attempt.partition("/")[0])
        self.known = {
            "attempt_id": (attempt, *(f"{run_id}/t/0/1" for run_id in self.others)),
            "attempt_ids": (attempt,),
            "reported_attempt_ids": (attempt,),
            "attempt_token": (bytes(world.facts["agent_socket"]["attempt_token"]),),  # type: ignore[arg-type]
            "AgentDescription.name": ("evil",),
            "Capability.name": (CAPABILITY,),
            "agent": ("evil", "holder"),
            "gone": ("evil",),
            "shard": (0, 1, 2, 3),
            "epoch": (1,),
        }

    def _channel(self, kind: Kind, name: str, **grants: Any) -> grpc.Channel:
        key, chain, bundle = self.world.mesh.ca.issue(kind, name, **grants)
        credentials = grpc.ssl_channel_credentials(bundle, key, chain)
        options = [("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(self.world.mesh.orchestrator.address, credentials, options)

    def _at_rest(self, run_id: str) -> None:
        """Waits until the attempt that is held is known to have begun, after which nothing happens to it."""
        request = run_service_pb2.ListAttemptsRequest(run_id=run_id, key=run_pb2.TaskKey(task_id="t"))
        end = time.monotonic() + LIMIT
        while self.runs.ListAttempts(request, timeout=LIMIT).attempts[0].state != run_pb2.ATTEMPT_STATE_RUNNING:
            assert time.monotonic() < end, "the attempt that is held has not begun"
            time.sleep(0.01)

    def next(self) -> int:
        """A number that was not used before."""
        self.count += 1
        return self.count

    def attach(self, first: mesh.AttachRequest, rest: Rest) -> Answer:
        """What comes of a stream until it ends. `rest` makes what follows the hello, of the first offer if it asks for
        one."""
        waiting: queue.SimpleQueue[mesh.AttachRequest | None] = queue.SimpleQueue()
        waiting.put(first)
        call = self.mesh.Attach(iter(waiting.get, None), timeout=LIMIT)
        responses: list[mesh.AttachResponse] = []

        def offer() -> mesh.Offer:
            for response in call:
                responses.append(response)
                if response.offers:
                    return response.offers[0]
            raise AssertionError("the stream ended before there was an offer")

        try:
            for request in (*rest(offer), None):
                waiting.put(request)
            responses += call
        except grpc.RpcError as error:
            return refused(error, responses)
        finally:
            waiting.put(None)
        return Answer(0, "", None, tuple(response.SerializeToString() for response in responses))

    def records(self, *run_ids: str) -> list[bytes]:
        """All there is to read of runs, at rest."""
        found = []
        for run_id in run_ids:
            asked = {"run_id": run_id, "timeout": LIMIT}
            found += [answer.SerializeToString(deterministic=True) for answer in self._read(**asked)]
        return found

    def _read(self, run_id: str, timeout: float) -> Iterator[Any]:
        yield self.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id), timeout=timeout)
        listed = run_service_pb2.ListTasksRequest(run_id=run_id, include_payloads=True)
        yield self.runs.ListTasks(listed, timeout=timeout)
        for task in self.runs.ListTasks(listed, timeout=timeout).tasks:
            for method in ("GetTask", "ListAttempts"):
                request = getattr(run_service_pb2, f"{method}Request")(run_id=run_id, key=task.key)
                yield getattr(self.runs, method)(request, timeout=timeout)
            # That it can be told counts; why something is not placed yet is no record.
            self.runs.ExplainTask(run_service_pb2.ExplainTaskRequest(run_id=run_id, key=task.key), timeout=timeout)

    def log(self) -> list[str]:
        """What the orchestrator says of bugs of its own."""
        lines = self.world.mesh.orchestrator.said().splitlines()
        return [line for line in lines if not line.startswith("{") or '"level": "error"' in line]


def bugs(answer: Answer) -> list[str]:
    """What is wrong with how a stream ended, and with what was refused in it."""
    if answer.code and answer.details is None:
        return [f"code {answer.code} without a reason: {answer.message}"]
    return [
        *wrong_with_refusals(CONTRACT, ATTACH, replace(answer, responses=())),
        *wrong_with_refusals(CONTRACT, ITEMS, replace(answer, details=None)),
    ]


def refused(error: Any, responses: list[mesh.AttachResponse]) -> Answer:
    trailers = dict(error.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin")
    return Answer(
        error.code().value[0],
        error.details() or "",
        details,
        tuple(response.SerializeToString() for response in responses),
    )


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with World() as world:
        made = Stage(world)
        yield made
        assert made.log() == []


def hello(stage: Stage, data: st.DataObject) -> mesh.AttachRequest:
    usual = {"Hello.protocol_version": st.just(1), "Hello.incarnation": INCARNATIONS}
    odd = data.draw(st.integers(0, 9)) == 0
    return mesh.AttachRequest(hello=data.draw(messages(mesh.Hello, {} if odd else usual, stage.known)))


@pytest.mark.proves("a sidecar that lies")
@EXAMPLES
@given(data=st.data())
def test_whatever_a_sidecar_says_is_refused_or_counts_for_nothing_that_is_not_its_own(
    stage: Stage, data: st.DataObject
) -> None:
    said = data.draw(st.lists(messages(mesh.AttachRequest, None, stage.known, NO_HELLO), max_size=4))
    before = stage.records(*stage.others)
    answer = stage.attach(hello(stage, data), lambda _: said)
    assert bugs(answer) == []
    assert stage.records(*stage.others) == before
    assert stage.log() == []


def ready(stage: Stage) -> mesh.AttachRequest:
    """The hello of a sidecar whose agent takes one attempt."""
    first = mesh.AttachRequest()
    first.hello.incarnation, first.hello.generation, first.hello.protocol_version = f"{stage.next():032x}", 1, 1
    first.hello.agents.add(name="evil", concurrency=1).capabilities.add(name=CAPABILITY, version="1")
    first.hello.windows.add(agent="evil", generation=1, slots=1)
    return first


@pytest.mark.proves("a sidecar that lies")
@EXAMPLES
@given(data=st.data())
def test_whatever_a_sidecar_answers_to_what_it_was_given_the_record_can_be_read(
    stage: Stage, data: st.DataObject
) -> None:
    others = stage.records(*stage.others)
    submit = run_service_pb2.SubmitRunRequest(request_id=f"evil-{stage.next()}")
    submit.inline.name = "evil"
    submit.inline.tasks.add(id="t", capability=f"{CAPABILITY}@1")
    run_id = stage.runs.SubmitRun(submit, timeout=LIMIT).run.run_id

    def rest(offered: Callable[[], mesh.Offer]) -> list[mesh.AttachRequest]:
        offer = offered()
        about = {
            "attempt_id": st.just(offer.assignment.attempt_id),
            "attempt_token": st.just(offer.assignment.attempt_token),
            "shard": st.just(offer.shard),
        }
        return data.draw(st.lists(messages(mesh.AttachRequest, about, stage.known, NO_HELLO), min_size=1, max_size=3))

    answer = stage.attach(ready(stage), rest)
    assert bugs(answer) == []
    stage.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=run_id), timeout=LIMIT)
    stage.records(run_id)
    watched = list(stage.runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=run_id), timeout=LIMIT))
    assert watched[-1].HasField("run")
    assert stage.records(*stage.others) == others
    assert stage.log() == []
