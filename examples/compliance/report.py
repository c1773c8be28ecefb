"""An agent that adds up a review. report.go is the same in Go: whichever runs, nobody can tell from its answers."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from antiphon import Agent, InvalidInput, TaskContext

MOST_ATTENTION = 200
BY_SEVERITY = ["proprietary", "strong-copyleft", "unknown", "weak-copyleft", "permissive"]

agent = Agent("reporter", concurrency=4)


@dataclass
class Review:
    """The parts of the members' outputs that count, each in the order of `packages`."""

    packages: list[str]
    kinds: list[str]
    doubts: list[str]
    redactions: list[int]


@dataclass
class Attention:
    package: str
    why: str


@dataclass
class Totals:
    packages: int
    by_kind: dict[str, int]
    redactions: int
    attention: list[Attention]


TOTALS = "compliance/totals"
"""Where shared context keeps the totals of the latest review, for whoever in the namespace asks."""


# Numbers only; but one of them was counted in personal data, and what is made of a labelled value carries its label.
@agent.capability("report.write@1", effect="write", idempotent=True, clearance=["pii"])
async def write_report(review: Review, ctx: TaskContext) -> Totals:
    """Totals of a review, and which packages a person should look at, most serious first."""
    note("report.write")
    if not len(review.packages) == len(review.kinds) == len(review.doubts):
        raise InvalidInput("kinds and doubts must be as many as packages")
    for number, kind in enumerate(review.kinds):
        if kind not in BY_SEVERITY:
            raise InvalidInput("not a kind of licence", field=f"/kinds/{number}")
    flagged = sorted(
        (BY_SEVERITY.index(kind), package, doubt)
        for package, kind, doubt in zip(review.packages, review.kinds, review.doubts, strict=True)
        if doubt
    )
    totals = Totals(
        packages=len(review.packages),
        by_kind=dict(sorted(Counter(review.kinds).items())),
        redactions=sum(review.redactions),
        attention=[Attention(package, doubt) for _, package, doubt in flagged[:MOST_ATTENTION]],
    )
    shared = {"packages": totals.packages, "by_kind": totals.by_kind, "redactions": totals.redactions}
    # Every attempt of the task has the same key, so that however often it is tried, the entry is written once.
    await ctx.context.put(TOTALS, shared, request_id=ctx.idempotency_key)
    return totals


def note(capability: str) -> None:
    """Say in a file what is being worked on, for whoever wants to prove what ran, and how often."""
    journal = os.environ.get("COMPLIANCE_JOURNAL")
    if journal:
        with open(journal, "a", encoding="utf-8") as file:
            file.write(f"{capability}\t\t{os.getpid()}\n")


if __name__ == "__main__":
    agent.run()
