"""What the demo says while it works and at its end. Nothing here decides anything; a quiet console shows nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Self

from antiphon.cli import output
from antiphon.cli.explain_view import explanation
from antiphon.cli.policies import decision
from antiphon.cli.run_view import run_line, run_tree
from antiphon.v1 import run_pb2 as pb
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from .governance import BY_SCHEMA, Governance
from .report import Report

if TYPE_CHECKING:
    from .review import Review


class Screen:
    """Lines that stay, and below them a bar while the run runs. Use it with `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("  [bold]tasks"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str, mark: str = "✓", style: str = "green") -> None:
        """A line that stays."""
        self._bar.console.print(Text(f" {mark} ", style).append(text, "default"))

    def progress(self, finished: int, total: int) -> None:
        """How far the run is; `total` is 0 while it is not known."""
        self._bar.update(self._task, completed=finished, total=total or None, visible=True)

    def struck(self, agent_pid: int, orchestrator_pid: int, finished: int, cursor: int) -> None:
        """The crash."""
        self.say(f"{finished} tasks had finished (event {cursor}) when", "⚡", "yellow")
        self.say(f"SIGKILL hit the agent classifier (process {agent_pid})", "✗", "red")
        self.say(f"SIGKILL hit the orchestrator (process {orchestrator_pid})", "✗", "red")

    def orchestrator_back(self, pid: int, after: float) -> None:
        """It serves again."""
        self.say(f"the orchestrator is back as process {pid} after {after:.1f} s, with all it had promised")

    def agent_back(self, pid: int, after: float, cursor: int) -> None:
        """It works again."""
        self.say(f"the agent is back at work as process {pid} after {after:.1f} s; the watch went on at event {cursor}")

    def tell(self, review: Review, governed: Governance, report: Report, paths: Sequence[str]) -> None:
        """The end: the run as a tree, timings, one placement, what the crash did, what policy kept from whom, what is
        shared, totals, and where the report is."""
        self._section("The run")
        self._show(run_tree(review.run, review.tasks, review.attempts))
        self._section("Its tasks" if review.every == 1 else f"Its tasks, timed by one attempt in {review.every}")
        self._show(output.table(("TASK", ">MEMBERS", ">ATTEMPTS", ">MEDIAN", ">SLOWEST", ""), _timings(review)))
        self._section("Why one of them went where it went")
        self._show(explanation(review.explained))
        if review.crash is not None and review.proof is not None:
            self._section("What the crash did")
            self._show(output.facts(_crash(review)))
        self._section("What the summarizer did not get")
        self._show(output.facts(_withheld(governed)))
        self._section("Why a text labelled restricted did not reach the redactor, which is cleared for it")
        self._show(run_line(governed.denied.run))
        self._show(decision(governed.denied.decision))
        self._section("What is left in shared context")
        self._show(output.facts(_entry(governed)))
        self._section("What was found")
        kinds = report.totals["by_kind"].items()
        self._show(
            output.table(
                ("LICENCE CLASS", ">PACKAGES"), [(kind, str(n)) for kind, n in sorted(kinds, key=lambda k: -k[1])]
            )
        )
        attention = len(report.totals["attention"])
        self._show(Text(f"{attention} of {len(report.rows)} packages are for a person to look at."))
        self._section("The report")
        for path in paths:
            self._show(Text(path))

    def _section(self, title: str) -> None:
        self._console.print()
        self._console.print(Text(title, "bold"))

    def _show(self, thing: object) -> None:
        self._console.print(Padding(thing, (0, 0, 0, 2), expand=False))  # type: ignore[arg-type]


def _timings(review: Review) -> list[list[str]]:
    """A row a task: how long agents worked on it, and on which package longest."""
    rows = []
    for task_id in dict.fromkeys(task.key.task_id for task in review.tasks):
        counts = [task.attempt_count for task in review.tasks if task.key.task_id == task_id and task.attempt_count]
        busy = {
            key: attempt.busy_duration.ToTimedelta().total_seconds() * 1000
            for key, tries in review.attempts.items()
            for attempt in tries
            if key[0] == task_id and attempt.state == pb.ATTEMPT_STATE_SUCCEEDED
        }
        slowest = max(busy, key=lambda key: busy[key])
        rows.append(
            [
                task_id,
                str(len(counts) if counts[1:] else ""),
                str(sum(counts)),
                f"{median(busy.values()):.1f} ms",
                f"{busy[slowest]:.1f} ms",
                review.subjects[slowest[1]],
            ]
        )
    return rows


def _crash(review: Review) -> list[tuple[str, str]]:
    crash, proof = review.crash, review.proof
    assert crash is not None and proof is not None
    states = Counter(attempt.state for tries in review.attempts.values() for attempt in tries)
    again = ", ".join(proof.ran_again) or "none of them"
    return [
        ("finished before it", f"{proof.finished_before} tasks"),
        ("ran again of these", again),
        ("lost with the agent", f"{states[pb.ATTEMPT_STATE_LOST]} attempts; their tasks were tried again"),
        ("given back unbegun", f"{states[pb.ATTEMPT_STATE_RETURNED]} attempts; their tasks were placed again"),
        ("begun more than once", f"{proof.repeated} of {proof.begun} pieces of work: what the agent died with"),
        ("events", f"1 to {review.events}, seen once each and in order across the restart"),
    ]


def _withheld(governed: Governance) -> list[tuple[str, str]]:
    told = governed.withheld
    struck = ", ".join(pointer for pointer, reason in told.parts if reason != BY_SCHEMA)
    undeclared = ", ".join(pointer for pointer, reason in told.parts if reason == BY_SCHEMA)
    return [
        ("what it got", f"{' and '.join(told.received)} of each package, nothing else; so says its own journal"),
        ("struck out by policy", f"{told.by_policy} fields of {told.tasks} records, by {', '.join(told.policies)}"),
        ("not in its schema", f"{told.by_schema} fields of {told.tasks} records"),
        ("for example", told.package),
        ("  by policy", struck),
        ("  by its schema", undeclared),
    ]


def _entry(governed: Governance) -> list[tuple[str, str]]:
    entry = governed.entry
    wrote = entry.provenance
    return [
        ("key", entry.key),
        ("value", entry.value.inline.decode()),
        ("labels", ", ".join(label.key for label in entry.value.labels) or "none"),
        ("revision", str(entry.revision)),
        ("written by", f"the agent {wrote.agent}, in attempt {wrote.attempt_id.removeprefix(wrote.run_id + '/')}"),
        ("of run", wrote.run_id),
    ]
