"""What is to be made alone in a sidecar, so that it is seen who dies of what; and what it keeps for its next life."""

from __future__ import annotations

from antiphon_sidecar.attempts import Attempt, End
from antiphon_sidecar.boxes import Seat
from antiphon_sidecar.inflight import PATIENCE, POLICY_GRACE
from test_sidecar_inflight import Bench, ignore


def two_agents() -> tuple[Bench, Seat]:
    bench = Bench(concurrency=2, prefetch=2)
    other = bench.core.add_seat("other", ignore)
    bench.core.agent_came(other, 2, 2, bench.now)
    return bench, other


def test_what_is_to_be_alone_waits_for_all_agents_and_nothing_begins_beside_it() -> None:
    bench, other = two_agents()
    bench.offer("a")
    bench.offer("b", seat="other")
    assert (bench.take(), bench.take(other)) == (["a"], ["b"])
    bench.offer("suspect", alone=True)
    bench.offer("c")
    bench.offer("d", seat="other")
    assert (bench.take(), bench.take(other)) == ([], [])
    bench.end("a")
    assert (bench.take(), bench.take(other)) == ([], [])
    bench.end("b", other)
    assert (bench.take(other), bench.take()) == ([], ["suspect"])
    assert [attempt.attempt_id for attempt in bench.link.started] == ["suspect"], "that it begins is known at once"
    assert (bench.take(), bench.take(other)) == ([], [])
    bench.end("suspect")
    assert (bench.take(), bench.take(other)) == (["c"], ["d"])


def test_suspects_are_tried_one_after_the_other() -> None:
    bench, other = two_agents()
    bench.offer("first", alone=True)
    bench.offer("second", alone=True, seat="other")
    assert (bench.take(other), bench.take()) == ([], ["first"])
    assert bench.take(other) == []
    bench.end("first")
    assert (bench.take(), bench.take(other)) == ([], ["second"])


def test_one_that_is_alone_and_waits_for_its_own_calls_does_not_hold_up_who_answers_them() -> None:
    bench, other = two_agents()
    bench.offer("suspect", alone=True)
    bench.offer("callee", seat="other")
    assert bench.take() == ["suspect"]
    assert bench.take(other) == []
    vouched = bench.core.vouched(bench.seat, "suspect", b"token")
    assert vouched is not None
    bench.core.called(vouched, "1", "request", 1, lambda _: None)
    assert bench.take(other) == ["callee"]
    bench.core.answered("suspect", "1", "response")
    bench.offer("next", seat="other")
    assert bench.take(other) == []


def test_patience_is_counted_from_where_a_suspect_is_next() -> None:
    bench = Bench(concurrency=2, prefetch=2)
    bench.offer("first", alone=True)
    bench.take()
    bench.offer("second", alone=True)
    bench.advance(PATIENCE + 1)
    bench.end("first")
    assert bench.reports() == [("first", End.RESULT)]
    bench.advance(1)
    assert bench.take() == ["second"]


def test_suspects_leave_with_their_agent_with_a_cancel_or_when_it_drains() -> None:
    for leave, end in (
        (lambda bench: bench.core.cancel("suspect", "why", bench.now), End.CANCELLED),
        (lambda bench: bench.core.agent_drains(bench.seat, bench.now), End.DRAINING),
        (lambda bench: bench.core.agent_went(bench.seat, bench.now), End.AGENT_GONE),
        (lambda bench: bench.core.policy(2, bench.now) or bench.advance(POLICY_GRACE + 0.1), End.STALE_POLICY),
    ):
        bench, other = two_agents()
        bench.offer("suspect", alone=True)
        bench.offer("b", seat="other", policy_epoch=2)
        leave(bench)
        assert bench.reports() == [("suspect", end)]
        assert bench.take(other) == ["b"]


class Keeper:
    """Notes what it is to keep, and where."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def keep(self, attempt: Attempt) -> None:
        self.kept.append(attempt.attempt_id)
        attempt.spooled = "here"

    def forget(self, attempt: Attempt) -> None:
        self.kept.remove(attempt.attempt_id)


def test_only_what_agents_answer_is_kept_and_only_until_its_verdict() -> None:
    bench = Bench(concurrency=2, prefetch=2)
    keeper = bench.core.keeper = Keeper()
    for attempt_id in ("answered", "lost", "back"):
        bench.offer(attempt_id)
    bench.take()
    bench.end("answered")
    assert keeper.kept == ["answered"]
    bench.core.agent_went(bench.seat, bench.now)
    assert bench.reports() == [("answered", End.RESULT), ("lost", End.LOST), ("back", End.AGENT_GONE)]
    for attempt_id in ("answered", "lost", "back"):
        bench.core.verdict(attempt_id)
    assert keeper.kept == []
