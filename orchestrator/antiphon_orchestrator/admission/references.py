"""What the references of an expression may name: tasks of the graph, the run's input, entries of shared context, and
what exists only at some places: the item of a fan-out, the iteration of a loop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .expression import Problem
from .mistakes import Code, did_you_mean
from .paths import path_text
from .syntax import Path

NOWHERE: frozenset[str] = frozenset()
MEMBER = frozenset({"item", "index"})
ITERATION = frozenset({"iteration", "previous"})
CONDITION = frozenset({"iteration", "output"})
ANSWERS = frozenset({"output", "other"})
"""Names that exist at some places only: the input of a for_each, that of a loop, the condition of a loop, and that of a
quorum."""

_WHERE = {
    "item": "in the input of a task with for_each",
    "index": "in the input of a task with for_each",
    "iteration": "in the input and in the condition of a loop (until)",
    "previous": "in the input of a loop (until)",
    "output": "in the conditions of a loop (until) and a quorum; elsewhere write tasks.ID.output",
    "other": "in the condition of a quorum",
}
_TASK_FIELDS = ("output", "state", "failure")
_SCOPES = ("namespace", "graph", "run")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")  # as in context_service.proto
# Keywords beside which `properties` and `additionalProperties` no longer say everything about an object's fields.
_OPEN = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas")


@dataclass(frozen=True, slots=True)
class Names:
    """What is known in a graph: its tasks with whether each is a fan-out, and the schema of its input, if any."""

    tasks: Mapping[str, bool]
    input_schema: object

    def check(self, path: Path, local: frozenset[str]) -> Problem | None:
        """What is wrong with a path; `local` are the names that exist only where it stands, as MEMBER."""
        if path[0] in _WHERE:
            if path[0] in local:
                return None
            return Problem(Code.UNKNOWN_REFERENCE, f"{path[0]} exists only {_WHERE[path[0]]}")
        if path[0] == "input":
            return self._check_input(path)
        if path[0] == "context":
            return _check_context(path)
        return self._check_task(path)

    def _check_task(self, path: Path) -> Problem | None:
        if len(path) == 1:
            message = "tasks can be used only as tasks.ID.output, .state or .failure: a task is named, not looked up"
            return Problem(Code.EXPRESSION, message)
        id = path[1]
        if id not in self.tasks:
            return Problem(Code.UNKNOWN_REFERENCE, unknown_task(id, self.tasks))
        if len(path) == 2:
            return Problem(Code.EXPRESSION, f"tasks.{id} is no value; write tasks.{id}.output, .state or .failure")
        if path[2] not in _TASK_FIELDS:
            hint = did_you_mean(path[2], _TASK_FIELDS) or f"; write tasks.{id}.output.{path[2]}"
            return Problem(Code.UNKNOWN_REFERENCE, f"a task has no {path[2]!r}{hint}")
        if path[2] == "output" and self.tasks[id] and len(path) > 3:
            message = f"tasks.{id}.output is a list, because {id} has for_each; it has no field {path[3]!r}"
            return Problem(Code.TYPE, message)
        if path[2] == "state" and len(path) > 3:
            return Problem(Code.TYPE, f"tasks.{id}.state is a string; it has no field {path[3]!r}")
        return None

    def _check_input(self, path: Path) -> Problem | None:
        """Follows the input's schema as long as it lists all fields of an object."""
        schema = self.input_schema
        for place in range(1, len(path)):
            if not isinstance(schema, dict) or any(keyword in schema for keyword in _OPEN):
                return None
            properties = schema.get("properties", {})
            if path[place] in properties:
                schema = properties[path[place]]
                continue
            if schema.get("additionalProperties") is not False:
                return None
            message = f"{path_text(path[:place])} has no field {path[place]!r}, says input_schema"
            return Problem(Code.TYPE, message + did_you_mean(path[place], properties))
        return None


def _check_context(path: Path) -> Problem | None:
    """An entry is named by its scope and key; which entries there are is known only when the task runs."""
    if len(path) > 1 and path[1] not in _SCOPES:
        hint = did_you_mean(path[1], _SCOPES) or "; write context.namespace, context.graph or context.run"
        return Problem(Code.UNKNOWN_REFERENCE, f"there is no context.{path[1]}{hint}")
    if len(path) < 3:
        message = "an entry of shared context is named, not looked up: context.namespace.KEY, or ['KEY'] in quotes"
        return Problem(Code.EXPRESSION, message)
    if not _KEY.fullmatch(path[2]):
        return Problem(Code.VALUE, f"{path[2]!r} is no key of shared context: letters, digits and ._/- up to 255")
    return None


def unknown_task(id: str, known: Iterable[str]) -> str:
    """The message for a task that is not in the graph."""
    return f"unknown task {id!r}{did_you_mean(id, known)}"
