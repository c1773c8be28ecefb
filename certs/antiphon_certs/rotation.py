"""Keeping a credential fresh: pure decisions about time, and one loop that acts on them.

The loop serves both kinds of source alike. It looks at the source at least every few seconds; if the content changed,
it tells; if the credential is due, it asks `renew` to bring about new content. What it must never do: hold on to a
broken new credential, drop a good old one, or stop because a renewal failed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from .credentials import Credential, Source
from .errors import CertsError, CredentialError

POLL = timedelta(seconds=10)
"""How stale our view of a source may be, and the longest pause between two attempts to renew. Looking this often also
bounds the harm of a suspended machine or of a clock that is set."""
_RETRY_FIRST = timedelta(seconds=1)
_SPREAD = 0.1

Renew = Callable[[Credential], Awaitable[None]]
"""Obtain a successor and store it in the source. It brings its own deadline, and raises a `CertsError` (`RenewalError`)
or an `OSError` when it did not work out this time; any other exception is a bug and ends the loop."""


class Clock(Protocol):
    """Wall clock time, as certificates mean it, and sleeping."""

    def now(self) -> datetime:
        """The present, aware."""
        ...

    async def sleep(self, duration: timedelta) -> None:
        """Return after `duration`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The present in UTC."""
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(duration.total_seconds())


def renew_at(not_before: datetime, not_after: datetime, jitter: float) -> datetime:
    """When to renew: at half the lifetime, less `jitter` (in [0, 1)) of a tenth, to spread those who joined at once."""
    return not_before + (not_after - not_before) * (0.5 - _SPREAD * jitter)


def is_due(credential: Credential, now: datetime, jitter: float) -> bool:
    """Whether it is time to renew."""
    return now >= renew_at(credential.not_before, credential.not_after, jitter)


def retry_after(failures: int, jitter: float) -> timedelta:
    """The pause after that many failures in a row: 1 s, doubling up to `POLL`, the upper half of it at random."""
    longest = min(_RETRY_FIRST * (1 << min(failures, 16)), POLL)
    return longest * (0.5 + 0.5 * jitter)


async def run(
    source: Source,
    renew: Renew | None,
    clock: Clock,
    *,
    changed: Callable[[Credential], None],
    delayed: Callable[[Exception], None],
    jitter: Callable[[], float] = random.random,
) -> None:
    """Watch `source` for ever; cancel to stop. Raises `CredentialError` when there is nothing to start from.

    `changed` gets every new credential after the first; `delayed` gets every error for which there is none yet, for the
    log. Without `renew`, something else writes the source.
    """
    current = source.load()
    spread, failures = jitter(), 0
    while True:
        pause = POLL
        if renew and is_due(current, clock.now(), spread):
            try:
                await renew(current)
                failures = 0
            except (CertsError, OSError) as error:
                failures += 1
                delayed(error)
            # After success too: a renewal that yields nothing fresher must not be asked for again without a pause.
            pause = retry_after(failures, jitter())
        try:
            latest = source.load()
        except CredentialError as error:
            delayed(error)
        else:
            if latest != current:
                current, spread = latest, jitter()
                changed(latest)
        until_due = renew_at(current.not_before, current.not_after, spread) - clock.now()
        if renew and timedelta(0) < until_due < pause:
            pause = until_due
        await clock.sleep(pause)
