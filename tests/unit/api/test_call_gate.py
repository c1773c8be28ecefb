"""How many calls a server takes at once: fewer when it answers late, more when it does not, a share for everybody."""

from __future__ import annotations

from antiphon_orchestrator.api.gate import FEWEST, Gate, Place, Streams


class Server:
    """A gate with a clock turned by hand."""

    def __init__(self, most: int = 100) -> None:
        self.now = 0.0
        self.gate = Gate(most, 1.0, lambda: self.now)

    def take(self, number: int, caller: str = "a") -> list[Place]:
        places = [self.gate.enter(caller) for _ in range(number)]
        return [place for place in places if place is not None]

    def round(self, took: float, number: int = 1000, caller: str = "a") -> int:
        """As many at once as are taken, each answered after so long; returns how many there were."""
        places = self.take(number, caller)
        self.now += took
        for place in places:
            place.ended()
        self.now += 1.0 - min(took, 1.0)
        return len(places)


def test_calls_beyond_the_most_are_refused_until_one_is_over() -> None:
    server = Server()
    places = server.take(150)
    assert len(places) == 100
    places[0].give_back()
    assert len(server.take(2)) == 1


def test_a_server_that_answers_late_takes_fewer_and_one_that_is_quick_takes_more_again() -> None:
    server = Server()
    taken = [server.round(took=1.5) for _ in range(10)]
    assert taken[0] == 100 and taken == sorted(taken, reverse=True) and taken[-1] == FEWEST
    for _ in range(40):
        server.round(took=0.1)
    assert server.round(took=0.1) == 100


def test_a_few_slow_calls_among_quick_ones_change_nothing() -> None:
    server = Server()
    for _ in range(10):
        slow = server.take(5)
        server.now += 2.0
        for place in (*server.take(50), *slow):
            place.ended()
    assert server.gate.limit == 100


def test_one_who_floods_does_not_keep_others_out() -> None:
    server = Server()
    assert len(server.take(500, "flood")) == 100
    assert len(server.take(50, "honest")) == 50
    assert len(server.take(500, "flood")) == 0
    assert server.gate.in_hand <= 200


def test_whatever_their_number_callers_have_twice_the_limit_at_most() -> None:
    server = Server()
    for number in range(500):
        server.take(100, f"caller{number}")
    assert server.gate.in_hand <= 200


def test_what_waits_for_something_else_is_not_in_hand_and_says_nothing_of_the_server() -> None:
    server = Server()
    for _ in range(10):
        waiting = server.take(100)
        for place in waiting:
            place.give_back()
        assert server.gate.in_hand == 0
        server.now += 60.0
        for place in waiting:
            place.ended()
    assert (server.gate.in_hand, server.gate.limit) == (0, 100)


def test_a_place_is_given_back_once() -> None:
    server = Server()
    (one,) = server.take(1)
    server.take(1)
    one.ended()
    one.give_back()
    assert server.gate.in_hand == 1


def test_a_caller_has_so_many_streams_and_another_when_one_is_over() -> None:
    streams = Streams(2)
    assert [streams.enter("a") for _ in range(3)] == [True, True, False]
    assert streams.enter("b")
    streams.leave("a")
    assert streams.enter("a") and not streams.enter("a")
