"""Does it live with its sidecar: streams that break, sidecars that come late or go, drain, SIGTERM?"""

from __future__ import annotations

import asyncio

from antiphon.v1 import agent_service_pb2 as pb

from ..digest import digest_of
from ..line import Line
from ..stage import Wrong
from .case import SERVICE, Case, Play

_WORK = f"{SERVICE}: Work"
_LATE, _LATEST = 0.5, 10.0  # seconds by which the sidecar is late, at least and at most
_STOP = 5.0
"""Seconds that a sidecar gives a program between SIGTERM and SIGKILL (sidecar/antiphon_sidecar/supervise.py)."""


async def reattach(play: Play) -> None:
    """The stream breaks with work on it, then the sidecar is gone and comes back."""
    stage = play.stage
    line = await stage.line()
    digest = digest_of(stage.description)
    line = await _assigned_again(play, line, sidecar_goes=False)
    line = await _assigned_again(play, line, sidecar_goes=True)
    if digest_of(line.hello.description) != digest:
        raise Wrong("the same announcement on each stream", "other capabilities than on the first", _WORK)
    made = [stage.assignment(offered.name, data) for offered, data in play.one_of_each(min(stage.credit, 8))]
    await stage.play(line, made, _WORK)


async def _assigned_again(play: Play, line: Line, *, sidecar_goes: bool) -> Line:
    """Break the stream, wait for the next, and assign there what had no outcome, as a sidecar does."""
    stage = play.stage
    made = [
        stage.assignment(offered.name, data, own_count=True) for offered, data in play.one_of_each(min(stage.credit, 8))
    ]
    before = len(stage.socket.lines)
    line.reading.clear()  # so that some of it has no outcome yet
    line.send(pb.WorkResponse(assignments=made))
    if sidecar_goes:
        await stage.socket.close()
        await stage.socket.open()
    else:
        line.tear()
    line.reading.set()
    next_line = await stage.next_line(before)
    if next_line is None:
        seen = f"there was none {stage.within(stage.patience)}; {stage.state()}"
        what = "a sidecar that went and came back" if sidecar_goes else "a stream that broke"
        raise Wrong(f"another stream, with hello, of the same process after {what}", seen, _WORK)
    again = [one for one in made if not stage.attempt(one).results]
    next_line.send(pb.WorkResponse(assignments=again))
    await stage.outcomes(made, f"{SERVICE}: Work (assignments that were not answered come again)")
    return next_line


async def late_sidecar(play: Play) -> None:
    """The program is started before its socket is there."""
    stage = play.stage
    await stage.start(late=True)
    # Later than the program takes to dial, or nothing would be shown.
    await asyncio.sleep(min(max(_LATE, 3 * stage.start_up), _LATEST))
    if stage.process.code is None:
        await stage.socket.open()
    if await stage.next_line(0) is None:
        seen = f"no hello {stage.within(stage.patience)}; {stage.state()}"
        raise Wrong("it dials until its sidecar is there", seen, "docs/concepts.md: no start order matters")


async def drain(play: Play) -> None:
    """The sidecar takes itself out of work."""
    stage = play.stage
    line = await stage.line()
    contract = f"{SERVICE}: WorkResponse.drain"
    made = [stage.assignment(offered.name, data) for offered, data in play.one_of_each(min(stage.credit, 16))]
    line.send(pb.WorkResponse(assignments=made))
    line.send(pb.WorkResponse(drain=True))
    await stage.outcomes(made, f"{contract}: finish")
    await stage.until(lambda: line.closed, "its side of the stream closed after drain, with nothing left", contract)


async def terminate(play: Play) -> None:
    """SIGTERM, with work on the stream."""
    stage = play.stage
    line = await stage.line()
    contract = f"sidecar/antiphon_sidecar/supervise.py: STOP_TIMEOUT, {_STOP:g} s; {SERVICE}: WorkRequest.drain"
    made = [
        stage.assignment(offered.name, data, own_count=True) for offered, data in play.one_of_each(min(stage.credit, 8))
    ]
    line.send(pb.WorkResponse(assignments=made))
    stage.process.terminate()
    try:
        async with asyncio.timeout(_STOP):
            ended = asyncio.ensure_future(stage.process.ended())
            while not ended.done():
                await asyncio.wait((ended,), timeout=0.02)
                if line.said_drain and not any(not stage.attempt(one).results for one in made):
                    line.end()  # as a sidecar does when nothing is left
    except TimeoutError:
        raise Wrong(f"it ends within {_STOP:g} s of SIGTERM", stage.state(), contract) from None
    left = [one for one in made if not stage.attempt(one).results]
    if line.said_drain and left:
        seen = f"it said drain, and ended with {len(left)} of {len(made)} attempts unanswered"
        raise Wrong("what was assigned is finished when it drains", seen, contract)


CASES = (
    Case("reattach", "It dials again when its stream or its sidecar is gone, and answers what comes again.", reattach),
    Case("late-sidecar", "It may be started before its sidecar.", late_sidecar, fresh=True),
    Case("drain", "Told to drain, it finishes what it has and closes its side.", drain, fresh=True),
    Case(
        "terminate",
        "It ends soon after SIGTERM, and finishes its work first if it says it drains.",
        terminate,
        fresh=True,
    ),
)
