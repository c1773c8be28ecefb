"""What the demo may claim about its crashes."""

from __future__ import annotations

from collections import Counter

from antiphon_orchestrator.demo.proof import prove, read_journal

READ_A, READ_B = ("package.read", "a"), ("package.read", "b")
WORKS = {("read", 1): READ_A, ("read", 2): READ_B}


def test_a_journal_counts_what_was_begun_and_knows_the_last_process_of_each_capability() -> None:
    journal = read_journal("package.read\ta\t10\npackage.read\tb\t11\npackage.read\ta\t12\n")
    assert journal.begun == Counter({READ_A: 2, READ_B: 1})
    assert journal.pids == {"package.read": 12}


def test_a_journal_joins_the_fields_that_a_program_says_it_was_sent() -> None:
    journal = read_journal("text.summarize\ta\t10\tdirectory\nlicense.classify\ta\t11\ntext.summarize\tb\t10\tx,y\n")
    assert journal.received == {"text.summarize": {"directory", "x", "y"}}
    assert journal.begun.total() == 3


def test_a_line_that_is_still_being_written_is_left_out() -> None:
    assert read_journal("package.read\ta\t10\npackage.re").begun == Counter([READ_A])


def test_finished_work_that_began_again_is_named() -> None:
    proof = prove({("read", 1)}, WORKS, Counter([READ_A]), Counter([READ_A, READ_A, READ_B]))
    assert proof.ran_again == ("package.read of a",)
    assert proof.finished_before == 1


def test_unfinished_work_may_begin_again() -> None:
    proof = prove({("read", 1)}, WORKS, Counter([READ_A, READ_B]), Counter([READ_A, READ_B, READ_B]))
    assert proof.ran_again == ()
    assert (proof.begun, proof.repeated) == (3, 1)
