"""What the demo claims of redaction: only what both the record and the program's journal bear out."""

from __future__ import annotations

import pytest
from antiphon.cli.problems import Problem
from antiphon.v1 import run_pb2 as pb
from antiphon_orchestrator.demo.governance import withheld
from antiphon_orchestrator.demo.proof import Journal, Key, read_journal

POLICY = "no-contacts"
SENT = read_journal("text.summarize\ta\t10\tdescription,directory\n")
SUBJECTS = ["", "a", "b"]


def attempt(*parts: tuple[str, str]) -> pb.Attempt:
    held = [pb.WithheldField(pointer=pointer, reason=reason) for pointer, reason in parts]
    return pb.Attempt(decision=pb.RoutingDecision(withheld=held, withheld_count=len(held)))


def attempts(*tries: pb.Attempt) -> dict[Key, list[pb.Attempt]]:
    others: dict[Key, list[pb.Attempt]] = {("summarize", 0): [], ("classify", 1): [attempt()]}
    return {**others, **{("summarize", member): [one] for member, one in enumerate(tries, 1)}}


def test_what_was_withheld_is_counted_by_reason_and_shown_of_the_first() -> None:
    told = withheld(
        attempts(attempt(("/name", "schema"), ("/contacts", POLICY)), attempt(("/contacts", POLICY))), SUBJECTS, SENT
    )
    assert (told.tasks, told.by_policy, told.by_schema, told.policies) == (2, 2, 1, (POLICY,))
    assert (told.package, told.parts) == ("a", (("/name", "schema"), ("/contacts", POLICY)))
    assert told.received == ("description", "directory")


@pytest.mark.parametrize(
    ("tries", "journal"),
    [
        ([attempt(("/contacts", POLICY)), attempt(("/name", "schema"))], SENT),
        ([attempt(("/contacts", POLICY))], read_journal("text.summarize\ta\t10\tcontacts,directory\n")),
        ([attempt(("/contacts", POLICY))], read_journal("text.summarize\ta\t10\n")),
        ([], SENT),
    ],
    ids=["one record lacks it", "the program noted them", "the program noted nothing", "there is no record"],
)
def test_nothing_is_claimed_that_record_and_journal_do_not_bear_out(tries: list[pb.Attempt], journal: Journal) -> None:
    with pytest.raises(Problem, match="not shown"):
        withheld(attempts(*tries), SUBJECTS, journal)
