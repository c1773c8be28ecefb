"""What a sidecar holds, in any order of events: its invariants, its table, and the rules of protocol.md §5."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from antiphon_sidecar import inflight as module
from antiphon_sidecar.attempts import TABLE, Attempt, End, Event, State
from antiphon_sidecar.boxes import Link, Said, Seat
from antiphon_sidecar.inflight import (
    ANNOUNCE_AFTER,
    CANCEL_GRACE,
    LINGER,
    MOST_POLICIES,
    PATIENCE,
    POLICY_GRACE,
    Inflight,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

VISITED: set[tuple[State, Event]] = set()


@pytest.fixture(scope="module", autouse=True)
def visits_are_noted() -> Iterator[None]:
    """Which rows of the table are used. Compiled code does not look its methods up by name, and is left as it is."""
    move = Inflight._move

    def noted(core: Inflight, attempt: Attempt, event: Event) -> End:
        VISITED.add((attempt.state, event))
        return move(core, attempt, event)

    with pytest.MonkeyPatch.context() as patch:
        if inspect.isfunction(move):
            patch.setattr(Inflight, "_move", noted)
        yield


def ignore() -> None:
    return None


class Bench:
    """One sidecar with one seat and one attached replica that owns shard 0, and a clock."""

    def __init__(self, concurrency: int = 2, prefetch: int = 2) -> None:
        self.now = 100.0
        self.core = Inflight()
        self.seat = self.core.add_seat("echo", ignore)
        self.link = self.attach({0: 1})
        self.core.agent_came(self.seat, concurrency, prefetch, self.now)

    def attach(self, claims: dict[int, int]) -> Link:
        link = self.core.attach(ignore)
        self.core.welcomed(link, self.core.hello(link))
        self.core.claim(link, claims.items())
        link.inventories.clear()
        return link

    def offer(
        self,
        attempt_id: str,
        link: Link | None = None,
        epoch: int = 1,
        timeout: float | None = None,
        policy_epoch: int = 1,
        alone: bool = False,
        seat: str = "echo",
    ) -> None:
        what = f"assignment {attempt_id}"
        self.core.offer(
            link or self.link, seat, attempt_id, 0, epoch, what, b"token", 10, timeout, self.now, policy_epoch, alone
        )

    def take(self, seat: Seat | None = None) -> list[str]:
        return [attempt.attempt_id for attempt in self.core.take(seat or self.seat, self.now, 256, 1 << 20)]

    def end(self, attempt_id: str, seat: Seat | None = None) -> None:
        self.core.ended(seat or self.seat, attempt_id, f"result {attempt_id}", 10, self.now)

    def reports(self, link: Link | None = None) -> list[tuple[str, End]]:
        link = link or self.link
        reports = [(attempt.attempt_id, attempt.end) for attempt in link.reports]
        link.reports.clear()
        return reports

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.core.sweep(self.now)


def test_a_result_is_kept_until_its_verdict() -> None:
    bench = Bench()
    bench.offer("a")
    assert bench.take() == ["a"]
    bench.end("a")
    assert bench.reports() == [("a", End.RESULT)]
    assert bench.core.held["a"].result == "result a"
    bench.core.verdict("a")
    assert not bench.core.held


def test_no_more_than_concurrency_are_taken_and_the_rest_waits_in_order() -> None:
    bench = Bench(concurrency=2, prefetch=2)
    for attempt_id in "abcd":
        bench.offer(attempt_id)
    assert bench.take() == ["a", "b"]
    assert bench.take() == []
    bench.end("b")
    assert bench.take() == ["c"]


def test_an_offer_beyond_the_window_comes_back_and_is_not_held() -> None:
    bench = Bench(concurrency=1, prefetch=0)
    bench.offer("a")
    bench.offer("b")
    assert bench.reports() == [("b", End.NO_SLOT)]
    assert list(bench.core.held) == ["a"]


def test_nothing_is_begun_under_a_policy_epoch_that_is_over() -> None:
    bench = Bench(concurrency=1, prefetch=4)
    bench.core.policy(1, bench.now)
    bench.offer("running")
    bench.offer("waiting")
    assert bench.take() == ["running"]
    bench.core.policy(2, bench.now)
    bench.offer("late")  # it was on its way
    bench.offer("new", policy_epoch=2)
    bench.advance(POLICY_GRACE - 0.01)
    assert bench.reports() == []
    bench.advance(0.02)
    assert bench.reports() == [("waiting", End.STALE_POLICY), ("late", End.STALE_POLICY)]
    bench.offer("too late")
    bench.offer("says nothing", policy_epoch=0)
    assert bench.reports() == [("too late", End.STALE_POLICY), ("says nothing", End.STALE_POLICY)]
    bench.end("running")
    assert bench.take() == ["new"]


def test_policy_changes_in_quick_succession_do_not_put_each_other_off() -> None:
    bench = Bench()
    for epoch in range(1, 2 * MOST_POLICIES):
        bench.core.policy(epoch, bench.now)
        bench.advance(0.01)
    bench.core.policy(1, bench.now)  # old news
    bench.advance(POLICY_GRACE - 0.01 * MOST_POLICIES)
    assert bench.core.policy_floor == 2 * MOST_POLICIES - 1


def test_an_offer_of_an_older_epoch_comes_back_also_from_its_own_replica() -> None:
    bench = Bench()
    zombie, owner = bench.link, bench.attach({0: 5})
    bench.offer("a", zombie, epoch=4)
    assert bench.reports(zombie) == [("a", End.STALE_EPOCH)]
    assert bench.core.claim(zombie, [(0, 4), (1, 1)]) == [(0, 4, 5)], "told of the log"
    assert [page.shard for page in zombie.inventories] == [1]
    bench.offer("b", owner, epoch=5)
    assert "b" in bench.core.held or bench.reports(owner) == [("b", End.NO_SLOT)]


def test_a_duplicate_offer_is_ignored_and_a_reported_one_is_reported_again() -> None:
    bench = Bench()
    bench.offer("a")
    bench.offer("a")
    assert bench.take() == ["a"]
    bench.offer("a")
    assert bench.take() == [] and bench.reports() == []
    bench.end("a")
    assert bench.reports() == [("a", End.RESULT)]
    bench.offer("a")
    assert bench.reports() == [("a", End.RESULT)]


def test_a_claim_is_answered_by_the_inventory_and_then_by_the_outcomes() -> None:
    bench = Bench(concurrency=3)
    for attempt_id in "abc":
        bench.offer(attempt_id)
    bench.take()
    bench.end("c")
    bench.core.detach(bench.link)
    bench.end("b")
    successor = bench.core.attach(ignore)
    bench.core.welcomed(successor, bench.core.hello(successor))
    bench.core.claim(successor, [(0, 2), (3, 9)])
    first, second = successor.inventories
    assert (first.shard, first.epoch, first.attempt_ids, sorted(first.reported_attempt_ids), first.last) == (
        0, 2, ["a"], ["b", "c"], True,
    )  # fmt: skip
    assert (second.shard, second.attempt_ids, second.last) == (3, [], True)
    assert sorted(bench.reports(successor)) == [("b", End.RESULT), ("c", End.RESULT)]
    bench.end("a")
    assert bench.reports(successor) == [("a", End.RESULT)]


def test_a_large_inventory_comes_in_pages_of_which_one_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(concurrency=1, prefetch=2_500)
    for number in range(2_400):
        bench.offer(f"a{number}")
    bench.core.claim(bench.link, [(0, 1)])
    pages = list(bench.link.inventories)
    assert [len(page.attempt_ids) for page in pages] == [1_000, 1_000, 400]
    assert [page.last for page in pages] == [False, False, True]


def test_outcomes_go_to_the_replica_that_claimed_the_shard_last() -> None:
    bench = Bench()
    bench.offer("a")
    bench.take()
    other = bench.attach({0: 2})
    bench.end("a")
    assert bench.reports(bench.link) == [] and bench.reports(other) == [("a", End.RESULT)]


def test_an_attempt_past_its_time_fails_at_once_and_keeps_its_place_until_the_agent_answers() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a", timeout=1.0)
    bench.take()
    bench.advance(0.06)
    bench.advance(1.0)
    assert bench.reports() == [("a", End.TIMEOUT)]
    assert list(bench.seat.cancels) == [("a", "timeout")]
    bench.offer("b")
    assert bench.take() == []
    bench.end("a")
    assert bench.reports() == [] and bench.take() == ["b"]


def test_an_agent_that_never_answers_a_timeout_gets_work_again_after_a_while() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a", timeout=1.0)
    bench.take()
    bench.advance(0.06)
    bench.advance(1.0)
    bench.offer("b")
    bench.advance(LINGER - 0.1)
    assert bench.take() == []
    bench.advance(0.2)
    assert bench.take() == ["b"]


def test_an_offer_that_waits_past_its_time_comes_back() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a")
    bench.take()
    bench.offer("b", timeout=1.0)
    bench.advance(0.06)
    bench.advance(1.0)
    assert ("b", End.TOO_LATE) in bench.reports()
    bench.end("a")
    assert bench.take() == []


def test_a_cancel_reaches_the_agent_and_is_answered_for_it_when_it_does_not() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a")
    bench.offer("b")
    bench.take()
    bench.core.cancel("b", "run cancelled", bench.now)
    bench.core.cancel("a", "run cancelled", bench.now)
    assert bench.reports() == [("b", End.CANCELLED)]
    assert list(bench.seat.cancels) == [("a", "run cancelled")]
    bench.advance(CANCEL_GRACE + 0.1)
    assert bench.reports() == [("a", End.CANCELLED)]
    bench.core.cancel("a", "again", bench.now)
    bench.core.cancel("unknown", "again", bench.now)
    assert bench.reports() == []


def test_an_agent_that_goes_loses_what_it_had_begun_and_gives_back_the_rest() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a")
    bench.offer("b")
    bench.take()
    bench.core.agent_went(bench.seat, bench.now)
    assert bench.reports() == [("a", End.LOST), ("b", End.AGENT_GONE)]
    assert bench.link.agents == {"echo": False}
    bench.offer("c")
    assert bench.reports() == [("c", End.AGENT_GONE)]


def test_what_an_agent_leaves_unfinished_that_was_draining_is_lost_and_nobody_has_died_of_it() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a")
    bench.take()
    bench.core.agent_drains(bench.seat, bench.now)
    bench.core.agent_went(bench.seat, bench.now)
    assert bench.reports() == [("a", End.LEFT)]


def test_what_waited_for_an_agent_that_its_sidecar_stops_comes_back() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a")
    bench.core.draining = True  # as a drain leaves it that the agent does not know of yet
    bench.core.agent_went(bench.seat, bench.now)
    assert bench.reports() == [("a", End.AGENT_GONE)]


def test_suspects_come_back_when_the_others_go_on_for_too_long() -> None:
    bench = Bench(concurrency=2, prefetch=2)
    bench.offer("a")
    bench.take()
    bench.offer("suspect", alone=True)
    bench.offer("another", alone=True)
    bench.offer("b")
    bench.advance(PATIENCE - 0.1)
    assert (bench.reports(), bench.take()) == ([], [])
    bench.advance(0.2)
    assert bench.reports() == [("suspect", End.NO_SLOT), ("another", End.NO_SLOT)]
    assert bench.take() == ["b"]


def test_an_outcome_of_a_former_life_is_reported_to_whoever_claims_its_shard_and_kept_until_its_verdict() -> None:
    bench = Bench()
    assert bench.core.found("old", 7, "gone", "result", 10, 0.5) is not None
    assert bench.core.found("old", 7, "gone", "result", 10, 0.5) is None
    assert bench.reports() == []
    other = bench.attach({7: 3})
    assert bench.reports(other) == [("old", End.RESULT)]
    bench.offer("old", other)  # its owner does not know that it was answered
    assert bench.reports(other) == [("old", End.RESULT)]
    bench.core.verdict("old")
    assert not bench.core.held and bench.core.outcomes == 0


def test_a_drain_gives_back_what_was_not_begun_and_closes_the_windows() -> None:
    bench = Bench(concurrency=1, prefetch=1)
    bench.offer("a")
    bench.offer("b")
    bench.take()
    bench.core.drain(bench.now)
    assert bench.reports() == [("b", End.DRAINING)]
    generation, slots = bench.link.windows["echo"]
    assert slots == 0 and bench.link.drain and bench.core.slots.unacknowledged
    bench.core.slots.acknowledged(bench.link, "echo", generation)
    assert not bench.core.slots.unacknowledged
    bench.offer("c")
    assert bench.reports() == [("c", End.DRAINING)]
    bench.end("a")
    assert bench.reports() == [("a", End.RESULT)]


def test_only_attempts_that_last_are_announced() -> None:
    bench = Bench()
    bench.offer("quick")
    bench.offer("slow")
    bench.take()
    bench.end("quick")
    bench.advance(ANNOUNCE_AFTER + 0.01)
    bench.advance(ANNOUNCE_AFTER + 0.01)
    assert [attempt.attempt_id for attempt in bench.link.started] == ["slow"]


def test_a_handler_that_waits_for_its_call_gives_up_its_place() -> None:
    bench = Bench(concurrency=1, prefetch=0)
    answers: list[Any] = []
    bench.offer("parent")
    bench.take()
    parent = bench.core.vouched(bench.seat, "parent", b"token")
    assert parent and bench.core.called(parent, "1", "request", 10, answers.append)
    assert bench.link.windows["echo"][1] == 2  # one more, for the child
    assert list(bench.link.calls) == [("request", 10)]
    bench.offer("child")
    assert bench.take() == ["child"]
    bench.end("child")
    bench.core.answered("parent", "1", "response")
    assert answers == ["response"] and bench.link.windows["echo"][1] == 1
    bench.core.answered("parent", "1", "response")
    assert answers == ["response"]


def test_waiting_calls_are_made_again_at_a_new_owner_and_dropped_with_their_attempt() -> None:
    bench = Bench()
    answers: list[Any] = []
    bench.offer("a")
    bench.take()
    attempt = bench.core.vouched(bench.seat, "a", b"token")
    assert attempt and bench.core.called(attempt, "1", "request", 10, answers.append)
    successor = bench.attach({0: 2})
    assert list(successor.calls) == [("request", 10)]
    bench.end("a")
    assert answers == [None]


def test_a_handler_that_asks_shared_context_keeps_its_place_and_is_told_once() -> None:
    bench = Bench(concurrency=1, prefetch=0)
    answers: list[Any] = []
    bench.offer("a")
    bench.take()
    attempt = bench.core.vouched(bench.seat, "a", b"token")
    assert attempt and bench.core.asked(attempt, "1", "request", 10, answers.append)
    assert list(bench.link.asks) == [("request", 10)] and bench.seat.active == 1
    bench.core.told("a", "1", "response")
    bench.core.told("a", "1", "response")
    assert answers == ["response"]


def test_waiting_requests_are_asked_again_of_a_new_owner_and_dropped_with_their_attempt() -> None:
    bench = Bench()
    answers: list[Any] = []
    bench.offer("a")
    bench.take()
    attempt = bench.core.vouched(bench.seat, "a", b"token")
    assert attempt and bench.core.asked(attempt, "1", "request", 10, answers.append)
    attempt.reads = "what it has read"
    successor = bench.attach({0: 2})
    assert list(successor.asks) == [("request", 10)] and attempt.reads == "what it has read"
    bench.end("a")
    assert answers == [None] and attempt.reads is None
    bench.core.told("a", "1", "late")
    assert answers == [None]


def test_an_attempt_has_a_bounded_number_of_requests_waiting() -> None:
    bench = Bench()
    bench.offer("a")
    bench.take()
    attempt = bench.core.vouched(bench.seat, "a", b"token")
    assert attempt
    accepted = [bench.core.asked(attempt, str(number), "r", 1, lambda _: None) for number in range(65)]
    assert accepted == [True] * 64 + [False]


def test_the_loss_of_a_claim_is_told_to_the_agent_of_its_attempt_while_it_works() -> None:
    bench = Bench()
    bench.offer("a")
    bench.core.claim_lost("a", "too early")
    bench.take()
    bench.core.claim_lost("a", "loss")
    bench.core.claim_lost("unknown", "loss")
    assert list(bench.seat.losses) == ["loss"]
    bench.end("a")
    bench.core.claim_lost("a", "too late")
    assert list(bench.seat.losses) == ["loss"]


def test_a_wrong_token_vouches_for_nothing() -> None:
    bench = Bench()
    bench.offer("a")
    bench.take()
    assert bench.core.vouched(bench.seat, "a", b"other") is None
    with pytest.raises(KeyError):
        bench.core.vouched(bench.seat, "b", b"token")


@pytest.mark.parametrize(("limit", "most"), [("MOST_OUTCOMES", 4), ("MOST_BYTES", 40)])
@pytest.mark.parametrize("former", [0, 3], ids=["all of this life", "some of a former life"])
def test_windows_close_while_too_many_outcomes_wait_or_too_large_ones(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int, former: int
) -> None:
    monkeypatch.setattr(module, limit, most)
    bench = Bench(concurrency=10)
    for number in range(former):
        bench.core.found(f"a{number}", 0, "echo", "result", 10, 0.5)
    for number in range(former, 5):
        bench.offer(f"a{number}")
    bench.take()
    for number in range(former, 5):
        assert bench.link.windows["echo"][1] == 12
        bench.end(f"a{number}")
    assert bench.link.windows["echo"][1] == 0
    for number in range(3):
        assert bench.link.windows["echo"][1] == 0
        bench.core.verdict(f"a{number}")
    assert bench.link.windows["echo"][1] == 12


def test_windows_are_closed_from_the_start_where_a_former_life_has_left_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 40)
    core = Inflight()
    core.found("large", 0, "echo", "result", 41, 0.5)
    seat = core.add_seat("echo", ignore)
    link = core.attach(ignore)
    core.welcomed(link, core.hello(link))
    core.agent_came(seat, 2, 2, 100.0)
    assert "echo" not in link.windows
    core.verdict("large")
    assert link.windows["echo"][1] == 4


def test_what_has_no_answer_weighs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 15)
    bench = Bench(concurrency=4)
    for number in range(4):
        bench.offer(f"a{number}")
    bench.core.agent_drains(bench.seat, bench.now)  # all of them come back
    assert (bench.core.outcomes, bench.core.outcome_bytes) == (4, 0)
    assert not bench.core.slots.closed


def test_an_agent_that_came_again_after_the_hello_is_announced_anew() -> None:
    bench = Bench()
    said = bench.core.hello(bench.link)
    bench.core.agent_went(bench.seat, bench.now)
    bench.core.agent_came(bench.seat, 2, 2, bench.now)  # another version, perhaps
    bench.core.welcomed(bench.link, said)
    assert bench.link.agents == {"echo": True} and "echo" in bench.link.windows


def test_a_new_stream_of_the_same_replica_hears_only_what_changed_since_its_hello() -> None:
    bench = Bench(concurrency=2, prefetch=2)
    said = bench.core.hello(bench.link)
    bench.core.agent_drains(bench.seat, bench.now)
    bench.core.welcomed(bench.link, said)
    assert bench.link.windows["echo"][1] == 0 and bench.link.agents == {}
    bench.core.agent_went(bench.seat, bench.now)
    bench.core.welcomed(bench.link, said)
    assert bench.link.agents == {"echo": False}


def test_slots_said_of_an_agent_that_went_before_the_welcome_are_free_when_it_comes_again() -> None:
    bench = Bench(concurrency=2, prefetch=2)
    said = bench.core.hello(bench.link)
    assert said["echo"].slots == 4
    bench.core.agent_went(bench.seat, bench.now)
    bench.core.welcomed(bench.link, said)
    other = bench.attach({1: 1})
    bench.core.slots.demanded(other, "echo", 4)
    bench.core.agent_came(bench.seat, 2, 2, bench.now)
    assert other.windows["echo"][1] == 4


class Life(RuleBasedStateMachine):
    """Random lives of a sidecar with two replicas, one agent and a small clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.core = Inflight()
        self.seat: Seat = self.core.add_seat("echo", ignore)
        self.links: dict[str, Link] = {}
        self.hellos: dict[str, dict[str, Said]] = {}  # of streams that wait for their welcome
        self.epochs = dict.fromkeys(range(2), 0)
        self.owner: dict[int, tuple[str, int]] = {}
        self.said: dict[str, End] = {}  # outcome of each attempt that has had one, until its verdict
        self.ids: set[str] = set()
        self.at_agent: set[str] = set()  # what the agent believes it is working on

    names = st.sampled_from(["one", "two"])
    shards = st.sampled_from([0, 1])
    attempts = st.integers(0, 7).map(str)

    @rule(name=names)
    def attach_or_break(self, name: str) -> None:
        self.hellos.pop(name, None)
        if name in self.links:
            self.core.detach(self.links.pop(name))
        else:
            link = self.links[name] = self.core.attach(ignore)
            self.core.welcomed(link, self.core.hello(link))

    @rule(name=names)
    def say_hello_on_a_new_stream(self, name: str) -> None:
        if link := self.links.get(name):
            self.hellos[name] = self.core.hello(link)

    @precondition(lambda self: self.hellos)
    @rule()
    def welcome_the_new_stream(self) -> None:
        name, said = self.hellos.popitem()
        self.core.welcomed(self.links[name], said)

    @rule(name=names, shard=shards, stale=st.booleans())
    def claim(self, name: str, shard: int, stale: bool) -> None:
        if link := self.links.get(name):
            highest = max((claim.epoch for key, claim in self.core._claims.items() if key == shard), default=0)
            epoch = max(highest - 1, 0) if stale else highest + 1
            link.inventories.clear()
            self.core.claim(link, [(shard, epoch)])
            answered = [attempt_id for page in link.inventories for attempt_id in page.attempt_ids]
            if stale and highest > 0:
                assert not link.inventories
            else:
                expected = [a.attempt_id for a in self.core.held.values() if a.shard == shard and a.end is End.NONE]
                assert answered == expected

    @rule(
        name=names,
        attempt=attempts,
        behind=st.integers(0, 1),
        timeout=st.sampled_from([None, 0.2, 5.0]),
        alone=st.sampled_from([False, False, True]),
    )
    def offer(self, name: str, attempt: str, behind: int, timeout: float | None, alone: bool) -> None:
        link = self.links.get(name)
        settled = attempt in self.at_agent and attempt not in self.core.held  # its owner does not offer it again
        if link and not settled:
            shard = int(attempt) % 2
            highest = self.core._claims[shard].epoch if shard in self.core._claims else 0
            known = attempt in self.core.held
            link.reports.clear()
            self.core.offer(link, "echo", attempt, shard, highest - behind, "x", b"t", 10, timeout, self.now, 0, alone)
            if behind and highest > 0:
                assert [report.end for report in link.reports] == [End.STALE_EPOCH]
                assert (attempt in self.core.held) == known

    @rule()
    def take(self) -> None:
        for attempt in self.core.take(self.seat, self.now, 256, 100):
            assert attempt.attempt_id not in self.at_agent, "the agent has it already"
            self.at_agent.add(attempt.attempt_id)

    @rule(attempt=attempts)
    def end(self, attempt: str) -> None:
        self.at_agent.discard(attempt)
        self.core.ended(self.seat, attempt, "result", 10, self.now)

    @rule(attempt=attempts)
    def cancel(self, attempt: str) -> None:
        self.core.cancel(attempt, "why", self.now)

    @rule(attempt=attempts)
    def verdict(self, attempt: str) -> None:
        held = self.core.held.get(attempt)
        self.core.verdict(attempt)
        if held is not None and held.end is End.NONE:
            assert attempt in self.core.held, "a verdict forgets outcomes only"
        else:
            self.said.pop(attempt, None)

    @rule(attempt=attempts)
    def call(self, attempt: str) -> None:
        if attempt in self.seat.running:
            vouched = self.core.vouched(self.seat, attempt, b"t")
            assert vouched is not None
            self.core.called(vouched, "1", "request", 1, lambda _: None)

    @rule(attempt=attempts)
    def answer(self, attempt: str) -> None:
        self.core.answered(attempt, "1", "response")

    @rule(seconds=st.sampled_from([0.06, 0.3, 11.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        lingering = set(self.seat.lingering)
        self.core.sweep(self.now)
        self.at_agent -= lingering - set(self.seat.lingering)

    @rule(name=names)
    def acknowledge(self, name: str) -> None:
        if (link := self.links.get(name)) and "echo" in link.grants:
            self.core.slots.acknowledged(link, "echo", link.grants["echo"].generation)

    @rule(name=names, wanted=st.integers(0, 5))
    def demand(self, name: str, wanted: int) -> None:
        if link := self.links.get(name):
            self.core.slots.demanded(link, "echo", wanted)

    @rule(concurrency=st.integers(1, 3), prefetch=st.integers(0, 2))
    def agent_comes(self, concurrency: int, prefetch: int) -> None:
        self.at_agent.clear()
        self.core.agent_came(self.seat, concurrency, prefetch, self.now)

    @precondition(lambda self: self.seat.present)
    @rule()
    def agent_goes(self) -> None:
        self.at_agent.clear()
        self.core.agent_went(self.seat, self.now)

    @precondition(lambda self: self.seat.present)
    @rule()
    def agent_drains(self) -> None:
        self.core.agent_drains(self.seat, self.now)

    @invariant()
    def the_agent_is_never_overloaded(self) -> None:
        if self.seat.present:
            begun = [a for a in self.seat.running.values() if not a.calls]
            assert len(self.at_agent) >= len(self.seat.running)
            # Woken handlers may exceed the concurrency for a moment; nothing new is taken then.
            if len(begun) + len(self.seat.lingering) > self.seat.concurrency:
                assert self.core.take(self.seat, self.now, 256, 100) == []

    @invariant()
    def one_that_is_alone_has_nobody_beside_it(self) -> None:
        running = self.seat.running.values()
        alone = [attempt for attempt in running if attempt.alone]
        # Those that began while it waited for its calls may be there still.
        assert sum(not attempt.calls for attempt in alone) <= 1
        assert set(self.core._alone) >= set(alone)
        assert all(attempt.state in (State.QUEUED, State.STARTED) for attempt in self.core._alone)

    @invariant()
    def every_attempt_has_one_outcome_until_its_verdict(self) -> None:
        for attempt_id, attempt in self.core.held.items():
            if attempt.end is not End.NONE:
                assert self.said.setdefault(attempt_id, attempt.end) is attempt.end
            else:
                assert attempt_id not in self.said
        waiting = [a for a in self.core.held.values() if a.state is State.REPORTED]
        assert self.core.outcomes == len(waiting)
        assert self.core.outcome_bytes == sum(a.size for a in waiting)
        assert all(a.size == (0 if a.result is None else 10) for a in waiting)

    @invariant()
    def counts_agree(self) -> None:
        seat = self.seat
        queued = [a for a in self.core.held.values() if a.state is State.QUEUED]
        started = [a for a in self.core.held.values() if a.state is State.STARTED]
        assert seat.queued == len(queued) and len(seat.running) == len(started)
        assert seat.waiting == sum(bool(a.calls) for a in started)
        for link in self.core.slots.links:
            for grant in link.grants.values():
                assert grant.out == sum(a.grant is grant for a in queued + started)
                assert grant.slots <= grant.allowed
                assert grant.slots == grant.allowed or "echo" in link.windows, "nothing comes that it could acknowledge"

    @invariant()
    def outcomes_are_sent_to_the_owner_or_wait_for_one(self) -> None:
        for claim in self.core._claims.values():
            assert claim.link is None or claim.link in self.core.slots.links


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_every_row_of_the_table_is_visited_by_these_tests() -> None:
    VISITED.clear()
    for name, test in list(globals().items()):
        if name.startswith("test_") and "every_row" not in name and not inspect.signature(test).parameters:
            test()
    assert set(TABLE) == VISITED
