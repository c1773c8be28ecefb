"""What clients may ask of runs, in any order, on a real mesh, against a model of a few dictionaries."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from antiphon.v1 import graph_pb2, run_pb2, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Kind
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.harness import LIMIT, Mesh
from tests.harness.raw import reason_of

LONG = os.environ.get("ANTIPHON_ROBUST") == "1"
RUNNING, PAUSED = run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_PAUSED
SUCCEEDED, CANCELLED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_CANCELLED
OPEN = (RUNNING, PAUSED)
SIGNALS = ("first", "second")
KINDS = ("signals", "question")
NOT_THERE = "r0001aaaaaaaaaaaaaaaaaaaaaaaaaa"


def graph_of(kind: str) -> graph_pb2.Graph:
    """One that waits for two signals, one after the other; and one whose task fails until a person answers for it."""
    graph = graph_pb2.Graph(name=kind)
    if kind == "signals":
        for name in SIGNALS:
            graph.tasks.add(id=name).wait.signal = name
        graph.tasks[1].needs.append(SIGNALS[0])
    else:
        task = graph.tasks.add(id="ask", capability="work.fail@1", input='{"kind": "permanent"}')
        task.on_failure = graph_pb2.ON_FAILURE_ESCALATE
    return graph


class World:
    """A mesh, its agent, and a stub for each of two namespaces."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.runs = self.stub("team-a")
        self.strangers = self.stub("team-b")
        self.examples = 0

    def stub(self, namespace: str) -> Any:
        key, chain, bundle = self.mesh.ca.issue(Kind.CLIENT, "alice", namespace=namespace)
        options = [
            ("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 200),  # it is killed, and back soon
        ]
        credentials = grpc.ssl_channel_credentials(bundle, key, chain)
        return run_service_pb2_grpc.RunServiceStub(
            grpc.secure_channel(self.mesh.orchestrator.address, credentials, options)
        )


WORLD: list[World] = []


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    with Mesh("--api-calls-per-second", "100000", "--api-call-burst", "100000") as mesh:
        mesh.sidecar()
        WORLD.append(World(mesh))
        yield
        WORLD.clear()
        mesh.show()


@dataclass
class Known:
    """What the model knows of a run. `signals`: by request id, the name and payload that were sent."""

    run_id: str
    kind: str
    state: int = RUNNING
    signals: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    asked: bool = True
    """Whether the question waits for a person, once the run is at rest; else it is to be tried again."""
    resolved: bool = False
    seq: int = 0
    events: dict[int, bytes] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether nothing but a pause keeps it from its end."""
        return self.resolved or {name for name, _ in self.signals.values()} == set(SIGNALS)


class Runs(RuleBasedStateMachine):
    """`requests`: by request id, what was asked first and its run."""

    def __init__(self) -> None:
        super().__init__()
        self.world = WORLD[0]
        self.world.examples += 1
        self.example = f"{os.getpid()}-{self.world.examples}"
        self.requests: dict[str, tuple[bytes, Known]] = {}
        self.crashed = False

    @property
    def known(self) -> list[Known]:
        return [known for _, known in self.requests.values()]

    def some(self, data: st.DataObject) -> Known:
        return data.draw(st.sampled_from(self.known))

    def ask(self, method: str, request: Any) -> Any:
        """The answer, or the reason of a refusal."""
        try:
            return getattr(self.world.runs, method)(request, timeout=LIMIT, wait_for_ready=True)
        except grpc.RpcError as error:
            return reason_of(error)  # type: ignore[arg-type]  # it has what is asked of a Call

    def about(self, method: str, known: Known, **fields: Any) -> Any:
        return self.ask(method, getattr(run_service_pb2, f"{method}Request")(run_id=known.run_id, **fields))

    def until(self, known: Known, fits: Callable[[run_pb2.Run], bool]) -> run_pb2.Run:
        """The run, once it is as it is to become by itself."""
        end = time.monotonic() + LIMIT
        while not fits(run := self.about("GetRun", known).run):
            assert time.monotonic() < end, run
            time.sleep(0.005)
        return run

    def settle(self, known: Known) -> None:
        """Waits for what follows by itself from what was asked."""
        if known.state == RUNNING and known.done:
            self.until(known, lambda run: run.state == SUCCEEDED)
            known.state = SUCCEEDED
        elif known.state == PAUSED and known.done:
            # What waited already when it was paused may have ended, and with it the run.
            known.state = self.about("GetRun", known).run.state
            assert known.state in (PAUSED, SUCCEEDED)
        elif known.state == RUNNING and known.kind == "question":
            self.until(known, lambda run: run.totals.escalated == 1)
            known.asked = True

    # Rules

    @rule(kind=st.sampled_from(KINDS), number=st.integers(1, 2), other=st.booleans(), stream=st.booleans())
    def submit(self, kind: str, number: int, other: bool, stream: bool) -> None:
        request = run_service_pb2.SubmitRunRequest(request_id=f"{self.example}-{kind}-{number}", inline=graph_of(kind))
        request.labels["example"], request.labels["other"] = self.example, str(other)
        content = request.SerializeToString(deterministic=True)
        if stream:
            batch = run_service_pb2.SubmitRunsRequest(submissions=[request])
            (response,) = self.world.runs.SubmitRuns(iter([batch]), timeout=LIMIT, wait_for_ready=True)
            (result,) = response.results
            assert result.request_id == request.request_id
            answer = result.run if result.HasField("run") else "REQUEST_ID_REUSED"
            assert result.HasField("run") or result.error.metadata["request_id"] == request.request_id
        else:
            answer = self.ask("SubmitRun", request)
            answer = answer if isinstance(answer, str) else answer.run
        before = self.requests.get(request.request_id)
        if before is None:
            known = Known(answer.run_id, kind)
            self.requests[request.request_id] = (content, known)
            self.settle(known)
        elif before[0] == content:
            assert (answer.run_id, answer.state) == (before[1].run_id, before[1].state)
        else:
            assert answer == "REQUEST_ID_REUSED"

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        known = self.some(data)
        answer = self.about("CancelRun", known, reason="enough")
        known.state = CANCELLED if known.state in OPEN else known.state
        assert answer.run.state == known.state

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), pause=st.booleans())
    def pause_or_resume(self, data: st.DataObject, pause: bool) -> None:
        known = self.some(data)
        answer = self.about("PauseRun" if pause else "ResumeRun", known)
        if known.state not in OPEN:
            assert answer == "RUN_ENDED"
            return
        known.state = PAUSED if pause else RUNNING
        assert answer.run.state == known.state or (known.done and answer.run.state == SUCCEEDED)
        self.settle(known)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), name=st.sampled_from(SIGNALS), number=st.integers(1, 3), other=st.booleans())
    def signal(self, data: st.DataObject, name: str, number: int, other: bool) -> None:
        known, payload = self.some(data), b"2" if other else b"1"
        request_id = f"s{number}"
        answer = self.about("SignalRun", known, request_id=request_id, signal=name, payload={"inline": payload})
        before = known.signals.get(request_id)
        if before is not None:
            assert (answer == "REQUEST_ID_REUSED") == (before != (name, payload))
        elif known.state not in OPEN:
            assert answer == "RUN_ENDED"
        elif known.kind != "signals":
            assert answer == "SIGNAL_NOT_EXPECTED"
        else:
            assert answer.key.task_id in ("", name)
            known.signals[request_id] = (name, payload)
            self.settle(known)

    @precondition(lambda self: any(known.kind == "question" for known in self.known))
    @rule(data=st.data(), resolve=st.booleans())
    def retry_or_resolve(self, data: st.DataObject, resolve: bool) -> None:
        known = data.draw(st.sampled_from([known for known in self.known if known.kind == "question"]))
        fields = {"output": {"inline": b"42"}} if resolve else {}
        answer = self.about("ResolveTask" if resolve else "RetryTask", known, key={"task_id": "ask"}, **fields)
        if known.state not in OPEN:
            assert answer == "RUN_ENDED"
        elif known.resolved:
            assert answer == "TASK_STATE_CONFLICT" or answer.task.state == run_pb2.TASK_STATE_SUCCEEDED
        elif not known.asked:
            # Its run is paused, so it was taken up again and does not begin.
            assert known.state == PAUSED
            if resolve:
                assert answer == "TASK_STATE_CONFLICT"
            else:
                assert answer.task.state in (run_pb2.TASK_STATE_PENDING, run_pb2.TASK_STATE_READY)
        else:
            assert answer.task.key.task_id == "ask"
            known.asked, known.resolved = False, resolve
            self.settle(known)

    @precondition(lambda self: self.requests)
    @rule(
        states=st.lists(st.sampled_from((RUNNING, PAUSED, SUCCEEDED, CANCELLED)), unique=True), size=st.integers(1, 3)
    )
    def list_runs(self, states: list[Any], size: int) -> None:
        request = run_service_pb2.ListRunsRequest(states=states, page_size=size, labels={"example": self.example})
        found: list[run_pb2.Run] = []
        while True:
            page = self.ask("ListRuns", request)
            assert len(page.runs) <= size
            found += page.runs
            if not page.next_page_token:
                break
            assert len(page.runs) == size
            request.page_token = page.next_page_token
        fitting = {known.run_id: known.state for known in self.known if not states or known.state in states}
        assert {run.run_id: run.state for run in found} == fitting and len(found) == len(fitting)
        keys = [(run.create_time.ToMicroseconds(), run.run_id) for run in found]
        assert keys == sorted(keys, reverse=True)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def list_with_the_token_of_another_query(self, data: st.DataObject) -> None:
        request = run_service_pb2.ListRunsRequest(page_size=1, labels={"example": self.example})
        token = self.ask("ListRuns", request).next_page_token
        request.labels["example"] = "another"
        request.page_token = token or data.draw(st.text(min_size=1, max_size=20))
        assert self.ask("ListRuns", request) == "PAGE_TOKEN_INVALID"

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def watch(self, data: st.DataObject) -> None:
        known = self.some(data)
        last = self.about("GetRun", known).run.event_seq
        # How many events there are hangs on how quickly the agent began, and what is drawn must not.
        cursor = data.draw(st.integers(0, 100)) % (last + 2)
        request = run_service_pb2.WatchRunRequest(run_id=known.run_id, cursor=cursor)
        call = self.world.runs.WatchRun(request, timeout=LIMIT, wait_for_ready=True)
        seen: list[run_pb2.RunEvent] = []
        ended = None
        try:
            while known.state not in OPEN or len(seen) < last - cursor or cursor > last:
                response = next(call, None)
                if response is None:
                    break
                seen += response.events
                ended = response.run if response.HasField("run") else ended
        except grpc.RpcError as error:
            assert cursor > last and reason_of(error) == "CURSOR_INVALID"  # type: ignore[arg-type]
            return
        finally:
            call.cancel()
        assert [event.event_seq for event in seen] == list(range(cursor + 1, last + 1))
        for event in seen:
            data_of = event.SerializeToString(deterministic=True)
            assert known.events.setdefault(event.event_seq, data_of) == data_of
        assert (ended is not None) == (known.state not in OPEN)
        assert ended is None or ended.state == known.state

    @precondition(lambda self: self.requests)
    @rule(
        data=st.data(),
        method=st.sampled_from(("GetRun", "CancelRun", "PauseRun", "ResumeRun", "ListTasks")),
        theirs=st.booleans(),
    )
    def ask_for_what_is_not_there(self, data: st.DataObject, method: str, theirs: bool) -> None:
        run_id = self.some(data).run_id if theirs else NOT_THERE
        stub = self.world.strangers if theirs else self.world.runs
        with pytest.raises(grpc.RpcError) as refused:
            getattr(stub, method)(getattr(run_service_pb2, f"{method}Request")(run_id=run_id), timeout=LIMIT)
        assert reason_of(refused.value) == "RUN_NOT_FOUND"  # type: ignore[arg-type]

    @precondition(lambda self: LONG and self.requests and not self.crashed)
    @rule()
    def crash(self) -> None:
        """Once in an example: it takes longer than all the rest."""
        self.crashed = True
        self.world.mesh.orchestrator.restart()
        for known in self.known:
            self.settle(known)

    @invariant()
    def every_run_is_as_the_model_says(self) -> None:
        for known in self.known:
            run = self.about("GetRun", known).run
            assert (run.state, run.labels["example"]) == (known.state, self.example)
            assert (
                run.event_seq >= known.seq if known.state in OPEN else run.event_seq >= known.seq > 0 or not known.seq
            )
            known.seq = run.event_seq


Runs.TestCase.settings = settings(
    max_examples=30 if LONG else 8,
    stateful_step_count=30 if LONG else 20,
    deadline=None,
    derandomize=not LONG,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
TestRuns = Runs.TestCase
