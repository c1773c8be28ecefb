"""Waiting for a state that another process brings about: by looking often, with a limit, as users' tests do."""

from __future__ import annotations

from antiphon.testing._waiting import LIMIT, eventually

__all__ = ["LIMIT", "eventually"]
