"""Percentiles of measured durations."""

from __future__ import annotations

from collections.abc import Iterable


def percentile_ms(seconds: Iterable[float], share: float) -> float:
    """The duration in milliseconds that this share (0 to 1) of the samples does not exceed."""
    ordered = sorted(seconds)
    if not ordered:
        raise ValueError("no samples")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3
