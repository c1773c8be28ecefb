"""What clients saw and what agents did, and the rules that must hold over both, whatever was killed when.

Clients note each submission and each answer; agents append to a journal that is on disk before they go on. The rules
compare these with what the orchestrator says of itself. A rule answers every breach it finds, as a line for people.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from antiphon import Client
from antiphon.v1 import run_pb2

from tests.harness import Entry

ENDED = {run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED}
TASK_ENDED = {
    run_pb2.TASK_STATE_SUCCEEDED,
    run_pb2.TASK_STATE_FAILED,
    run_pb2.TASK_STATE_SKIPPED,
    run_pb2.TASK_STATE_CANCELLED,
}
UNDONE = "storm.undone"
"""The graph of the traffic that fails when its tasks a and b, which can be undone, are done."""
ONCE = "once"
"""The graph of the traffic of which the task pay may be done at most once."""
ATTEMPT_OPEN = {run_pb2.ATTEMPT_STATE_OFFERED, run_pb2.ATTEMPT_STATE_RUNNING}


@dataclass
class Submission:
    """One request id and every run a client was told of for it."""

    request_id: str
    expected: object
    answers: list[run_pb2.Run] = field(default_factory=list)
    watched: list[list[int]] = field(default_factory=list)
    """The numbers of the events that each watch of it told."""


@dataclass
class Record:
    """What the orchestrator says of one run at the end."""

    run: run_pb2.Run
    tasks: list[run_pb2.Task] = field(default_factory=list)
    attempts: dict[tuple[str, int], list[run_pb2.Attempt]] = field(default_factory=dict)
    events: list[run_pb2.RunEvent] = field(default_factory=list)


async def read_record(client: Client, run_id: str) -> Record:
    """Everything about a run, through the API."""
    record = Record(await client.get_run(run_id))
    record.tasks = [task async for task in client.list_tasks(run_id)]
    record.events = [event async for event in client.watch(run_id)] if record.run.state in ENDED else []
    for task in record.tasks:
        key = (task.key.task_id, task.key.member)
        record.attempts[key] = [one async for one in client.list_attempts(run_id, *key)]
    return record


async def read_records(client: Client, submissions: Iterable[Submission]) -> list[Record]:
    """Everything about the runs that clients were told of, and about all that stand beneath tasks."""
    told = {run.run_id for submission in submissions for run in submission.answers}
    beneath = {run.run_id async for run in client.list_runs() if run.parent_attempt_id}
    return [await read_record(client, run_id) for run_id in sorted(told | beneath)]


def by_a_person(record: Record) -> Iterator[run_pb2.Task]:
    """The tasks that succeeded because somebody said so."""
    for task in record.tasks:
        attempts = record.attempts.get((task.key.task_id, task.key.member), [])
        lost = attempts and not any(one.state == run_pb2.ATTEMPT_STATE_SUCCEEDED for one in attempts)
        if lost and task.state == run_pb2.TASK_STATE_SUCCEEDED:
            yield task


def breaches(submissions: Iterable[Submission], records: Iterable[Record], journal: list[Entry]) -> list[str]:
    """Every breach of every rule."""
    submissions, records = list(submissions), list(records)
    return [
        *every_submission_is_one_run(submissions),
        *every_submission_succeeds_as_expected(submissions),
        *watches_have_no_gap_and_no_repeat(submissions),
        *every_run_ends(records),
        *every_task_has_at_most_one_accepted_outcome(records),
        *histories_have_no_gap_and_agree_with_the_end(records),
        *nothing_finished_runs_again(records, journal),
        *attempts_of_a_task_share_their_key(records, journal),
        *what_is_recorded_as_done_was_done(records, journal),
        *runs_beneath_tasks_end_with_them(records),
        *members_that_agree_are_of_different_instances(records),
        *what_is_used_again_was_worked_out(records, journal),
        *what_has_failed_is_undone(records),
        *what_may_be_done_once_is_begun_once(records, journal),
    ]


def every_submission_is_one_run(submissions: list[Submission]) -> Iterator[str]:
    """A request id is one run, whoever asked how often; and no two are the same one."""
    owners: dict[str, str] = {}
    for submission in submissions:
        run_ids = {run.run_id for run in submission.answers}
        if len(run_ids) != 1:
            yield f"request {submission.request_id} was answered by runs {sorted(run_ids)}"
        for run_id in run_ids:
            if owners.setdefault(run_id, submission.request_id) != submission.request_id:
                yield f"run {run_id} belongs to requests {owners[run_id]} and {submission.request_id}"


def every_submission_succeeds_as_expected(submissions: list[Submission]) -> Iterator[str]:
    """All graphs of the traffic end well, with the number they were given; whoever asks is told so."""
    for submission in submissions:
        for run in submission.answers:
            if run.state != run_pb2.RUN_STATE_SUCCEEDED:
                yield f"run {run.run_id} has not succeeded: {run.failure}"
            elif run.output.inline != str(submission.expected).encode():
                yield f"run {run.run_id} answered {run.output.inline!r} and not {submission.expected}"


def watches_have_no_gap_and_no_repeat(submissions: list[Submission]) -> Iterator[str]:
    """Whoever watches is told 1, 2, 3 …, over however many streams and replicas, up to the end."""
    for submission in submissions:
        ends = {run.event_seq for run in submission.answers}
        for numbers in submission.watched:
            if numbers != list(range(1, len(numbers) + 1)) or (ends and len(numbers) not in ends):
                yield f"request {submission.request_id}: a watch of {sorted(ends)} events told {numbers}"


def every_run_ends(records: list[Record]) -> Iterator[str]:
    """And so do its tasks and attempts."""
    for record in records:
        if record.run.state not in ENDED:
            yield f"run {record.run.run_id} has not ended"
            continue
        for task in record.tasks:
            if task.state not in TASK_ENDED:
                yield f"run {record.run.run_id} ended with task {task.key} in state {task.state}"
        for key, attempts in record.attempts.items():
            if any(attempt.state in ATTEMPT_OPEN for attempt in attempts):
                yield f"run {record.run.run_id} ended with an open attempt of {key}"


def every_task_has_at_most_one_accepted_outcome(records: list[Record]) -> Iterator[str]:
    """Also in the history: what came late is there as stale."""
    for record in records:
        accepted: Counter[tuple[str, int]] = Counter()
        for event in record.events:
            won = event.attempt.state == run_pb2.ATTEMPT_STATE_SUCCEEDED and not event.attempt.stale
            accepted[event.key.task_id, event.key.member] += won
        for key, count in accepted.items():
            if count > 1:
                yield f"run {record.run.run_id}: {count} outcomes of {key} were accepted"
        for key, attempts in record.attempts.items():
            good = sum(attempt.state == run_pb2.ATTEMPT_STATE_SUCCEEDED for attempt in attempts)
            if good > 1:
                yield f"run {record.run.run_id}: {key} has {good} attempts that succeeded"


def histories_have_no_gap_and_agree_with_the_end(records: list[Record]) -> Iterator[str]:
    """Events are 1, 2, 3 …, and the last state in them is the state of the run and of each task."""
    for record in records:
        run = record.run
        numbers = [event.event_seq for event in record.events]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"run {run.run_id}: the history has gaps or repeats: {numbers}"
        if record.events and (len(numbers) != run.event_seq or record.events[-1].run_state != run.state):
            yield f"run {run.run_id}: the history ends otherwise than the run"
        last: dict[tuple[str, int], int] = {}
        for event in record.events:
            if event.task_state:
                last[event.key.task_id, event.key.member] = event.task_state
        for task in record.tasks:
            told = last.get((task.key.task_id, task.key.member), task.state)
            if told != task.state:
                yield f"run {run.run_id}: task {task.key} is {task.state}, and {told} in its history"


def nothing_finished_runs_again(records: list[Record], journal: list[Entry]) -> Iterator[str]:
    """Once an attempt succeeded, no later one of its task was ever begun; and no attempt was begun twice."""
    begun: dict[str, list[Entry]] = defaultdict(list)
    for entry in journal:
        if entry.event == "begun":
            begun[entry.attempt_id].append(entry)
    for attempt_id, entries in begun.items():
        if len(entries) > 1:
            yield f"attempt {attempt_id} was begun {len(entries)} times"
    for record in records:
        for key, attempts in record.attempts.items():
            winner = next((a.number for a in attempts if a.state == run_pb2.ATTEMPT_STATE_SUCCEEDED), None)
            if winner is None:
                continue
            stem = f"{record.run.run_id}/{key[0]}/{key[1]}/"
            for later in range(winner + 1, winner + 50):
                if stem + str(later) in begun:
                    yield f"{stem}{later} was begun although attempt {winner} had succeeded"


def attempts_of_a_task_share_their_key(records: list[Record], journal: list[Entry]) -> Iterator[str]:
    """The idempotency key is the attempt id without its number; both members of a hedge have that of the first."""
    hedges = {
        f"{record.run.run_id}/{task.key.task_id}/2"
        for record in records
        for task in record.tasks
        if task.agreement.agree == 1
    }
    for entry in journal:
        stem = entry.attempt_id.rpartition("/")[0]
        key = f"{stem[:-1]}1" if stem in hedges else stem
        if key != entry.idempotency_key:
            yield f"attempt {entry.attempt_id} had the key {entry.idempotency_key}"


def what_is_recorded_as_done_was_done(records: list[Record], journal: list[Entry]) -> Iterator[str]:
    """No outcome without work: an attempt that succeeded in the record was finished by an agent."""
    done = {entry.attempt_id for entry in journal if entry.event == "done"}
    for record in records:
        for attempts in record.attempts.values():
            for attempt in attempts:
                if attempt.state == run_pb2.ATTEMPT_STATE_SUCCEEDED and attempt.attempt_id not in done:
                    yield f"attempt {attempt.attempt_id} succeeded, and no agent finished it"


def runs_beneath_tasks_end_with_them(records: list[Record]) -> Iterator[str]:
    """Each is there once, beneath one task; and one that its task waited for ended as the task did."""
    ends = {record.run.run_id: record.run for record in records}
    parents: Counter[str] = Counter()
    for record in records:
        for task in record.tasks:
            for child in task.children:
                parents[child.run_id] += 1
                if child.run_id not in ends:
                    yield f"run {child.run_id} beneath {task.key} of {record.run.run_id} is not there"
            waited = [child.run_id for child in task.children if child.kind != run_pb2.CHILD_KIND_CALL][-1:]
            states = [ends[run_id].state for run_id in waited if run_id in ends]
            if task.state == run_pb2.TASK_STATE_SUCCEEDED and states not in ([], [run_pb2.RUN_STATE_SUCCEEDED]):
                yield f"run {record.run.run_id}: {task.key} succeeded by {waited[-1]}, which did not"
    for record in records:
        run = record.run
        if parents[run.run_id] != bool(run.parent_attempt_id):
            yield f"run {run.run_id} is beneath {parents[run.run_id]} tasks, and says {run.parent_attempt_id!r}"


def members_that_agree_are_of_different_instances(records: list[Record]) -> Iterator[str]:
    """A quorum or hedge that succeeded has one answer, which as many instances gave as had to agree."""
    for record in records:
        for task in record.tasks:
            chosen = task.agreement.chosen
            if task.key.member or not chosen:
                continue
            alike: Iterable[int] = next(
                (group.members for group in task.agreement.groups if chosen in group.members), []
            )
            instances = {
                attempt.instance
                for member in alike
                for attempt in record.attempts[task.key.task_id, member]
                if attempt.state == run_pb2.ATTEMPT_STATE_SUCCEEDED
            }
            if len(instances) < task.agreement.agree:
                wanted = f"{len(instances)} of {task.agreement.agree} instances"
                yield f"run {record.run.run_id}: {wanted} agreed on {task.key}"


def what_is_used_again_was_worked_out(records: list[Record], journal: list[Entry]) -> Iterator[str]:
    """A result that is used again comes from an attempt that an agent finished."""
    done = {entry.attempt_id for entry in journal if entry.event == "done"}
    for record in records:
        for task in record.tasks:
            origin = task.reused.origin_attempt_id
            if origin and origin not in done:
                yield f"run {record.run.run_id}: {task.key} used what {origin} never finished"


def what_has_failed_is_undone(records: list[Record]) -> Iterator[str]:
    """A run that did not succeed has undone what it did and can undo; one that did has not."""
    for record in records:
        succeeded = record.run.state == run_pb2.RUN_STATE_SUCCEEDED
        undone = {task.compensates: task.state for task in record.tasks if task.compensates}
        if succeeded and undone:
            yield f"run {record.run.run_id} succeeded, and {sorted(undone)} were undone"
        for task in record.tasks:
            done = task.state == run_pb2.TASK_STATE_SUCCEEDED and task.key.task_id in ("a", "b")
            left = done and undone.get(task.key.task_id) != run_pb2.TASK_STATE_SUCCEEDED
            if record.run.graph_name == UNDONE and not succeeded and left:
                yield f"run {record.run.run_id} has failed, and {task.key} is not undone"


def what_may_be_done_once_is_begun_once(records: list[Record], journal: list[Entry]) -> Iterator[str]:
    """Nobody begins again what may have been done before."""
    begun: Counter[str] = Counter(entry.attempt_id.rpartition("/")[0] for entry in journal if entry.event == "begun")
    for record in records:
        if record.run.graph_name == ONCE and begun[pay := f"{record.run.run_id}/pay/0"] > 1:
            yield f"{pay} may be done once, and was begun {begun[pay]} times"
