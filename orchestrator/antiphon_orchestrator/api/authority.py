"""The authority as its folder has it now: what an operator puts there is taken up without a restart.

So a renewed intermediate, or a step of a rotation (antiphon_certs.succession), needs nothing but its files on every
orchestrator. Half of it is not taken, and neither is an authority whose root nobody here trusts yet: that would cut
everybody off at once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from antiphon_certs import Authority, AuthorityError, Clock

from antiphon_orchestrator import telemetry

LOOK = timedelta(seconds=2)
_FILES = ("intermediate.key", "intermediate.pem", "bundle.pem")


class LiveAuthority:
    """`current` is the one to issue with; `changed` is told of another. `run` follows the folder."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Raises `AuthorityError`."""
        self._folder = folder
        self._clock = clock
        self._seen = self._mark()
        self._problem = ""
        self._log = telemetry.logger("authority")
        self.current = Authority.load(folder)
        self.changed: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Looks at the folder for ever; cancel to stop."""
        while True:
            await self._clock.sleep(LOOK)
            self.look()

    def look(self) -> None:
        """Takes up what is in the folder, if it is new and whole."""
        mark = self._mark()
        if mark == self._seen:
            return
        try:
            found = Authority.load(self._folder)
            if found.trust_domain != self.current.trust_domain or found.root_pem.strip() not in self.current.bundle_pem:
                raise AuthorityError(
                    "its root is not trusted here yet, so its certificates would be refused; "
                    "begin with: antiphon certs rotate prepare"
                )
        except AuthorityError as error:
            if str(error) != self._problem:  # it may be between two files of a copy
                self._problem = str(error)
                self._log.warning("authority_not_taken_up", cause=self._problem)
            return
        self._seen, self._problem, self.current = mark, "", found
        self._log.info("authority_changed", fingerprint=found.root_fingerprint, expire_time=found.not_after)
        self.changed()

    def _mark(self) -> list[tuple[int, int, int] | None]:
        return [_mark(self._folder / name) for name in _FILES]


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What differs once a file has been replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
