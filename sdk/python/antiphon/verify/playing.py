"""Plays cases on a stage and makes the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from antiphon.v1 import verify_pb2 as pb

from .._version import VERSION
from .cases import ALL, Case, Play
from .cases.case import first_line
from .digest import digest_of
from .stage import Unplayable, Wrong

GATES = ("hello", "schemas")
"""Cases without which no later one can be played."""
PASSED, FAILED, BROKEN = pb.VERIFY_OUTCOME_PASSED, pb.VERIFY_OUTCOME_FAILED, pb.VERIFY_OUTCOME_BROKEN


def chosen(names: Iterable[str]) -> tuple[Case, ...]:
    """The cases of these names in the order of `ALL`; all without names. Raises `KeyError` for one there is not."""
    wanted = set(names)
    if unknown := wanted - {case.name for case in ALL}:
        raise KeyError(min(unknown))
    return tuple(case for case in ALL if case.name in wanted) if wanted else ALL


async def verify(
    play: Play, cases: Sequence[Case], told: Callable[[pb.VerifiedCase], None] = lambda _: None
) -> pb.VerifyReport:
    """Play the cases; `told` hears of each that was played when it is over. The stage is closed when this returns."""
    report = pb.VerifyReport(seed=play.seed, complete=tuple(cases) == ALL, verifier_version=VERSION)
    report.start_time.FromDatetime(datetime.now(UTC))
    begun = time.monotonic()
    try:
        for case in cases:
            if shut := shut_gate(report.cases):
                seen = f"{shut} did not pass"
                report.cases.append(_result(case, BROKEN, expected="the case can be played", seen=seen))
                continue
            done = await _played(play, case)
            report.cases.append(done)
            told(done)
    finally:
        await play.stage.close()
    report.duration.FromTimedelta(timedelta(seconds=time.monotonic() - begun))
    if play.stage.hello is not None:
        description = play.stage.hello.hello.description
        report.agent, report.version, report.runtime = description.name, description.version, description.runtime
        report.capabilities_digest = digest_of(description)
    return report


def shut_gate(cases: Iterable[pb.VerifiedCase]) -> str:
    """Name of the case that did not pass and without which those after it are not played; empty when there is none."""
    return next((one.name for one in cases if one.name in GATES and one.outcome != PASSED), "")


def passed(report: pb.VerifyReport) -> bool:
    """Whether each case that was played passed."""
    return bool(report.cases) and all(case.outcome == PASSED for case in report.cases)


async def _played(play: Play, case: Case) -> pb.VerifiedCase:
    stage = play.stage
    begun = time.monotonic()
    stage.case = case.name
    try:
        if stage.hello is None and case.name != GATES[0]:
            await stage.line()  # chosen without it, every case begins with a hello
        if case.fresh:
            await stage.stop()
        await case.play(play)
        done = _result(case, PASSED)
    except Wrong as wrong:
        done = _result(case, FAILED, expected=wrong.expected, seen=wrong.seen, contract=wrong.contract)
    except Unplayable as error:
        done = _result(case, BROKEN, expected="the case can be played", seen=str(error))
    except Exception as error:  # a bug of the verifier says nothing about the agent, least of all that it is good
        seen = f"a bug of the verifier: {type(error).__name__}: {first_line(error)}"
        done = _result(case, BROKEN, expected="the case can be played", seen=seen)
    if case.fresh or done.outcome != PASSED:
        await stage.stop()
    done.duration.FromTimedelta(timedelta(seconds=time.monotonic() - begun))
    return done


def _result(
    case: Case, outcome: pb.VerifyOutcome.ValueType, *, expected: str = "", seen: str = "", contract: str = ""
) -> pb.VerifiedCase:
    return pb.VerifiedCase(
        name=case.name,
        meaning=case.meaning,
        outcome=outcome,
        expected=expected[:2_048],
        seen=seen[:8_192],
        contract=contract[:256],
    )
