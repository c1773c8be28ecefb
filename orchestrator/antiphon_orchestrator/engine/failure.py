"""Why work did not succeed. Mirrors antiphon.v1.Failure; numbers are the wire's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class FailureKind(IntEnum):
    """Decides which retry rule applies; numbers as in antiphon.v1.FailureKind."""

    TRANSIENT = 1
    PERMANENT = 2
    TIMEOUT = 3
    POLICY = 4
    CANCELLED = 5
    LOST = 6
    INVALID_INPUT = 7
    INVALID_OUTPUT = 8
    NO_AGENT = 9
    BUDGET = 10
    NO_QUORUM = 11


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure; see the proto for the meaning of each field."""

    kind: FailureKind
    message: str
    code: str = ""
    retryable: bool = True
    cause: str = ""
    field: str = ""

    def of(self, part: str) -> Failure:
        """The same, as the whole tells it whose part has failed."""
        return Failure(self.kind, f"{part}: {self.message}", self.code, self.retryable, self.cause, self.field)
