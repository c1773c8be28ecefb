"""What streams take of the loop, and what they leave to others."""

from __future__ import annotations

import asyncio

from antiphon_orchestrator.api.pace import BETWEEN, FREE, FREE_BESIDE_CALLS, LATELY, LEFT, ROUNDS, SLICE, Pace


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def turns_of_others(until: asyncio.Event) -> int:
    """How often somebody else had a turn of the loop before that."""
    count = 0
    while not until.is_set():
        await asyncio.sleep(0)
        count += 1
    return count


async def turns_after(pace: Pace) -> int:
    """Turns that others have before a stream goes on."""
    over = asyncio.Event()
    others = asyncio.create_task(turns_of_others(over))
    await pace.begin()
    over.set()
    return await others


async def test_what_has_used_little_goes_on_at_once_and_others_have_their_turns_after_much() -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.work():
        clock.now += SLICE * 0.5
    assert await turns_after(pace) == 0
    with pace.work():
        clock.now += SLICE * 1.2
    assert ROUNDS <= await turns_after(pace) <= ROUNDS + 1
    assert await turns_after(pace) == 0
    with pace.work():
        clock.now += SLICE * 4
    assert 2 * ROUNDS <= await turns_after(pace) <= 4 * ROUNDS + 1, "and in proportion after very much"


async def test_others_get_more_turns_as_long_as_they_use_them_and_not_for_ever() -> None:
    async def left(seconds_a_turn: float, turns: int) -> float:
        """How many slices others had who use so much of the time in each of so many turns."""
        clock = Clock()
        pace = Pace(clock)
        with pace.work():
            clock.now += SLICE * 2
        begun = clock.now

        async def others() -> None:
            for _ in range(turns):
                clock.now += seconds_a_turn
                await asyncio.sleep(0)

        busy = asyncio.create_task(others())
        await pace.begin()
        busy.cancel()
        return (clock.now - begun) / SLICE

    most = LEFT / SLICE
    assert most - 0.1 < await left(SLICE / 50, 10_000) < most + 2.1, "as much as is left to them"
    assert 1.9 < await left(SLICE / 50, ROUNDS) < 2.1, "all they wanted"
    assert 0.4 < await left(SLICE / 200, 10_000) < 0.6, "what takes little does not hold up a stream"


async def test_what_takes_less_than_its_part_of_the_time_leaves_no_turns() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(100):
        with pace.work():
            clock.now += SLICE * 0.9
        clock.now += SLICE * 0.9 / FREE
        assert await turns_after(pace) == 0


async def test_while_unary_calls_come_streams_take_less_without_leaving_turns() -> None:
    clock = Clock()
    pace = Pace(clock)

    async def left_after(seconds: float) -> int:
        with pace.work():
            clock.now += SLICE * 0.9
        clock.now += seconds
        return await turns_after(pace)

    clock.now += LATELY * 2
    pace.came()
    assert [await left_after(SLICE * 0.9 / FREE_BESIDE_CALLS) for _ in range(5)] == [0] * 5
    pace.came()
    assert sum([await left_after(SLICE * 0.9 / FREE) for _ in range(5)]) >= 2 * ROUNDS
    clock.now += LATELY * 2
    assert [await left_after(SLICE * 0.9 / FREE) for _ in range(5)] == [0] * 5, "none came lately"


async def test_however_many_streams_there_are_they_share_the_slices_one_after_the_other() -> None:
    clock = Clock()
    pace = Pace(clock)
    order: list[int] = []
    with pace.work():
        clock.now += SLICE * 2

    async def stream(number: int) -> None:
        for _ in range(3):
            await pace.begin()
            with pace.work():
                clock.now += SLICE
            order.append(number)

    over = asyncio.Event()
    others = asyncio.create_task(turns_of_others(over))
    await asyncio.gather(*(stream(number) for number in range(5)))
    over.set()
    assert all(set(order[at : at + 10]) == set(range(5)) for at in range(6))
    assert await others >= 10 * ROUNDS, "no two slices without the turns between"


async def test_who_leaves_while_waiting_does_not_hold_up_the_others() -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.work():
        clock.now += SLICE
    first, second = asyncio.create_task(pace.begin()), asyncio.create_task(pace.begin())
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(10):
        await second


async def calls_let_in(pace: Pace, clock: Clock, every: int, many: int, seconds: float = 0.0) -> int:
    """Calls that came in before a shard went on: `many`, each so many turns of the loop and seconds after the last."""
    came = 0

    async def calls() -> None:
        nonlocal came
        while came < many:
            pace.came()
            came += 1
            clock.now += seconds
            for _ in range(every):
                await asyncio.sleep(0)

    coming = asyncio.create_task(calls())
    await asyncio.sleep(0)
    await pace.let_in()
    so_far = came
    await coming
    return so_far


async def test_calls_are_let_in_between_two_turns_as_long_as_they_come() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert await calls_let_in(pace, clock, BETWEEN - 1, 40) == 40
    assert await calls_let_in(pace, clock, 3 * BETWEEN, 40) == 1, "nobody is waited for who does not come"


async def test_a_shard_waits_for_no_calls_where_none_came_and_never_for_long() -> None:
    clock = Clock()
    pace = Pace(clock)
    over = asyncio.Event()
    others = asyncio.create_task(turns_of_others(over))
    await pace.let_in()
    over.set()
    assert await others == 0
    let_in = await calls_let_in(pace, clock, BETWEEN - 1, 1000, SLICE / 4)
    assert 2 <= let_in <= 10
