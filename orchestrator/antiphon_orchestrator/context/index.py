"""What the store holds of shared context, in memory: sizes for quotas, times for collection. Pure.

It is told of every change, by who makes one and by the watch that follows all of them, in any order and more than once:
of two words about a key the one of the higher revision counts. It only ever decides *when* to try something; whether
that is so the transaction compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from ..store import keys as store_keys

_OF_RUN = b"/run:"
"""In the key of an entry: no name of an entry has a colon."""


class Known(NamedTuple):
    """One key: revision of its last change, its bytes with the key, and when it ends (microseconds, 0: never).

    `create_time` is that of an entry. Of a claim whose holder is an attempt, `attempt_id` says which, `incarnation` is
    that of the sidecar it is out to, and `fence` the revision that gave the claim.
    """

    revision: int
    size: int
    expire_time: int
    create_time: int = 0
    attempt_id: str = ""
    incarnation: str = ""
    fence: int = 0


class Index:
    """Keys of one kind, by namespace (the first part after the kind)."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self._counts: dict[bytes, tuple[int, int]] = {}
        self._due: list[tuple[int, bytes, int]] = []

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes) -> Known | None:
        return self._known.get(key)

    def put(self, key: bytes, known: Known) -> None:
        """The key was written."""
        before = self._known.get(key)
        if before is not None and before.revision >= known.revision:
            return
        self._known[key] = known
        self._add(key, 0 if before else 1, known.size - (before.size if before else 0))
        if known.expire_time:
            self._note_end(key, known)

    def delete(self, key: bytes, revision: int) -> None:
        """The key was deleted in that revision."""
        before = self._known.get(key)
        if before is not None and before.revision < revision:
            del self._known[key]
            self._add(key, -1, -before.size)

    def keys(self) -> set[bytes]:
        """All of them."""
        return set(self._known)

    def usage(self, namespace: bytes) -> tuple[int, int]:
        """Keys and bytes of a namespace, with what is reserved."""
        return self._counts.get(namespace, (0, 0))

    @contextmanager
    def reserved(self, key: bytes, size: int) -> Iterator[None]:
        """Counts a write that is under way, so that several at once cannot exceed together what each alone does not."""
        before = self._known.get(key)
        count, more = (0, size - before.size) if before else (1, size)
        self._add(key, count, more)
        try:
            yield
        finally:
            self._add(key, -count, -more)

    def due(self, now: int, most: int) -> list[tuple[bytes, Known]]:
        """At most `most` keys that have ended, soonest first; each is told once (see `again_unless_done`)."""
        found: list[tuple[bytes, Known]] = []
        while self._due and self._due[0][0] <= now and len(found) < most:
            _, key, revision = heappop(self._due)
            if self._stands(key, revision):
                found.append((key, self._known[key]))
        return found

    def oldest(self, most: int) -> list[tuple[bytes, Known]]:
        """The keys that end soonest, when there are more than `most`, until so many are left; each is told once."""
        found: list[tuple[bytes, Known]] = []
        while self._due and len(self._known) - len(found) > most:
            _, key, revision = heappop(self._due)
            if self._stands(key, revision):
                found.append((key, self._known[key]))
        return found

    def of_attempts(self) -> list[tuple[bytes, str]]:
        """The claims that attempts hold, and which attempts."""
        return [(key, known.attempt_id) for key, known in self._known.items() if known.attempt_id]

    def of_runs(self) -> dict[str, list[tuple[bytes, Known]]]:
        """The entries in scopes of runs, by run."""
        found: dict[str, list[tuple[bytes, Known]]] = {}
        for key, known in self._known.items():
            if _OF_RUN in key:
                run_id = store_keys.parts(key)[2].removeprefix("run:")
                found.setdefault(run_id, []).append((key, known))
        return found

    @contextmanager
    def again_unless_done(self, told: list[tuple[bytes, Known]]) -> Iterator[None]:
        """Whoever deals with what was told is told of it again when it fails half-way."""
        try:
            yield
        except BaseException:
            for key, known in told:
                self._note_end(key, known)
            raise

    def _note_end(self, key: bytes, known: Known) -> None:
        """Tell of it when it has ended."""
        heappush(self._due, (known.expire_time, key, known.revision))
        if len(self._due) > 2 * len(self._known) + 64:  # keys that are written again and again leave what is void
            self._due = [(time, key, revision) for time, key, revision in self._due if self._stands(key, revision)]
            heapify(self._due)

    def _stands(self, key: bytes, revision: int) -> bool:
        known = self._known.get(key)
        return known is not None and known.revision == revision

    def _add(self, key: bytes, count: int, size: int) -> None:
        namespace = namespace_of(key)
        keys, total = self._counts.get(namespace, (0, 0))
        if keys + count or total + size:
            self._counts[namespace] = (keys + count, total + size)
        else:
            self._counts.pop(namespace, None)


def namespace_of(key: bytes) -> bytes:
    """The namespace in a key, as it is spelled there."""
    return key.split(b"/", 2)[1]
