"""Reading what users type, and spelling durations, moments and states for them. Pure, but for reading the input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from .. import _json
from ..v1.registry_pb2 import AgentState, BreakerState
from ..v1.run_pb2 import AttemptState, RunState, TaskKey, TaskState
from .problems import Problem

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = timedelta(days=36_500)
_TASK = re.compile(r"([a-zA-Z][a-zA-Z0-9_]{0,62}(?:\.compensate)?)(?:\[(\d{1,7})\])?")


def parse_duration(text: str) -> timedelta:
    """`30s`, `5m`, `1h30m`, `250ms`, `2d`. Raises `Problem`."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Problem(f"{text!r} is not a duration", "write for example 30s, 5m or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > _LONGEST.total_seconds():
        raise Problem(f"{text[:80]!r} is longer than 100 years", f"write at most {_LONGEST.days}d")
    return timedelta(seconds=seconds)


def parse_task(text: str) -> TaskKey:
    """`classify`, or `classify[17]` for the 17th member of a for_each. Raises `Problem`."""
    match = _TASK.fullmatch(text)
    if match is None or match[2] == "0":
        raise Problem(f"{text!r} is not a task", "write for example classify, or classify[17] for its 17th member")
    return TaskKey(task_id=match[1], member=int(match[2] or 0))


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """`team=search`, each key once. Raises `Problem`."""
    labels: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key or key in labels:
            raise Problem(f"{text!r} is not a label of its own", "write for example --label team=search, each key once")
        labels[key] = value
    return labels


def parse_version(text: str) -> tuple[str, str]:
    """`review` or `review@2`: the name and the version, empty for the highest."""
    name, _, version = text.partition("@")
    return name, version


def read_input(text: str | None, name: str) -> Any:
    """The value given as `name`, such as --input: JSON, `@FILE`, or `-` for stdin; None is JSON null.

    Raises `Problem`, `OSError`.
    """
    if text is None:
        return None
    if text == "-":
        content, source = sys.stdin.buffer.read(), f"{name} from stdin"
    elif text.startswith("@"):
        content, source = Path(text[1:]).read_bytes(), text[1:]
    else:
        content, source = os.fsencode(text), name
    try:
        value = _json.loads(content)
        _json.dumps(value)  # half a surrogate pair, or 1e999, can be read and is not JSON when it is sent
        return value
    except ValueError as error:
        raise Problem(f"{source} is not JSON: {error}", "write JSON, @FILE, or - for stdin") from None


def spell_duration(duration: timedelta) -> str:
    """`12 ms`, `3.4 s`, `2 min 5 s`, `1 h 3 min`."""
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def spell_between(start: Timestamp, end: Timestamp) -> str:
    """The time between two moments; empty while one is unknown."""
    if not (start.ByteSize() and end.ByteSize()):
        return ""
    return spell_duration(end.ToDatetime() - start.ToDatetime())


def spell_proto_duration(duration: Duration) -> str:
    """A duration of the wire."""
    return spell_duration(duration.ToTimedelta())


def spell_moment(moment: Timestamp) -> str:
    """A moment in the machine's time zone, to the second; empty when absent."""
    if not moment.ByteSize():
        return ""
    return f"{moment.ToDatetime(tzinfo=UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def spell_key(key: TaskKey) -> str:
    """As `parse_task` reads it."""
    return f"{key.task_id}[{key.member}]" if key.member else key.task_id


class EnumNames(Protocol):
    """A generated enum, which knows its names."""

    def Name(self, number: Any, /) -> str: ...


def spell_state(enum: EnumNames, number: int, prefix: str) -> str:
    """The name of an enum value without the prefix all of them have; a newer server's value is its number."""
    try:
        return enum.Name(number).removeprefix(prefix)
    except ValueError:
        return str(number)


def run_state(number: int) -> str:
    return spell_state(RunState, number, "RUN_STATE_")


def task_state(number: int) -> str:
    return spell_state(TaskState, number, "TASK_STATE_")


def attempt_state(number: int) -> str:
    return spell_state(AttemptState, number, "ATTEMPT_STATE_")


def agent_state(number: int) -> str:
    return spell_state(AgentState, number, "AGENT_STATE_")


def breaker_state(number: int) -> str:
    return spell_state(BreakerState, number, "BREAKER_STATE_")


def parse_run_states(texts: Iterable[str]) -> list[RunState.ValueType]:
    """`running`, `failed` …, as states of runs. Raises `Problem`."""
    states = []
    for text in texts:
        name = f"RUN_STATE_{text.upper()}"
        if name not in RunState.keys() or name == "RUN_STATE_UNSPECIFIED":  # noqa: SIM118  a generated enum is no mapping
            known = ", ".join(run_state(number).lower() for number in RunState.values() if number)
            raise Problem(f"{text!r} is not a state of runs", f"use one of {known}")
        states.append(RunState.Value(name))
    return states
