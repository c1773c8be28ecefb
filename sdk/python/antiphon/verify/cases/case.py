"""What a case is, and what it is given."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import capability_pb2, failure_pb2

from ..inputs import BadSchema, Inputs, Json, Schema
from ..stage import Stage, Unplayable

SERVICE = "protos/antiphon/v1/agent_service.proto"
CAPABILITY = "protos/antiphon/v1/capability.proto"
FAILURE = "protos/antiphon/v1/failure.proto"
PAYLOAD = "protos/antiphon/v1/payload.proto"


@dataclass(slots=True)
class Offered:
    """One capability with its schemas and inputs."""

    capability: capability_pb2.Capability
    input: Schema
    output: Schema
    inputs: Inputs

    @property
    def name(self) -> str:
        """name@version."""
        return f"{self.capability.name}@{self.capability.version}"


@dataclass
class Play:
    """What cases have: the stage, and what the agent offers. `given` are valid inputs by capability name, for the
    versions that take them, or by name@version."""

    stage: Stage
    seed: int
    given: Mapping[str, tuple[Json, ...]] = field(default_factory=dict)

    @cached_property
    def offered(self) -> tuple[Offered, ...]:
        """Everything the agent offers. Raises `Unplayable` when it has said no hello, a schema is none, or a given
        input is for nothing of it."""
        try:
            offered = tuple(map(self._offered, self.stage.description.capabilities))
        except BadSchema as error:
            raise Unplayable(f"a schema is not JSON Schema: {first_line(error)}") from None
        for name, values in self.given.items():
            of_name = [one for one in offered if name in (one.capability.name, one.name)]
            if not of_name:
                raise Unplayable(f"an --input for {name}, which the agent does not offer")
            for value in values:
                complaints = [one.input.complaint(value) for one in of_name]
                if all(complaints):
                    raise Unplayable(f"an --input that the schema of {name} refuses: {complaints[0][:300]}")
        return offered

    def _offered(self, capability: capability_pb2.Capability) -> Offered:
        schema = Schema(capability.input_schema)
        given = [
            value
            for name in (capability.name, f"{capability.name}@{capability.version}")
            for value in self.given.get(name, ())
        ]
        return Offered(capability, schema, Schema(capability.output_schema), Inputs(schema, self.seed, tuple(given)))

    def valid(self, offered: Offered, count: int = 1) -> list[bytes]:
        """Valid inputs of a capability, encoded. Raises `Unplayable` when none is known."""
        values = offered.inputs.valid(count)
        if not values:
            raise Unplayable(
                f"no input that fits the schema of {offered.name} was found; give one: "
                f"--input {offered.capability.name}=JSON"
            )
        return [encoded(value) for value in values]

    def one_of_each(self, most: int = 64) -> list[tuple[Offered, bytes]]:
        """A valid input of each capability, repeated in turn until there are `most`."""
        each = [(offered, data) for offered in self.offered for data in self.valid(offered, 4)]
        return [each[index % len(each)] for index in range(most)]


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `play` raises `Wrong` or `Unplayable`. `fresh`: it begins with a program that has just been started."""

    name: str
    meaning: str
    play: Callable[[Play], Awaitable[None]]
    fresh: bool = False


def encoded(value: Json) -> bytes:
    """A value as JSON on the wire."""
    return json.dumps(value, ensure_ascii=False).encode()


def told(result: pb.Result) -> str:
    """An outcome in a few words, for complaints; no values of outputs, only what failures say."""
    if result.WhichOneof("outcome") != "failure":
        return "success"
    number = result.failure.kind
    known = number in failure_pb2.FailureKind.values()
    kind = failure_pb2.FailureKind.Name(number).removeprefix("FAILURE_KIND_") if known else str(number)
    message = result.failure.message[:200]
    return f"a failure {kind}: {message}" if message else f"a failure {kind}"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return str(error).partition("\n")[0][:300]


def shortened(data: bytes) -> str:
    """An input for complaints."""
    text = data.decode("utf-8", "replace")
    return text if len(text) <= 120 else f"{text[:120]}… ({len(data)} bytes)"
