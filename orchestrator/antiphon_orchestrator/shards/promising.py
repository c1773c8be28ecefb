"""What large fan-outs will still write: a submission of a few kilobytes may stand for a hundred thousand tasks."""

from __future__ import annotations

from ..engine.run import Run, Task

LARGE = 1_000
"""Members from which on a fan-out counts; smaller ones are seen when they have happened."""

MEMBER_BYTES = 1_000
"""What a member adds to the log, as a rule: 400 bytes, and its input and output twice over."""


class Promises:
    """The large fan-outs of a shard that are under way."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[str, int], Task] = {}

    def add(self, run: Run, node: Task) -> None:
        """A fan-out whose members are known."""
        if node.member_count >= LARGE:
            self._nodes[run.run_id, node.plan.index] = node

    def size(self) -> int:
        """Bytes to come, about."""
        for key, node in list(self._nodes.items()):
            if node.ended:
                del self._nodes[key]
        return sum(
            (node.member_count - len(node.members) + node.members_open) * MEMBER_BYTES for node in self._nodes.values()
        )
