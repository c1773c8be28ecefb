"""Does it keep to the stream: time, cancels, duplicates, what it does not know, and more than it can take at once?"""

from __future__ import annotations

import asyncio
from typing import cast

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2

from ..ledger import with_unknown_fields
from ..stage import Wrong
from .case import SERVICE, Case, Play, told

_CANCEL = f"{SERVICE}: AttemptCancel"
_STOPPED = (failure_pb2.FAILURE_KIND_CANCELLED, failure_pb2.FAILURE_KIND_TIMEOUT)
_HELD = 0.3  # seconds for which what the agent says is left lying


async def deadline(play: Play) -> None:
    """Time that is over before anything can be done, and the cancel that follows."""
    stage = play.stage
    line = await stage.line()
    made = [stage.assignment(one.name, data, seconds=0.001) for one, data in play.one_of_each(8)][: stage.credit]
    for one in made:
        stage.attempt(one).cancelled = True  # it may give up by itself
    line.send(pb.WorkResponse(assignments=made))
    cancels = [pb.AttemptCancel(attempt_id=one.attempt_id, reason="deadline") for one in made]
    line.send(pb.WorkResponse(cancels=cancels))
    await stage.outcomes(made, f"{SERVICE}: Assignment.remaining_timeout")


async def no_deadline(play: Play) -> None:
    """No timeout is no limit, not none left."""
    stage = play.stage
    line = await stage.line()
    contract = f"{SERVICE}: Assignment.remaining_timeout"
    for offered in play.offered:
        (data,) = play.valid(offered)
        made = [stage.assignment(offered.name, data), stage.assignment(offered.name, data, seconds=None)]
        limited, unlimited = await stage.play(line, made, contract)
        if limited.WhichOneof("outcome") != "failure" and unlimited.WhichOneof("outcome") == "failure":
            seen = f"{told(unlimited)} without a timeout, and success with one"
            raise Wrong(f"{offered.name} works when it is given no timeout", seen, contract)


async def cancel(play: Play) -> None:
    """Cancels: right behind the work, of work that is over, of work that never was, and none at all."""
    stage = play.stage
    line = await stage.line()
    pairs = play.one_of_each(min(stage.credit, 16))
    made = [stage.assignment(offered.name, data) for offered, data in pairs]
    stopped = made[::2] if len(made) > 1 else made
    for one in stopped:
        stage.attempt(one).cancelled = True
    cancels = [pb.AttemptCancel(attempt_id=one.attempt_id, reason="cancelled") for one in stopped]
    line.send(pb.WorkResponse(assignments=made, cancels=cancels))
    await stage.outcomes(made, _CANCEL)
    for one in stopped:
        result = stage.attempt(one).results[0]
        if result.WhichOneof("outcome") == "failure" and result.failure.kind in (
            failure_pb2.FAILURE_KIND_TRANSIENT,
            failure_pb2.FAILURE_KIND_UNSPECIFIED,
        ):
            raise Wrong("CANCELLED for what was cancelled, or the outcome if it was quicker", told(result), _CANCEL)
    line.send(pb.WorkResponse(cancels=[*cancels, pb.AttemptCancel(attempt_id="verify/never-was/0/1", reason="x")]))
    await _goes_on(play, line, "it goes on after a cancel of what it does not have", _CANCEL)


async def duplicate_offer(play: Play) -> None:
    """The same attempt twice; and the next attempt of the same task, which is another one."""
    stage = play.stage
    line = await stage.line()
    contract = f"{SERVICE}: Assignment.attempt_id, Work"
    for offered in play.offered:
        (data,) = play.valid(offered)
        one = stage.assignment(offered.name, data, own_count=True)
        line.send(pb.WorkResponse(assignments=[one, one]))
        await stage.outcomes([one], contract)
        second = stage.assignment(offered.name, data, attempt_id=f"{one.idempotency_key}/2", number=2, own_count=True)
        line.send(pb.WorkResponse(assignments=[second]))
        await stage.outcomes([second], contract)
        await _goes_on(play, line, "it goes on after a duplicate", contract)
        await asyncio.sleep(_HELD / 3)  # for a second outcome that follows on the heels of the first
        if (count := len(stage.attempt(one).results)) != 1:
            seen = f"{count} outcomes of one attempt of {offered.name} that was assigned twice"
            raise Wrong("one outcome of an attempt, however often it is assigned", seen, contract)


async def unknown_fields(play: Play) -> None:
    """What a newer sidecar may say."""
    stage = play.stage
    line = await stage.line()
    contract = "docs/architecture: unknown fields survive (version skew of one minor)"
    line.send(cast(pb.WorkResponse, with_unknown_fields(pb.WorkResponse())))
    made = []
    for offered in play.offered:
        (data,) = play.valid(offered)
        plain, newer = stage.assignment(offered.name, data), stage.assignment(offered.name, data)
        with_unknown_fields(newer.input)
        with_unknown_fields(newer)
        line.send(cast(pb.WorkResponse, with_unknown_fields(pb.WorkResponse(assignments=[plain, newer]))))
        made.append((offered, plain, newer))
        await stage.outcomes([plain, newer], contract)
    for offered, plain, newer in made:
        outcomes = [stage.attempt(one).results[0] for one in (plain, newer)]
        if outcomes[0].WhichOneof("outcome") != "failure" and outcomes[1].WhichOneof("outcome") == "failure":
            seen = f"{told(outcomes[1])} of {offered.name} with fields it does not know, success without"
            raise Wrong("fields that it does not know are passed over", seen, contract)


async def back_pressure(play: Play) -> None:
    """As many attempts as it has room for, several times over."""
    stage = play.stage
    line = await stage.line()
    contract = "protos/antiphon/v1/registry.proto: AgentDescription.concurrency, prefetch"
    pairs = play.one_of_each(min(4 * stage.credit, 256))
    await stage.play(line, [stage.assignment(offered.name, data) for offered, data in pairs], contract)


async def slow_consumer(play: Play) -> None:
    """A sidecar that does not take what the agent says for a while."""
    stage = play.stage
    line = await stage.line()
    contract = f"{SERVICE}: Work"
    made = [stage.assignment(offered.name, data) for offered, data in play.one_of_each(stage.credit)]
    line.reading.clear()
    try:
        line.send(pb.WorkResponse(assignments=made))
        await asyncio.sleep(_HELD)
    finally:
        line.reading.set()
    await stage.outcomes(made, contract)
    await _goes_on(play, line, "it goes on after a pause of its sidecar", contract)


async def _goes_on(play: Play, line: object, expected: str, contract: str) -> None:
    """The stream is still there, and work is still done."""
    stage = play.stage
    current = await stage.line()
    if current is not line:
        raise Wrong(expected, f"it opened another stream; {stage.state()}", contract)
    (data,) = play.valid(play.offered[0])
    await stage.play(current, [stage.assignment(play.offered[0].name, data)], contract)


CASES = (
    Case("deadline", "It gives an outcome when its time is over before it began.", deadline),
    Case("no-deadline", "It works when it is given no timeout.", no_deadline),
    Case(
        "cancel", "It gives one outcome of what is cancelled, and passes over cancels of what it does not have.", cancel
    ),
    Case("duplicate-offer", "It works an attempt once, however often it is assigned.", duplicate_offer),
    Case("unknown-fields", "It passes over fields of a newer contract.", unknown_fields),
    Case("back-pressure", "It takes as much at once as it says it has room for, again and again.", back_pressure),
    Case("slow-consumer", "It loses nothing when its sidecar does not listen for a while.", slow_consumer),
)
