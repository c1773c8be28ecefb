"""What the expressions of a run's graph may see of it; the two classes implement engine.plan.View."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .events import Found
from .states import TaskState

if TYPE_CHECKING:
    from .run import Run, Task


class RunView:
    """The run as it is."""

    __slots__ = ("_found", "_run")

    def __init__(self, run: Run, found: tuple[Found, ...] | None) -> None:
        self._run = run
        self._found = found

    @property
    def input(self) -> bytes:
        return self._run.submitted.input

    @property
    def kept(self) -> dict[int, object]:
        if self._run.kept is None:
            self._run.kept = {}
        return self._run.kept

    def output(self, task: int) -> bytes | list[bytes] | None:
        node = self._run.tasks[task]
        if node.plan.fan_out:
            if node.state is not TaskState.SUCCEEDED:
                return None
            if node.plan.most_iterations or node.plan.agree:
                return chosen(node).output
            return [m.output or b"" for m in node.members]
        return node.output

    def state(self, task: int) -> str:
        return self._run.tasks[task].state.name

    def failure(self, task: int) -> tuple[str, str] | None:
        failure = self._run.tasks[task].failure
        return (failure.kind.name, failure.message) if failure else None

    def entry(self, scope: str, key: str) -> bytes | None:
        for found in self._found or ():
            if found.scope == scope and found.key == key:
                return found.value
        return None


class ReleasedView(RunView):
    """The same with outputs as the run's principal may have them."""

    __slots__ = ()

    def output(self, task: int) -> bytes | list[bytes] | None:
        node = self._run.tasks[task]
        if node.plan.fan_out:
            if node.state is not TaskState.SUCCEEDED:
                return None
            if node.plan.most_iterations or node.plan.agree:
                return _released(chosen(node))
            return [_released(m) or b"" for m in node.members]
        return _released(node)


def chosen(node: Task) -> Task:
    """Whose output is that of a loop, quorum or hedge that has succeeded: the last member's, or the one that was agreed
    on; its own when a person gave it."""
    return node if node.output is not None else node.members[node.answer - 1]


def _released(task: Task) -> bytes | None:
    return task.output if task.released is None else task.released
