"""The cases of `antiphon verify`, in the order in which they are played.

Those of `begin` say whether anything can be played at all, those of `work` and `stream` share one process while all
goes well, those of `life` end it, and those of `watched` judge what the agent did during all the others.
"""

from __future__ import annotations

from . import begin, life, stream, watched, work
from .case import Case, Play

ALL: tuple[Case, ...] = (*begin.CASES, *work.CASES, *stream.CASES, *life.CASES, *watched.CASES)
"""Every case; names are unique."""

__all__ = ["ALL", "Case", "Play"]
