"""What the demo may claim about its crashes, worked out from what was seen: pure functions.

Seen are the events of the run, up to the crash known to be committed, and the journal in which the programs themselves
note each piece of work when they begin it. A task whose program died before its outcome was accepted runs again, and
must; a task that had succeeded must not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass

Key = tuple[str, int]
"""Task id and member; 0 for a task that does not fan out."""
Work = tuple[str, str]
"""Name of a capability and the subject it is applied to."""


@dataclass(frozen=True, slots=True)
class Journal:
    """What the programs have noted."""

    begun: Counter[Work]
    pids: Mapping[str, int]
    """The process that began work last, by capability."""
    received: Mapping[str, frozenset[str]]
    """Names of the fields that it was ever sent, by capability; only of programs that note them."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of finished work after the crash."""

    finished_before: int
    """Tasks that had succeeded when the processes were killed."""
    ran_again: tuple[str, ...]
    """Those among them that a program began again; the claim is that there are none."""
    begun: int
    """Pieces of work begun in all."""
    repeated: int
    """Pieces of work begun more than once: in the hands of the process that died."""


def read_journal(text: str) -> Journal:
    """The journal; a last line that is still being written is left out."""
    begun: Counter[Work] = Counter()
    pids: dict[str, int] = {}
    received: dict[str, frozenset[str]] = {}
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            capability, subject, pid, *fields = line.rstrip("\n").split("\t")
            begun[capability, subject] += 1
            pids[capability] = int(pid)
            for names in fields:
                received[capability] = received.get(capability, frozenset()) | frozenset(names.split(","))
    return Journal(begun, pids, received)


def prove(finished: Set[Key], works: Mapping[Key, Work], before: Counter[Work], after: Counter[Work]) -> Proof:
    """Compare the journal at the crash with the one at the end. `works`: what each task applies to what."""
    again = sorted(work for key in finished if after[work := works[key]] != before[work])
    return Proof(
        finished_before=len(finished),
        ran_again=tuple(f"{capability} of {subject}" for capability, subject in again),
        begun=after.total(),
        repeated=sum(1 for count in after.values() if count > 1),
    )
