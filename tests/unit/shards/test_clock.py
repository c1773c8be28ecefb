"""Time follows the machine's clock forwards and never back."""

from __future__ import annotations

from antiphon_orchestrator.shards.clock import SteadyClock

SECOND = 1_000_000_000


class Machine:
    """Both clocks of a machine, in nanoseconds."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_000 * SECOND, 5 * SECOND
        self.clock = SteadyClock(lambda: self.wall, lambda: self.monotonic)

    def pass_by(self, seconds: int) -> float:
        """Time passes; what the clock says then, in seconds."""
        self.wall += seconds * SECOND
        self.monotonic += seconds * SECOND
        return self.clock() / 1e6


def test_it_is_the_clock_of_the_machine() -> None:
    machine = Machine()
    assert [machine.pass_by(1), machine.pass_by(10)] == [1001, 1011]


def test_a_clock_that_is_set_forwards_is_followed_at_once() -> None:
    machine = Machine()
    machine.wall += 3600 * SECOND
    assert machine.pass_by(1) == 4601


def test_a_clock_that_is_set_back_slows_time_until_it_has_caught_up() -> None:
    machine = Machine()
    machine.pass_by(1)
    machine.wall -= 10 * SECOND
    assert machine.pass_by(0) == 1001, "it does not go back"
    assert machine.pass_by(10) == 1010
    assert machine.pass_by(80) == 1082
    assert machine.pass_by(20) == 1101, "ten seconds are made up for within a hundred"
