"""W3C trace context, as far as it is passed on: an id to find one piece of work by, everywhere it went."""

from __future__ import annotations

import random

from ._context import current_task


def traceparent() -> str:
    """The traceparent of the task this code runs for, or a new one."""
    task = current_task()
    if task is not None and task.traceparent:
        return task.traceparent
    # Not secret, so the cheap source of randomness will do; an id of zeros would be invalid.
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-01"
