"""What a sidecar says to a replica goes at once when that is little, and together under load."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon_sidecar.writing import keep_writing


class Line:
    """A stream whose reports are numbers; a gap ends when the test says so."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.written: list[list[str]] = []
        self.wake = asyncio.Event()
        self.gaps: deque[asyncio.Future[None]] = deque()

    def say(self, *reports: str) -> None:
        self.waiting.extend(reports)
        self.wake.set()

    def take(self) -> mesh.AttachRequest | None:
        request = mesh.AttachRequest()
        while self.waiting and len(request.reports) < 256:
            request.reports.add(attempt_id=self.waiting.popleft())
        return request if request.reports else None

    async def write(self, request: mesh.AttachRequest) -> None:
        self.written.append([report.attempt_id for report in request.reports])

    def gap(self) -> asyncio.Future[None]:
        self.gaps.append(asyncio.get_running_loop().create_future())
        return self.gaps[-1]

    async def settled(self) -> None:
        """Lets the writer do whatever it can do without a gap ending."""
        for _ in range(10):
            await asyncio.sleep(0)


@asynccontextmanager
async def line() -> AsyncIterator[Line]:
    one = Line()
    writer = asyncio.create_task(keep_writing(one.write, one.take, one.wake, one.gap))
    try:
        yield one
    finally:
        writer.cancel()
        await asyncio.wait([writer])


SOME = ["1", "2", "3", "4"]


async def test_after_several_reports_those_of_the_gap_go_together() -> None:
    async with line() as one:
        one.say(*SOME)
        await one.settled()
        assert one.written == [SOME]
        one.say("5")
        await one.settled()
        one.say("6")
        await one.settled()
        assert one.written == [SOME]
        one.gaps.popleft().set_result(None)
        await one.settled()
        assert one.written == [SOME, ["5", "6"]]


async def test_after_a_gap_in_which_nothing_came_the_next_report_goes_at_once() -> None:
    async with line() as one:
        one.say(*SOME)
        await one.settled()
        one.gaps.popleft().set_result(None)
        await one.settled()
        one.say("5")
        await one.settled()
        assert one.written == [SOME, ["5"]]


async def test_the_steps_of_a_chain_never_wait_for_each_other() -> None:
    async with line() as one:
        for step in SOME:
            one.say(step)
            await one.settled()
        assert one.written == [[step] for step in SOME]
        assert not one.gaps


async def test_after_a_full_message_there_is_no_gap() -> None:
    async with line() as one:
        one.say(*map(str, range(600)))
        await one.settled()
        assert [len(reports) for reports in one.written] == [256, 256, 88]
        assert len(one.gaps) == 1
