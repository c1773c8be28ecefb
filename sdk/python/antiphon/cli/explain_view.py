"""Why a task is where it is: what it waited for, where each attempt was placed and on what grounds. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ..v1.run_pb2 import Agreement, PolicyDecision, ReusedResult, RoutingDecision
from ..v1.run_service_pb2 import ExplainTaskResponse
from . import output
from .run_view import attempt_line, child_lines, failure_line
from .text import spell_key, spell_moment, task_state


def explanation(told: ExplainTaskResponse) -> RenderableType:
    """The whole story of one task, oldest first."""
    return Group(*_parts(told))


def _parts(told: ExplainTaskResponse) -> Iterator[RenderableType]:
    task = told.task
    heading = Text(spell_key(task.key), "bold").append("  ").append_text(output.state(task_state(task.state)))
    asked = task.capability or task.graph
    yield heading.append(f"  {asked}" if asked else "")
    if task.reason:
        yield Text(f"  {task.reason}")
    if task.withheld:
        yield Text(f"  {task.withheld}")
    if told.references:
        yield Text(f"  refers to  {', '.join(told.references)}")
    for entry in task.reads:
        scope = {"run_id": "run", "graph": "graph"}.get(entry.scope.WhichOneof("kind") or "", "namespace")
        found = f"at revision {entry.revision}" if entry.revision else "was not there"
        yield Text(f"  read       context.{scope}[{entry.key!r}] {found}")
    for need in told.dependencies:
        yield Text("  needs      ").append(f"{need.task_id}  ").append_text(output.state(task_state(need.state)))
    if count := task.member_count:
        name = task.key.task_id
        yield Text(
            f"  members    {count}, each explained by itself: {name}[1]{f' to {name}[{count}]' if count > 1 else ''}"
        )
    for line in child_lines(task):
        yield Text("  beneath    ").append_text(line)
    if task.HasField("agreement"):
        yield from agreement(task.agreement)
    if task.HasField("reused"):
        yield from reused(task.reused)
    for attempt in told.attempts:
        yield Text("")
        yield (
            Text("  attempt ").append_text(attempt_line(attempt)).append(f"  {spell_moment(attempt.offer_time)}", "dim")
        )
        if attempt.failure.cause:
            yield Padding(Text(attempt.failure.cause.rstrip(), "dim"), (0, 0, 0, 4), expand=False)
        if attempt.HasField("decision"):
            yield Padding(decision(attempt.decision), (0, 0, 0, 4), expand=False)
    if told.HasField("pending"):
        yield Text("")
        yield Text("  placement says now")
        yield Padding(decision(told.pending), (0, 0, 0, 4), expand=False)
    if task.HasField("failure"):
        yield Text("")
        yield Text("  ").append_text(failure_line(task.failure))


def agreement(said: Agreement) -> Iterator[RenderableType]:
    """Who agreed with whom; of a hedge, who came first."""
    yield Text(f"  {said.agree} of {said.of} must agree" if said.agree > 1 else "  the first outcome is used")
    for group in said.groups:
        members = ", ".join(map(str, group.members))
        line = Text(f"  answer     {'members' if len(group.members) > 1 else 'member'} {members}")
        if said.chosen in group.members:
            line.append("  used", "green")
        yield line.append(f"  {group.reason}" if group.reason else "")
    ends = [f"{count} {what}" for count, what in ((said.failed, "failed"), (said.cancelled, "cancelled")) if count]
    if ends:
        yield Text(f"  others     {', '.join(ends)}")
    if seconds := said.spent_duration.ToMicroseconds() / 1e6:
        yield Text(f"  spent      {seconds:.3f} s went into answers that are not used")


def reused(said: ReusedResult) -> Iterator[RenderableType]:
    """Where a result came from that no attempt of the task gave."""
    yield Text("")
    yield (
        Text("  from the cache: ")
        .append(said.origin_attempt_id, "bold")
        .append(f"  kept {spell_moment(said.keep_time)}", "dim")
    )
    place = Text(f"would have gone to {said.decision.chosen} for {said.decision.capability}")
    yield Padding(place, (0, 0, 0, 4), expand=False)
    yield Padding(_policy(said.decision.policy), (0, 0, 0, 4), expand=False)
    yield Padding(Text("release: ").append_text(_policy(said.release)), (0, 0, 0, 4), expand=False)


def decision(made: RoutingDecision) -> RenderableType:
    """One placement: the chosen, the best others, the refused and the policy behind it."""
    parts: list[RenderableType] = []
    if made.summary:
        parts.append(Text(made.summary))
    if made.others:
        rows: list[list[RenderableType]] = []
        if made.chosen:
            rows.append([Text(made.chosen, "bold"), f"{made.score:.4f}", "", Text("chosen", "green")])
        rows += [[other.instance, f"{other.score:.4f}", str(other.free_slots), ""] for other in made.others]
        parts.append(output.table(("INSTANCE", ">SCORE, S", ">FREE SLOTS", ""), rows))
    elif made.chosen:
        parts.append(Text(f"score {made.score:.4f} s"))
    refused = ", ".join(f"{refusal.count} {refusal.reason}" for refusal in made.refusals)
    offered = f" for {made.capability}" if made.capability else ""
    parts.append(Text(f"{made.considered} considered{offered}{'; refused: ' if refused else ''}{refused}"))
    if made.HasField("policy"):
        parts.append(_policy(made.policy))
    if made.withheld_count:
        parts.append(_withheld(made))
    return Group(*parts)


def _withheld(made: RoutingDecision) -> Text:
    """What of the input the agent did not get, by reason; never a value."""
    by_reason: dict[str, list[str]] = {}
    for part in made.withheld:
        by_reason.setdefault(part.reason, []).append(part.pointer or "the whole")
    told = [
        f"{', '.join(pointers)} ({'not in its schema' if reason == 'schema' else f'policy {reason}'})"
        for reason, pointers in by_reason.items()
    ]
    more = made.withheld_count - len(made.withheld)
    return Text("withheld from it: ", "yellow").append("; ".join(told) + (f"; and {more} more" if more else ""), "none")


def _policy(said: PolicyDecision) -> Text:
    verdict = Text("policy permits" if said.permit else "policy denies", "green" if said.permit else "red")
    by = f" by {', '.join(said.policies)}" if said.policies else ""
    because = f": {said.reason}" if said.reason and not said.permit else ""  # of a permit the policies say it all
    obligations = f"; obliges to {', '.join(said.obligations)}" if said.obligations else ""
    return verdict.append(f"{by}{because}{obligations} (decision {said.decision_id}, epoch {said.epoch})", "none")
