"""A user's function as the worker sees it: what to announce, how to make its argument, what to do with its result.

Everything that can be wrong with a function is found when it is decorated, before any task arrives.
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from antiphon.v1 import agent_service_pb2, capability_pb2
from antiphon.v1.payload_pb2 import Payload

from . import _json
from ._context import TaskContext, sendable, value_of
from ._convert import Mismatch
from ._failures import InvalidInput, InvalidOutput, TaskFailure
from ._schema import Codec, codec
from ._subgraph import Subgraph

Effect = Literal["pure", "read", "write", "egress"]
Schema = str | Mapping[str, Any]
Answer = bytes | Payload | agent_service_pb2.Subgraph
"""JSON, a whole payload, or a graph that runs in place of an output."""
THREADS = "antiphon-plain"
"""How the names of threads begin in which plain functions run."""

_CAPABILITY = re.compile(r"([a-z][a-z0-9_-]{0,62}(?:\.[a-z0-9_-]{1,63}){0,7})@([0-9]{1,6}(?:\.[0-9]{1,6}){0,2})")
_DESCRIPTION = 2048
_SCHEMA = 32768
_GRAPH = 262_144
"""Bytes of a graph that a handler answers, as the contract has it."""
_EFFECTS = {
    None: capability_pb2.EFFECT_UNSPECIFIED,
    "pure": capability_pb2.EFFECT_PURE,
    "read": capability_pb2.EFFECT_READ,
    "write": capability_pb2.EFFECT_WRITE,
    "egress": capability_pb2.EFFECT_EGRESS,
}
_ANYTHING = codec(Any)
_UNIONS = (typing.Union, types.UnionType)
_LONGEST_WAIT = timedelta(minutes=1)
_LARGEST_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Batching:
    """How tasks are gathered for a function that takes several: at most `size` of them, for at most `wait` seconds."""

    size: int
    wait: float

    @classmethod
    def checked(cls, size: int, wait: timedelta, concurrency: int) -> Batching:
        """Raises `ValueError` for what cannot be."""
        if not 2 <= size <= _LARGEST_BATCH:
            raise ValueError(f"max_size {size} must be 2 to {_LARGEST_BATCH:,}")
        if size > concurrency:
            raise ValueError(
                f"max_size {size} is more than the agent ever has at once; give it a concurrency of {size}, or more"
            )
        if not timedelta(0) <= wait <= _LONGEST_WAIT:
            raise ValueError(f"max_wait {wait} must be 0 to {_LONGEST_WAIT}")
        return cls(size, wait.total_seconds())


@dataclass(frozen=True, slots=True)
class Handler:
    """One capability and the function behind it."""

    capability: capability_pb2.Capability
    function: Callable[..., Any]
    takes_input: bool
    takes_context: str
    """Name of the context parameter; empty when there is none."""
    plain: bool
    """A plain function, to be called in a thread."""
    decode: Callable[[Any], Any] | None
    """None: the input is handed over as the payload it came in."""
    encode: Callable[[Any], Any]
    batching: Batching | None
    """Not None: the function takes lists, of inputs and of contexts, and answers a list."""

    def call(self, context: TaskContext) -> Any:
        """Call the function: its result, or for an async function its coroutine. Raises `InvalidInput`."""
        keywords = {self.takes_context: context} if self.takes_context else {}
        if not self.takes_input:
            return self.function(**keywords)
        return self.function(self.argument(context), **keywords)

    def call_with(self, arguments: list[Any], contexts: list[TaskContext]) -> Any:
        """Call a function that takes several tasks, with what `argument` made of each."""
        keywords = {self.takes_context: contexts} if self.takes_context else {}
        return self.function(arguments, **keywords)

    def argument(self, context: TaskContext) -> Any:
        """The input as the function takes it. Raises `InvalidInput`."""
        if self.decode is None:
            return context.input
        try:
            return self.decode(value_of(context.input))
        except Mismatch as error:
            raise InvalidInput(str(error), field=error.pointer) from error.__cause__
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        except RecursionError:
            raise InvalidInput("the value is nested too deeply") from None

    def output(self, result: Any, limit: int) -> Answer:
        """What to answer; `limit` is the largest inline payload in bytes. Raises `InvalidOutput`."""
        if isinstance(result, Subgraph):
            return _subgraph(result, limit)
        if isinstance(result, Payload):
            try:
                data: bytes | Payload = sendable(result)
            except ValueError as error:
                raise InvalidOutput(str(error)) from None
            size = len(result.inline)
        else:
            try:
                data = _json.dumps(self.encode(result))
            except Mismatch as error:
                raise InvalidOutput(str(error), field=error.pointer) from None
            except (ValueError, TypeError) as error:
                raise InvalidOutput(str(error)) from None
            except RecursionError:
                raise InvalidOutput("the value is nested too deeply") from None
            size = len(data)
        if size > limit:
            raise InvalidOutput(
                f"the output has {size} bytes, larger than {limit} bytes; return less, or upload it with "
                "Client.upload_payload and return the antiphon.Payload that it answers"
            )
        return data


def handler_of(
    function: Callable[..., Any],
    name: str,
    *,
    description: str | None,
    effect: Effect | None,
    idempotent: bool,
    clearance: Sequence[str],
    cost: float,
    expected_latency: timedelta | None,
    input_schema: Schema | None,
    output_schema: Schema | None,
    batching: Batching | None = None,
) -> Handler:
    """Inspect a function; with `batching` one that takes several tasks.

    Raises `TypeError` or `ValueError` that says what to write instead.
    """
    match = _CAPABILITY.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a capability; write a dotted name and a version, such as 'text.summarize@1'")
    if effect not in _EFFECTS:
        raise ValueError(f"effect {effect!r} must be one of pure, read, write, egress")
    if isinstance(clearance, str):
        raise TypeError("clearance must be a list of label keys, not one string")
    written = _written(function)
    hints = _hints(written)
    parameters = list(inspect.signature(function).parameters.values())
    if batching is not None:
        hints = _of_one(function, hints, parameters)
    context = next((one.name for one in parameters if _is_context(hints.get(one.name))), "")
    inputs = [one for one in parameters if one.name != context]
    if len(inputs) > 1 or any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in inputs):
        raise TypeError(f"{_of(function)} must take one input; put several values into a dataclass or TypedDict")
    if inputs and inputs[0].kind is inputs[0].KEYWORD_ONLY:
        raise TypeError(f"{_of(function)} must take its input by position")
    into = _codec(function, "the input", hints.get(inputs[0].name, Any) if inputs else Any)
    if batching is not None and not inputs:
        raise TypeError(f"{_of(function)} must take a list of inputs")
    out_of = _codec(function, "the output", _without_graphs(hints.get("return", Any)), answered=True)
    capability = capability_pb2.Capability(
        name=match[1],
        version=match[2],
        description=(inspect.getdoc(written) or "" if description is None else description)[:_DESCRIPTION],
        input_schema=_text(input_schema, into),
        output_schema=_text(output_schema, out_of),
        effect=_EFFECTS[effect],
        idempotent=idempotent,
        clearance=clearance,
        cost=cost,
    )
    for schema in (capability.input_schema, capability.output_schema):
        if len(schema) > _SCHEMA:
            raise ValueError(f"a schema of {name} has {len(schema)} characters; at most {_SCHEMA} are allowed")
    if expected_latency is not None:
        capability.expected_latency.FromTimedelta(expected_latency)
    return Handler(
        capability,
        function,
        takes_input=bool(inputs),
        takes_context=context,
        plain=not inspect.iscoroutinefunction(written),
        decode=into.decode if into is not None else None,
        encode=(out_of or _ANYTHING).encode,
        batching=batching,
    )


def _written(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function somebody wrote, under decorators, partial application and objects that can be called."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function if inspect.isroutine(function) else type(function).__call__


def _is_context(annotation: Any) -> bool:
    return annotation is TaskContext or TaskContext in typing.get_args(annotation)  # TaskContext | None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"an annotation of {_of(function)} is not known in its module: {error.name}; define it at module level"
        ) from error


def _of_one(
    function: Callable[..., Any], hints: dict[str, Any], parameters: Sequence[inspect.Parameter]
) -> dict[str, Any]:
    """The annotations of a function that takes several tasks, as they are for one of them. Raises `TypeError`."""
    names = [one.name for one in parameters if one.name in hints]
    found = {name: _element(function, f"'{name}'", hints[name]) for name in names}
    if "return" in hints:
        found["return"] = _without_failures(_element(function, "its outcomes", hints["return"]))
    return found


def _element(function: Callable[..., Any], what: str, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if annotation is Any:
        return Any
    if origin not in (list, Sequence):
        raise TypeError(f"{_of(function)} handles several tasks at once, so {what} must be a list, such as list[str]")
    return arguments[0] if arguments else Any


def _without_failures(annotation: Any) -> Any:
    """An outcome's type without the failures that may stand in its place."""
    alternatives = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    values = [one for one in alternatives if not (isinstance(one, type) and issubclass(one, TaskFailure))]
    return functools.reduce(operator.or_, values) if values else None


def _without_graphs(annotation: Any) -> Any:
    """An output's type without the graph that may stand in its place; anything when there is nothing else."""
    alternatives = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    values = [one for one in alternatives if one is not Subgraph]
    if len(values) == len(alternatives):
        return annotation
    return functools.reduce(operator.or_, values) if values else Any


def _subgraph(given: Subgraph, limit: int) -> agent_service_pb2.Subgraph:
    """The graph as a message. Raises `InvalidOutput` for an input that is not JSON, and for what is too large."""
    data: bytes | Payload | None = None
    if isinstance(given.input, Payload):
        try:
            data, size = sendable(given.input), len(given.input.inline)
        except ValueError as error:
            raise InvalidOutput(f"the input of the graph: {error}") from None
    elif given.input is not None:
        try:
            data = _json.dumps(_ANYTHING.encode(given.input))
        except Mismatch as error:
            raise InvalidOutput(f"the input of the graph: {error}", field=error.pointer) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidOutput(f"the input of the graph is not JSON: {error}") from None
        size = len(data)
    if data is not None and size > limit:
        raise InvalidOutput(f"the input of the graph has {size} bytes, larger than {limit} bytes")
    message = given.to_proto(data)
    # Here, because a message that is far too large would break the stream of all attempts.
    if (size := message.graph.ByteSize()) > _GRAPH:
        raise InvalidOutput(f"the graph has {size} bytes, larger than {_GRAPH} bytes")
    return message


def _codec(function: Callable[..., Any], what: str, annotation: Any, *, answered: bool = False) -> Codec | None:
    """None for an annotation `Payload`: the envelope itself."""
    if annotation is Payload:
        return None
    try:
        return codec(annotation, answered=answered)
    except TypeError as error:
        raise TypeError(f"{what} of {_of(function)}: {error}") from error


def _text(given: Schema | None, derived: Codec | None) -> str:
    if given is None:
        return derived.schema if derived is not None else ""
    return given if isinstance(given, str) else json.dumps(given, separators=(",", ":"))


def _of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
