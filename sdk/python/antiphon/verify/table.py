"""The report for people: a line a case as it is over, and below those that failed what to look at."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from antiphon.v1 import verify_pb2 as pb

from .cases import ALL
from .playing import BROKEN, FAILED, PASSED, shut_gate

_WIDTH = max(len(case.name) for case in ALL)
_WORDS = {PASSED: ("passed", "green"), FAILED: ("FAILED", "bold red"), BROKEN: ("BROKEN", "bold magenta")}


def show_case(console: Console, case: pb.VerifiedCase) -> None:
    """One case."""
    word, style = _WORDS[case.outcome]
    seconds = case.duration.ToTimedelta().total_seconds()
    line = Text().append(f"{word}  ", style).append(f"{case.name:<{_WIDTH}}  ", "bold")
    console.print(line.append(f"{case.meaning}").append(f"  {seconds:.1f} s", "dim"))
    if case.outcome != PASSED:
        for name, text in (("expected", case.expected), ("seen", case.seen), ("contract", case.contract)):
            if text:
                shown = text.replace("\n", "\n" + " " * 18)
                console.print(Text(f"        {name:<8}  ", "dim").append(shown, "none"))


def show_end(console: Console, report: pb.VerifyReport) -> None:
    """The last line, and one before it for all that was not played."""
    if shut := shut_gate(report.cases):
        left = len(report.cases) - [case.name for case in report.cases].index(shut) - 1
        if left:
            word, style = _WORDS[BROKEN]
            line = Text().append(f"{word}  ", style).append(f"{f'{left} others':<{_WIDTH}}  ", "bold")
            console.print(line.append(f"What comes after {shut} cannot be played, as that did not pass."))
    counts = [sum(case.outcome == outcome for case in report.cases) for outcome in (PASSED, FAILED, BROKEN)]
    line = Text(f"{report.agent or 'the agent'}: {counts[0]} passed", "bold")
    for count, (word, style) in zip(counts[1:], (_WORDS[FAILED], _WORDS[BROKEN]), strict=True):
        if count:
            line.append(", ").append(f"{count} {word.lower()}", style)
    seconds = report.duration.ToTimedelta().total_seconds()
    console.print(line.append(f"; seed {report.seed}, {seconds:.1f} s", "dim"))
