"""What expressions read of shared context: asked for once, recorded before it is used, never read again."""

from __future__ import annotations

import pytest
from antiphon.store.v1 import journal_pb2
from antiphon_orchestrator.engine import decide, steer
from antiphon_orchestrator.engine.decide import Outcome
from antiphon_orchestrator.engine.events import OUTPUT, Found, TaskReopened
from antiphon_orchestrator.engine.failure import Failure, FailureKind
from antiphon_orchestrator.engine.plan import OnFailure
from antiphon_orchestrator.engine.run import Run, apply
from antiphon_orchestrator.engine.states import AttemptState
from antiphon_orchestrator.runs import views
from antiphon_orchestrator.shards import codec
from antiphon_orchestrator.shards import inputs as i
from shard_rig import Rig, instance

from tests.fakes.plans import CLIENT, Node, payload, plan

CHAIN = plan(Node(), Node((0,), reads=("a", "b")))


def found(text: str = "it", revision: int = 7) -> tuple[Found, ...]:
    return (Found("namespace", "a", revision, payload(text)), Found("namespace", "b", 0, None))


def rig_with(*runs: str) -> Rig:
    rig = Rig()
    rig.fleet.attach(instance(slots=4))
    for run_id in runs:
        rig.tell(rig.submit(run_id, CHAIN))
    return rig


def kinds(rig: Rig, run_id: str = "r1") -> list[str | None]:
    return [journal_pb2.Record.FromString(raw).WhichOneof("event") for raw in rig.shard.runs[run_id].records]


def test_a_task_whose_needs_are_done_waits_for_what_it_reads_and_is_then_offered_with_it() -> None:
    rig = rig_with("r1")
    assert rig.reads == []
    rig.tell(rig.report("r1/t0/0/1"))
    assert (rig.reads, rig.offers) == ([("r1", [1])], ["r1/t0/0/1"])
    assert views.task_message(rig.run("r1"), rig.run("r1").tasks[1]).reason == "reads shared context"
    rig.tell(i.ContextFound("r1", [(1, found())]))
    assert rig.offers == ["r1/t0/0/1", "r1/t1/0/1"]
    assert rig.run("r1").tasks[1].input == payload("it")
    assert kinds(rig)[-2:] == ["context_read", "attempt_offered"]
    reads = views.task_message(rig.run("r1"), rig.run("r1").tasks[1]).reads
    assert [(read.key, read.revision) for read in reads] == [("a", 7), ("b", 0)]
    rig.tell(i.ContextFound("r1", [(1, found("something else", 9))]))
    assert len(rig.reads) == 1 and kinds(rig).count("context_read") == 1, "a second answer changes nothing"


def test_nothing_leaves_for_shared_context_before_the_outcome_that_caused_it_is_committed() -> None:
    rig = rig_with("r1")
    rig.shard.inbox.append(rig.report("r1/t0/0/1"))
    turn = rig.shard.take_turn(rig.now, lambda: 0.0)
    assert turn.records and not rig.reads
    rig.shard.release(turn, 9)
    assert rig.reads == [("r1", [1])]


def test_a_new_owner_reads_what_was_not_recorded_and_nothing_that_was() -> None:
    rig = rig_with("r1", "r2")
    rig.tell(rig.report("r1/t0/0/1"), rig.report("r2/t0/0/1"))
    rig.tell(i.ContextFound("r1", [(1, found())]))
    other = rig.recovered(lambda submitted: CHAIN)
    other.tell()
    assert other.reads == [("r2", [1])]
    assert other.run("r1").tasks[1].input == payload("it")


def test_a_snapshot_keeps_what_was_read() -> None:
    of = plan(Node(reads=("a",)), Node((0,)), output_reads="a")
    rig = Rig()
    rig.tell(rig.submit("r1", of), i.ContextFound("r1", [(0, found())]))
    run = rig.run("r1")
    run.found = found("of the output")
    again = Run("r1", of, run.submitted, 0)
    codec.restore(again, journal_pb2.RunSnapshot.FromString(codec.snapshot(run).SerializeToString()), run.event_seq)
    assert (again.tasks[0].found, again.tasks[1].found, again.found) == (found(), None, found("of the output"))


def test_all_chunks_of_a_large_fan_out_see_the_same() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=400))
    rig.tell(rig.submit("r1", plan(Node(members=250, reads=("a",)))))
    rig.tell(i.ContextFound("r1", [(0, found())]))
    members = rig.run("r1").tasks[0].members
    assert (len(members), {member.state.name for member in members}) == (250, {"RUNNING"})
    assert rig.reads == [("r1", [0])]


def test_what_cannot_be_read_fails_the_task_with_the_reason() -> None:
    rig = rig_with("r1")
    rig.tell(rig.report("r1/t0/0/1"))
    rig.tell(i.ContextFound("r1", [(1, Failure(FailureKind.POLICY, "no", "d-1", retryable=False))]))
    run = rig.run("r1")
    assert (rig.states("r1"), run.state.name) == (["SUCCEEDED", "FAILED"], "FAILED")
    assert run.failure is not None and (run.failure.kind, run.failure.message) == (FailureKind.POLICY, "task t1: no")


def retry(run_id: str, task: int) -> i.Steer:
    def wish(run: Run, now: int) -> i.Steered:
        return i.Steered(steer.retry_task(run, run.tasks[task], None, CLIENT, "mended"), lambda run: run.event_seq)

    return i.Steer(run_id, CLIENT, "retry", "mended", {}, wish, lambda answer: None)


ESCALATES = Node(reads=("a",), on_failure=OnFailure.ESCALATE)


def test_a_task_that_is_tried_again_reads_again_what_could_not_be_read() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(ESCALATES)))
    for times in (1, 2):
        rig.tell(i.ContextFound("r1", [(0, Failure(FailureKind.PERMANENT, "too large", retryable=False))]))
        assert (rig.states("r1"), rig.reads) == (["ESCALATED"], [("r1", [0])] * times)
        rig.tell(retry("r1", 0))
    assert rig.reads == [("r1", [0])] * 3
    rig.tell(i.ContextFound("r1", [(0, found())]))
    assert rig.run("r1").tasks[0].input == payload("it") and rig.offers == ["r1/t0/0/1"]


def test_it_sees_what_shared_context_holds_by_then_and_so_does_a_new_owner() -> None:
    of = plan(ESCALATES)
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", of), i.ContextFound("r1", [(0, found("old"))]))
    rig.tell(rig.report("r1/t0/0/1", Outcome(AttemptState.FAILED, failure=Failure(FailureKind.PERMANENT, "no"))))
    rig.tell(retry("r1", 0))
    assert rig.states("r1") == ["PENDING"] and rig.reads == [("r1", [0])] * 2
    other = rig.recovered(lambda submitted: of)
    other.tell()
    assert other.reads == [("r1", [0])]
    rig.tell(i.ContextFound("r1", [(0, found("new", 9))]))
    assert rig.run("r1").tasks[0].input == payload("new")
    assert rig.recovered(lambda submitted: of).run("r1").tasks[0].found == found("new", 9)


def test_an_answer_for_a_task_that_no_longer_waits_does_not_keep_it_from_reading_later() -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node(on_failure=OnFailure.CONTINUE), Node((0,), reads=("a",)))))
    trouble = Outcome(AttemptState.FAILED, failure=Failure(FailureKind.PERMANENT, "no", retryable=False))
    rig.tell(rig.report("r1/t0/0/1", trouble))
    assert rig.reads == [("r1", [1])]
    rig.tell(retry("r1", 0), i.ContextFound("r1", [(1, found())]))
    assert rig.states("r1") == ["RUNNING", "PENDING"]
    rig.tell(rig.report("r1/t0/0/2"))
    assert rig.reads == [("r1", [1])] * 2
    rig.tell(i.ContextFound("r1", [(1, found("new"))]))
    assert rig.run("r1").tasks[1].input == payload("new")


def test_a_record_from_before_what_was_read_was_forgotten_keeps_it() -> None:
    rig = Rig()
    rig.tell(rig.submit("r1", plan(ESCALATES)), i.ContextFound("r1", [(0, found())]))
    run = rig.run("r1")
    apply(run, decide.fail_task(run.tasks[0], Failure(FailureKind.PERMANENT, "no"))[0], 0)
    raw = journal_pb2.Record.FromString(codec.encode("r1", run.event_seq, 0, TaskReopened(0, 0, CLIENT, "mended")))
    raw.task_reopened.ClearField("reads_anew")
    apply(run, codec.decode(raw), 0)
    assert run.tasks[0].found == found() and decide.readers(run) == []


@pytest.mark.parametrize("fails", [False, True])
def test_the_output_of_a_run_reads_when_all_tasks_have_ended(fails: bool) -> None:
    rig = Rig()
    rig.fleet.attach(instance())
    rig.tell(rig.submit("r1", plan(Node(), output_reads="a")))
    assert rig.reads == []
    rig.tell(rig.report("r1/t0/0/1"))
    assert (rig.reads, rig.run("r1").state.name) == ([("r1", [OUTPUT])], "RUNNING")
    answer = Failure(FailureKind.POLICY, "no") if fails else found()
    rig.tell(i.ContextFound("r1", [(OUTPUT, answer)]))
    run = rig.run("r1")
    if fails:
        assert run.state.name == "FAILED" and run.failure is not None and run.failure.message == "no"
    else:
        assert (run.state.name, run.output) == ("SUCCEEDED", payload("it"))
        assert [read.revision for read in views.run_message(run).output_reads] == [7, 0]


def test_a_task_that_is_skipped_and_a_run_that_was_cancelled_or_has_failed_read_nothing() -> None:
    skipped = plan(Node(when=False), Node((0,), reads=("a",)))
    rig = rig_with("r1")
    rig.tell(rig.submit("r2", skipped))
    assert rig.states("r2") == ["SKIPPED", "SKIPPED"] and rig.reads == []
    rig.tell(rig.report("r1/t0/0/1"))
    rig.tell(i.Cancel("r1", "somebody", "enough", lambda answer: None))
    assert rig.run("r1").state.name == "CANCELLED"
    rig.tell(i.ContextFound("r1", [(1, found())]), i.ContextFound("unknown", [(1, found())]))
    assert rig.states("r1") == ["SUCCEEDED", "CANCELLED"]


def test_many_large_answers_are_recorded_in_turns_that_the_store_takes() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=20))
    rig.tell(rig.submit("r1", plan(*[Node(reads=("a",)) for _ in range(12)])))
    large = (Found("namespace", "a", 1, payload("x" * 200_000)),)
    rig.tell(i.ContextFound("r1", [(index, large) for index in range(12)]))
    assert len(rig.offers) == 12
    assert max(sum(map(len, records)) for _, records in rig.log) < 1_500_000
