"""What leaves a shard of a payload: to agents what they may have, to the run's principal what it may have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from antiphon.v1 import graph_pb2, payload_pb2, run_pb2, run_service_pb2
from antiphon.v1.graph_pb2 import Graph
from antiphon_orchestrator.admission import SchemaSet, Values, compile_graph
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.plan import Plan
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import AttemptState
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile
from antiphon_orchestrator.runs import steering, views
from antiphon_orchestrator.shards import inputs as i
from shard_rig import Rig, instance

from tests.fakes.plans import CLIENT, SECOND

ALL = '@id("all") permit (principal, action, resource);'
SCHEMA = json.dumps({"type": "object", "properties": {"name": {"type": "string"}, "phone": {}}, "required": ["name"]})
CLEARED = {"input_schema": SCHEMA, "clearance": ["pii"]}


def redact(action: str, *what: str) -> str:
    told = " ".join(what)
    return f'@id("hide") @obligation("redact") {told} permit (principal, action == Action::"{action}", resource);'


def rig(*policies: str, **settings: Any) -> Rig:
    bundle = PolicyBundle.of(1, [PolicyFile("a.cedar", ALL + "".join(policies))])
    of = Fleet(CedarPolicies(bundle), SchemaSet(Values()))
    of.attach(instance(slots=8, **{**CLEARED, **settings}))
    return Rig(of)


def plan(input: str = '"${input}"', output: str = "") -> Plan:
    graph = Graph(name="g", output=output)
    graph.tasks.add(id="a", capability="text.work@1", input=input)
    graph.tasks.add(id="b", capability="text.work@1", input='"${tasks.a.output}"', needs=["a"])
    return compile_graph(graph).plan


def value(data: bytes | None) -> Any:
    assert data is not None
    return json.loads(payload_pb2.Payload.FromString(data).inline)


def message(content: Any, **labels: str) -> bytes:
    made = payload_pb2.Payload(inline=json.dumps(content).encode())
    for pointer, key in labels.items():
        made.field_labels.add(pointer=f"/{pointer}").labels.add(key=key)
    return made.SerializeToString()


def handed_on(run: Run, task: int = 0) -> Any:
    attempt = run.tasks[task].attempts[-1]
    reduced = attempt.placement.reduced_input
    return value(run.tasks[task].input if reduced is None else reduced)


def withheld(run: Run, task: int = 0) -> list[tuple[str, str]]:
    decision = run_pb2.RoutingDecision.FromString(run.tasks[task].attempts[-1].placement.decision)
    assert decision.withheld_count == len(decision.withheld)
    return [(part.pointer, part.reason) for part in decision.withheld]


ADA = {"name": "Ada", "phone": "1", "ssn": "2"}


def begin(one: Rig, content: Any = ADA, of: Plan | None = None, **labels: str) -> Run:
    one.tell(one.submit("r", of or plan(), input=message(content, **labels)))
    return one.run("r")


def test_an_agent_gets_what_its_schema_declares_and_the_record_keeps_the_whole() -> None:
    one = rig()
    run = begin(one)
    assert handed_on(run) == {"name": "Ada", "phone": "1"}
    assert withheld(run) == [("/ssn", "schema")]
    assert value(run.tasks[0].input) == ADA
    recovered = one.recovered(lambda submitted: plan()).run("r")
    assert handed_on(recovered) == {"name": "Ada", "phone": "1"} and withheld(recovered) == [("/ssn", "schema")]


def test_what_is_declared_whole_is_handed_on_as_it_is() -> None:
    run = begin(rig(), {"name": "Ada"})
    assert run.tasks[0].attempts[0].placement.reduced_input is None and withheld(run) == []


def test_a_policy_redacts_fields_by_path_and_by_label() -> None:
    run = begin(rig(redact("dispatch", '@labels("pii")')), phone="pii")
    assert handed_on(run) == {"name": "Ada"}
    assert withheld(run) == [("/ssn", "schema"), ("/phone", "hide")]
    assert handed_on(begin(rig(redact("dispatch", '@fields("phone")')))) == {"name": "Ada"}


def test_a_task_that_waited_for_its_agent_is_reduced_like_any_other() -> None:
    one = rig(redact("dispatch", '@fields("phone")'))
    waits = instance(slots=0, **CLEARED)
    one.fleet.attach(waits)
    run = begin(one)
    one.fleet.window(waits.instance_id, 2, 1)
    one.tell()
    assert handed_on(run) == {"name": "Ada"}


@pytest.mark.parametrize(
    ("content", "fields", "said"),
    [
        (message(ADA), "name", "policy hide redacts what text.work@1.0 cannot do without"),
        (payload_pb2.Payload(blob={"digest": "0" * 64}).SerializeToString(), "phone", "is kept by reference"),
    ],
)
def test_an_input_that_cannot_be_redacted_reaches_no_agent(content: bytes, fields: str, said: str) -> None:
    one = rig(redact("dispatch", f'@fields("{fields}")'))
    one.tell(one.submit("r", plan(), input=content))
    run = one.run("r")
    assert run.state.name == "FAILED" and run.failure is not None and run.failure.kind.name == "POLICY"
    assert said in run.failure.message and not run.tasks[0].attempts
    assert [found.in_use for found in one.fleet.instances()] == [0]


def test_an_agent_that_cannot_do_without_leaves_the_task_to_one_that_can() -> None:
    one = rig(redact("dispatch", '@fields("name")'))
    needs_nothing = json.dumps({"type": "object", "properties": {"phone": {}}})
    one.fleet.attach(instance("b", slots=1, version="1.1", input_schema=needs_nothing))
    run = begin(one)
    assert run.tasks[0].attempts[0].placement.agent == "b" and handed_on(run) == {"phone": "1"}


def finish(one: Rig, task: str, content: Any) -> None:
    one.tell(one.report(f"r/{task}/0/1", Outcome(AttemptState.SUCCEEDED, message(content))))


def test_a_principal_reads_released_outputs_only_while_tasks_hand_on_the_whole() -> None:
    one = rig(redact("release", '@fields("phone")'))
    of = plan(output='{"first": "${tasks.a.output}", "second": "${tasks.b.output.phone}"}')
    begin(one, of=plan(output='{"first": "${tasks.a.output}", "name": "${tasks.b.output.name}"}'))
    finish(one, "a", {"name": "Bob", "phone": "3"})
    run = one.run("r")
    assert handed_on(run, 1) == {"name": "Bob", "phone": "3"}
    finish(one, "b", {"name": "Eve", "phone": "4"})
    assert run.state.name == "SUCCEEDED"
    assert value(run.output) == {"first": {"name": "Bob"}, "name": "Eve"}
    first, second = (views.task_message(run, task) for task in run.tasks)
    assert json.loads(first.output.inline) == {"name": "Bob"} and json.loads(second.output.inline) == {"name": "Eve"}
    assert json.loads(first.input.inline) == ADA and not second.HasField("input")
    assert first.withheld == "the output is redacted as policy demands: redact(/phone)"
    assert second.withheld.startswith("the input is not shown, because outputs of this run are redacted; the output")
    again = one.recovered(lambda submitted: of).run("r")
    assert value(again.output) == value(run.output) and again.redacted
    assert value(again.tasks[0].output) == {"name": "Bob", "phone": "3"}


def test_an_output_that_cannot_be_redacted_is_not_released() -> None:
    one = rig(redact("release", '@fields("phone")'))
    begin(one)
    blob = payload_pb2.Payload(blob={"digest": "0" * 64}).SerializeToString()
    one.tell(one.report("r/a/0/1", Outcome(AttemptState.SUCCEEDED, blob)))
    run = one.run("r")
    assert run.failure is not None and run.failure.kind.name == "POLICY"
    assert "demands redaction, but the output is kept by reference" in run.failure.message


def test_labels_of_an_output_schema_are_the_outputs_and_decide_its_release() -> None:
    output = json.dumps({"properties": {"phone": {"x-antiphon-labels": ["pii"]}}})
    stop = (
        '@id("stop") forbid (principal, action == Action::"release", resource) when { context.labels.contains("pii") };'
    )
    one = rig(output_schema=output)
    begin(one)
    finish(one, "a", {"name": "Bob", "phone": "3"})
    made = payload_pb2.Payload.FromString(one.run("r").tasks[0].output or b"")
    assert [(part.pointer, part.labels[0].key, part.labels[0].asserted_by) for part in made.field_labels] == [
        ("/phone", "pii", "schema")
    ]
    other = rig(stop, output_schema=output)
    begin(other)
    finish(other, "a", {"name": "Bob", "phone": "3"})
    failure = other.run("r").failure
    assert failure is not None and "denied by policy stop" in failure.message


def test_an_output_inherits_the_labels_of_what_its_agent_got_and_not_of_what_was_withheld() -> None:
    one = rig(redact("dispatch", '@labels("pii")'))
    begin(one, phone="pii", ssn="pii")
    finish(one, "a", {"name": "Bob"})
    assert not payload_pb2.Payload.FromString(one.run("r").tasks[0].output or b"").labels


def test_a_label_of_a_field_that_an_agent_does_not_get_asks_for_no_clearance_and_decides_nothing() -> None:
    stop = (
        '@id("stop") forbid (principal, action == Action::"dispatch", resource)'
        ' when { context.labels.contains("pii") };'
    )
    one = rig(stop, clearance=[])
    assert handed_on(begin(one, ssn="pii")) == {"name": "Ada", "phone": "1"}
    waits = rig(clearance=[])
    assert begin(waits, phone="pii", ssn="pii").tasks[0].state.name == "READY"
    blob = payload_pb2.Payload(blob={"digest": "0" * 64})
    blob.field_labels.add(pointer="/ssn").labels.add(key="pii")
    other = rig(clearance=[])
    other.tell(other.submit("r", plan(), input=blob.SerializeToString()))
    assert other.run("r").tasks[0].state.name == "READY"


async def test_an_answer_to_a_task_that_nobody_took_has_its_labels_and_is_released_like_any_other() -> None:
    one = rig(redact("release", '@labels("pii")'), clearance=[])
    graph = Graph(name="g")
    graph.tasks.add(id="a", capability="text.work@1", input='"${input}"', on_failure=graph_pb2.ON_FAILURE_ESCALATE)
    graph.tasks.add(id="b", capability="text.other@1", input='"${tasks.a.output}"', needs=["a"])
    one.tell(one.submit("r", compile_graph(graph).plan, input=message({"name": "Ada"}, name="pii")))
    one.now += 600 * SECOND
    one.tell()
    assert one.states("r") == ["ESCALATED", "PENDING"] and not one.run("r").tasks[0].attempts
    request = run_service_pb2.ResolveTaskRequest(run_id="r", key={"task_id": "a"}, output={"inline": b"5"})
    answers: list[Any] = []
    for _ in range(2):
        blobs: Any = None
        wish = await steering.resolve(request, CLIENT, "demo", blobs, one.fleet)
        one.tell(i.Steer("r", CLIENT, "resolve", "", {}, wish, answers.append))
    task = one.run("r").tasks[0]
    made = payload_pb2.Payload.FromString(task.output or b"")
    assert (made.inline, [label.key for label in made.labels]) == (b"5", ["pii"])
    assert [answer.output.inline for answer in answers] == [b"null", b"null"], (
        "the second says the same and does nothing"
    )
    assert "redacted" in answers[0].withheld
    again = one.recovered(lambda submitted: compile_graph(graph).plan).run("r").tasks[0]
    assert (again.output, again.released) == (task.output, task.released)


async def test_an_answer_in_place_of_a_quorum_or_a_loop_has_the_labels_of_what_its_members_got() -> None:
    one = rig(clearance=["pii"])
    graph = Graph(name="g")
    quorum = graph_pb2.Quorum(agree=2, of=2)
    escalate = graph_pb2.ON_FAILURE_ESCALATE
    graph.tasks.add(id="vote", capability="text.work@1", input='"${input}"', quorum=quorum, on_failure=escalate)
    one.tell(one.submit("r", compile_graph(graph).plan, input=message({"name": "Ada"}, name="pii")))
    one.now += 600 * SECOND
    one.tell()
    assert one.run("r").tasks[0].state.name == "ESCALATED"
    request = run_service_pb2.ResolveTaskRequest(run_id="r", key={"task_id": "vote"}, output={"inline": b"5"})
    blobs: Any = None
    wish = await steering.resolve(request, CLIENT, "demo", blobs, one.fleet)
    one.tell(i.Steer("r", CLIENT, "resolve", "", {}, wish, lambda answer: None))
    made = payload_pb2.Payload.FromString(one.run("r").tasks[0].output or b"")
    assert [label.key for label in made.labels] == ["pii"]
