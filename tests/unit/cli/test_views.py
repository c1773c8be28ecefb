"""Records become text that a person can follow."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

from antiphon.cli import output
from antiphon.cli.agents import agent_details, agent_row
from antiphon.cli.explain_view import explanation
from antiphon.cli.run_view import MEMBERS_SHOWN, OUTPUT_SHOWN, key_of, output_line, run_tree, shown_tasks
from antiphon.cli.runs import run_row
from antiphon.cli.text import spell_moment
from antiphon.cli.watch_view import RunProgress, event_line
from antiphon.v1.context_pb2 import ContextScope, EntryReference
from antiphon.v1.failure_pb2 import FAILURE_KIND_LOST, FAILURE_KIND_PERMANENT, Failure
from antiphon.v1.payload_pb2 import BlobReference, Payload
from antiphon.v1.registry_pb2 import BREAKER_STATE_CLOSED, BREAKER_STATE_OPEN, Agent
from antiphon.v1.run_pb2 import (
    ATTEMPT_STATE_LOST,
    ATTEMPT_STATE_SUCCEEDED,
    CHILD_KIND_ANSWER,
    CHILD_KIND_CALL,
    CHILD_KIND_GRAPH,
    RUN_STATE_CANCELLED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    TASK_STATE_FAILED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    Agreement,
    Attempt,
    AttemptChange,
    Candidate,
    Child,
    PartialOutput,
    PolicyDecision,
    Progress,
    Refusal,
    ReusedResult,
    RoutingDecision,
    Run,
    RunEvent,
    Task,
    TaskKey,
    TaskTotals,
)
from antiphon.v1.run_service_pb2 import Dependency, ExplainTaskResponse
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType


def text_of(thing: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def member(number: int, attempt_count: int = 1, state: int = TASK_STATE_SUCCEEDED) -> Task:
    return Task(
        key=TaskKey(task_id="classify", member=number),
        state=state,  # type: ignore[arg-type]
        attempt_count=attempt_count,
        ready_time=Timestamp(seconds=10),
        end_time=Timestamp(seconds=12),
    )


RUN = Run(
    run_id="r-1",
    graph_name="review",
    graph_version="2",
    state=RUN_STATE_SUCCEEDED,
    create_time=Timestamp(seconds=10),
    end_time=Timestamp(seconds=75),
    warnings=["nobody offers text.redact@1 yet"],
)
LIST = Task(key=TaskKey(task_id="list"), capability="inventory.list@1", state=TASK_STATE_SUCCEEDED, attempt_count=1)
CLASSIFY = Task(
    key=TaskKey(task_id="classify"), capability="license.classify@1", state=TASK_STATE_SUCCEEDED, member_count=72
)


def test_the_tree_shows_every_task_and_only_the_members_with_a_story() -> None:
    tasks = [LIST, CLASSIFY, *(member(number, attempt_count=2 if number == 17 else 1) for number in range(1, 73))]
    attempts = {
        ("classify", 17): [
            Attempt(
                number=1,
                state=ATTEMPT_STATE_LOST,
                agent="classifier",
                failure=Failure(kind=FAILURE_KIND_LOST, message="the process went away"),
            ),
            Attempt(
                number=2, state=ATTEMPT_STATE_SUCCEEDED, agent="classifier", busy_duration=Duration(nanos=5_000_000)
            ),
        ]
    }
    shown = text_of(run_tree(RUN, tasks, attempts))
    assert "r-1  review@2  SUCCEEDED  1 min 5 s" in shown
    assert "warning: nobody offers text.redact@1 yet" in shown
    assert "classify  license.classify@1  SUCCEEDED  72 members" in shown
    assert "[17]  SUCCEEDED  2.0 s" in shown
    assert "#1  LOST  on classifier  LOST: the process went away" in shown
    assert "#2  SUCCEEDED  on classifier  5 ms" in shown
    assert "and 71 more members: 71 SUCCEEDED" in shown
    assert "[16]" not in shown


def test_a_tree_says_who_holds_a_run_or_ended_it_and_why() -> None:
    held = Run(run_id="r-1", state=RUN_STATE_PAUSED)
    assert "by" not in text_of(run_tree(held, (), {}))
    held.paused.principal, held.paused.reason = "spiffe://mesh/ns/a/client/olga", "ask\nPeter"
    held.paused.create_time.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    when = spell_moment(held.paused.create_time)
    assert when in text_of(run_tree(held, (), {}))
    assert f"held by spiffe://mesh/ns/a/client/olga: ask Peter  {when}" in text_of(run_tree(held, (), {}))
    ended = Run(run_id="r-1", state=RUN_STATE_CANCELLED)
    ended.cancelled.principal = "spiffe://mesh/ns/a/client/olga"
    line = text_of(run_tree(ended, (), {})).splitlines()[1]
    assert line.rstrip().endswith("cancelled by spiffe://mesh/ns/a/client/olga")


def test_an_explanation_says_how_its_members_are_explained() -> None:
    def shown(members: int) -> str:
        return text_of(explanation(ExplainTaskResponse(task=Task(key=TaskKey(task_id="each"), member_count=members))))

    assert "members" not in shown(0)
    assert "members    1, each explained by itself: each[1]\n" in shown(1)
    assert "members    72, each explained by itself: each[1] to each[72]" in shown(72)


def test_a_list_says_of_a_run_how_many_of_its_tasks_wait_for_a_person() -> None:
    totals = TaskTotals(total=4, succeeded=1, escalated=2, quarantined=1)
    shown = text_of(output.table(("", "", "", "", "", ""), [run_row(Run(state=RUN_STATE_RUNNING, totals=totals))]))
    assert "RUNNING, 3 for a person" in shown and "1/4" in shown
    assert "person" not in text_of(output.table(("",) * 6, [run_row(Run(state=RUN_STATE_RUNNING))]))


def test_a_list_says_for_which_signals_a_run_waits() -> None:
    def row(*names: str, **counts: int) -> str:
        run = Run(state=RUN_STATE_RUNNING, totals=TaskTotals(**counts), awaited_signals=names)
        return text_of(output.table(("",) * 6, [run_row(run)]))

    assert "RUNNING, signal go " in row("go")
    assert "RUNNING, 1 for a person, signal go, stop " in row("go", "stop", escalated=1)
    assert "RUNNING, signal a, b, c, … " in row("a", "b", "c", "d")


def test_a_list_says_of_what_kind_a_failure_is() -> None:
    def row(failure: Failure, state: int = RUN_STATE_FAILED) -> str:
        run = Run(state=state, failure=failure)  # type: ignore[arg-type]
        return text_of(output.table(("",) * 6, [run_row(run)]))

    assert "FAILED, LOST " in row(Failure(kind=FAILURE_KIND_LOST))
    assert "FAILED, PERMANENT no_funds " in row(Failure(kind=FAILURE_KIND_PERMANENT, code="no_funds"))
    assert "FAILED " in row(Failure(message="of before the archive kept its kind"))
    assert "CANCELLED " in row(Failure(kind=FAILURE_KIND_LOST), RUN_STATE_CANCELLED)


def test_the_whole_tree_shows_every_member() -> None:
    tasks = [CLASSIFY, *(member(number) for number in range(1, 4))]
    shown = text_of(run_tree(RUN, tasks, {}, whole=True))
    assert "[1]" in shown and "[3]" in shown and "more members" not in shown


def test_what_runs_beneath_a_task_is_shown_with_it_and_a_run_beneath_says_where_it_is() -> None:
    beneath = [
        Child(run_id="r-2", kind=CHILD_KIND_CALL, name="text.ask@1", attempt=1, call_id="c"),
        Child(run_id="r-3", kind=CHILD_KIND_ANSWER, name="steps", attempt=2),
    ]
    task = Task(key=TaskKey(task_id="plan"), graph="review@1", children=beneath, child_count=5)
    run = Run(run_id="r-1", parent_attempt_id="r-0/plan/0/0", child_kind=CHILD_KIND_GRAPH)
    shown = text_of(run_tree(run, [task], {}))
    assert "sub-run of r-0/plan/0/0" in shown and "plan  review@1" in shown
    assert "3 earlier runs beneath it" in shown
    assert "call  r-2  text.ask@1  #1" in shown and "answer  r-3  steps  #2" in shown
    explained = text_of(explanation(ExplainTaskResponse(task=task)))
    assert "plan  UNSPECIFIED  review@1" in explained and "beneath    call  r-2" in explained
    assert "began r-3  steps" in event_line(RunEvent(child=beneath[1])).plain


def test_at_most_a_few_members_of_a_task_are_shown() -> None:
    failing = [member(number, state=TASK_STATE_FAILED) for number in range(1, 200)]
    shown = shown_tasks([CLASSIFY, *failing])
    assert len(shown) == MEMBERS_SHOWN + 1
    assert [key_of(task) for task in shown[:2]] == [("classify", 0), ("classify", 1)]
    assert f"and {199 - MEMBERS_SHOWN} more members: {199 - MEMBERS_SHOWN} FAILED" in text_of(
        run_tree(RUN, [CLASSIFY, *failing], {})
    )


def test_an_explanation_tells_who_agreed_and_what_was_spent_on_the_others() -> None:
    said = Agreement(of=4, agree=2, chosen=2, failed=1, spent_duration=Duration(nanos=250_000_000))
    said.groups.add(members=[2, 4])
    said.groups.add(members=[1], reason="cannot be compared with member 2: output has no field 'total'")
    shown = text_of(explanation(ExplainTaskResponse(task=Task(key=TaskKey(task_id="sum"), agreement=said))))
    assert "2 of 4 must agree" in shown
    assert "members 2, 4  used" in shown
    assert "member 1  cannot be compared with member 2" in shown
    assert "1 failed" in shown and "0.250 s went into answers" in shown


def test_an_explanation_tells_which_attempt_gave_a_result_that_was_used_again() -> None:
    reused = ReusedResult(
        origin_attempt_id="r0/tax/0/1",
        decision=RoutingDecision(chosen="edge/7f/tax", capability="tax.of@1.2", policy=PolicyDecision(permit=True)),
        release=PolicyDecision(permit=True, policies=["all"]),
    )
    task = Task(key=TaskKey(task_id="tax"), state=TASK_STATE_SUCCEEDED, reused=reused, reason="used again")
    shown = text_of(explanation(ExplainTaskResponse(task=task)))
    assert "from the cache: r0/tax/0/1" in shown
    assert "would have gone to edge/7f/tax for tax.of@1.2" in shown
    assert "release: policy permits by all" in shown
    assert "used again" in text_of(run_tree(Run(run_id="r1"), [task], {}))


def test_an_explanation_tells_of_needs_placement_and_policy() -> None:
    told = ExplainTaskResponse(
        task=Task(
            key=TaskKey(task_id="classify", member=17), state=TASK_STATE_SUCCEEDED, capability="license.classify@1"
        ),
        references=["item", "tasks.list.output"],
        dependencies=[Dependency(task_id="list", state=TASK_STATE_SUCCEEDED)],
        attempts=[
            Attempt(
                number=1,
                state=ATTEMPT_STATE_SUCCEEDED,
                agent="classifier",
                decision=RoutingDecision(
                    chosen="edge/7f/classifier",
                    score=0.0125,
                    others=[Candidate(instance="edge/9a/classifier", score=0.5, free_slots=3)],
                    refusals=[Refusal(reason="no_slot", count=2)],
                    considered=4,
                    summary="least expected wait",
                    capability="license.classify@1.0",
                    policy=PolicyDecision(
                        decision_id="d1", epoch=3, permit=True, policies=["dev-dispatch"], obligations=["log"]
                    ),
                ),
            )
        ],
    )
    shown = text_of(explanation(told))
    for part in (
        "classify[17]  SUCCEEDED  license.classify@1",
        "refers to  item, tasks.list.output",
        "list  SUCCEEDED",
        "least expected wait",
        "edge/7f/classifier",
        "0.0125",
        "4 considered for license.classify@1.0; refused: 2 no_slot",
        "policy permits by dev-dispatch; obliges to log (decision d1, epoch 3)",
    ):
        assert part in shown, part


def test_an_explanation_says_which_entries_were_read_and_at_which_revision() -> None:
    of_run = EntryReference(scope=ContextScope(run_id="r"), key="plan")
    task = Task(key=TaskKey(task_id="a"), reads=[EntryReference(key="a/b", revision=41), of_run])
    shown = text_of(explanation(ExplainTaskResponse(task=task)))
    assert "read       context.namespace['a/b'] at revision 41" in shown
    assert "read       context.run['plan'] was not there" in shown


def test_an_explanation_of_a_task_without_attempts_tells_what_placement_says_now() -> None:
    told = ExplainTaskResponse(
        task=Task(key=TaskKey(task_id="a"), state=TASK_STATE_FAILED, reason="nobody offers x@1"),
        pending=RoutingDecision(considered=0, summary="nobody offers x@1"),
    )
    shown = text_of(explanation(told))
    assert "placement says now" in shown and "0 considered" in shown


def test_an_explanation_shows_where_a_handler_raised_and_no_column_of_nothing() -> None:
    failure = Failure(kind=FAILURE_KIND_PERMANENT, message="KeyError: 'boo'", cause="agent.py, line 16\n")
    made = RoutingDecision(chosen="edge/7f/odd", score=0.05, considered=1, summary="the only one that fits")
    told = ExplainTaskResponse(task=Task(key=TaskKey(task_id="t")), attempts=[Attempt(failure=failure, decision=made)])
    shown = text_of(explanation(told))
    assert "agent.py, line 16" in shown and "the only one that fits" in shown and "score 0.0500 s" in shown
    assert "FREE SLOTS" not in shown


def test_a_short_output_is_shown_and_of_a_long_one_its_size() -> None:
    assert text_of(output_line(Payload(inline=b'{\n "a": 1}'))).strip() == 'output  { "a": 1}'
    assert "1000 bytes of application/json" in text_of(output_line(Payload(inline=b"1" * 1000)))
    assert "9 bytes of image/png" in text_of(output_line(Payload(inline=b"x" * 9, media_type="image/png")))
    stored = BlobReference(size=OUTPUT_SHOWN + 1)
    assert f"{OUTPUT_SHOWN + 1} bytes" in text_of(output_line(Payload(blob=stored)))


def test_pieces_of_output_are_a_line_each_and_the_end_of_them_stands_beside_their_task() -> None:
    key = TaskKey(task_id="write")

    def said(**piece: Any) -> RunEvent:
        return RunEvent(key=key, partial=PartialOutput(**{"attempt": 1, **piece}))

    line = event_line(said(text="two\nlines")).plain
    assert line.startswith("       ") and line.endswith("write > two\\nlines")  # without a number: it is not kept
    progress_line = event_line(RunEvent(key=key, progress=Progress(fraction=0.67, message="two"))).plain
    assert progress_line.startswith("       ") and progress_line.endswith("write  67% two")
    assert "withheld: no.pii" in event_line(said(withheld="no.pii")).plain
    progress = RunProgress("r-1")
    task = progress.tasks
    for event in (said(text="one"), said(text=" two\nthree")):
        progress.apply(event)
    assert task["write"].says == "one two three"
    progress.apply(said(text="x" * 500))
    assert task["write"].says == "x" * 60
    progress.apply(said(text="again", attempt=2))
    assert task["write"].says == "again"
    progress.apply(said(json=b'{"a":1}', attempt=2))
    assert task["write"].says == '{"a":1}'
    assert '{"a":1}' in text_of(progress.render())


def test_progress_counts_members_once_however_often_they_change() -> None:
    progress = RunProgress("r-1")
    progress.apply(RunEvent(key=TaskKey(task_id="classify"), task_state=TASK_STATE_RUNNING, member_count=3))
    for number in (1, 2):
        progress.apply(RunEvent(key=TaskKey(task_id="classify", member=number), task_state=TASK_STATE_RUNNING))
    progress.apply(RunEvent(key=TaskKey(task_id="classify", member=1), task_state=TASK_STATE_SUCCEEDED))
    progress.apply(RunEvent(key=TaskKey(task_id="classify"), progress=Progress(message="halfway")))
    task = progress.tasks["classify"]
    assert (task.done, task.total) == (1, 3)
    shown = text_of(progress.render())
    assert "1/3" in shown and "RUNNING 1" in shown and "SUCCEEDED 1" in shown and "halfway" in shown
    progress.apply(RunEvent(run_state=RUN_STATE_SUCCEEDED))
    assert "r-1  SUCCEEDED" in text_of(progress.render())


def test_a_plain_task_is_done_when_it_has_ended() -> None:
    progress = RunProgress("r-1")
    progress.apply(RunEvent(key=TaskKey(task_id="list"), task_state=TASK_STATE_RUNNING))
    assert (progress.tasks["list"].done, progress.tasks["list"].total) == (0, 1)
    progress.apply(RunEvent(key=TaskKey(task_id="list"), task_state=TASK_STATE_SUCCEEDED))
    assert progress.tasks["list"].done == 1


def test_an_event_is_one_line() -> None:
    line = event_line(
        RunEvent(
            event_seq=7,
            key=TaskKey(task_id="classify", member=2),
            task_state=TASK_STATE_FAILED,
            attempt=AttemptChange(number=3, state=ATTEMPT_STATE_LOST, agent="classifier", stale=True),
            failure=Failure(kind=FAILURE_KIND_PERMANENT, code="quota", field="/a", message="two\nlines"),
        )
    ).plain
    assert "\n" not in line
    for part in (
        "    7",
        "classify[2]",
        "FAILED",
        "#3 LOST on classifier",
        "too late",
        "PERMANENT quota at /a: two lines",
    ):
        assert part in line, part


def test_an_agent_shows_which_instances_get_nothing_and_why() -> None:
    agent = Agent(name="writer")
    well, broken = agent.instances.add(instance_id="s/i/well"), agent.instances.add(instance_id="s/i/broken")
    well.breaker.state = BREAKER_STATE_CLOSED
    broken.breaker.state, broken.breaker.reason = BREAKER_STATE_OPEN, "10 of its last 12 attempts failed"
    broken.breaker.retry_time.seconds = 10
    shown = text_of(agent_details(agent))
    assert "OPEN" in shown and "CLOSED" in shown
    assert "s/i/broken gets no work until" in shown and "10 of its last 12 attempts failed" in shown
    assert "s/i/well gets" not in shown
    assert agent_row(agent)[2] == "2, 1 broken"
