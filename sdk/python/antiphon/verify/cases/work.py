"""Does it do the work that it offers, and only that?"""

from __future__ import annotations

import json

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import capability_pb2, failure_pb2
from antiphon.v1.payload_pb2 import Payload

from ..stage import INLINE_LIMIT, Wrong
from .case import CAPABILITY, FAILURE, PAYLOAD, SERVICE, Case, Offered, Play, encoded, shortened, told

_VALID, _BOUNDARY, _INVALID = 5, 16, 12
_INPUT = f"{CAPABILITY}: input_schema; {FAILURE}: FAILURE_KIND_INVALID_INPUT"
_OUTCOME = f"{SERVICE}: Result"


async def valid_input(play: Play) -> None:
    """Known inputs, of which each must be taken, and inputs made from each schema, of which some must be.

    A schema cannot say everything, so an agent may refuse what was only made from it; but not all of it.
    """
    for offered in play.offered:
        known = [encoded(value) for value in offered.inputs.known()]
        for seen in await _refusals(play, offered, known):
            raise Wrong(f"{offered.name} takes what was given by --input, or is an example in its schema", seen, _INPUT)
        inputs = play.valid(offered, _VALID)
        refusals = await _refusals(play, offered, inputs)
        if len(refusals) == len(inputs) and not known:
            edges = _edges(offered)
            refusals += await _refusals(play, offered, edges)
            if len(refusals) == len(inputs) + len(edges):
                seen = f"it refused all {len(refusals)} inputs, the first with {refusals[0]}"
                remedy = f"where the schema says too little, give one: --input {offered.capability.name}=JSON"
                raise Wrong(f"{offered.name} takes some of what its input schema accepts", f"{seen}; {remedy}", _INPUT)


async def boundary_input(play: Play) -> None:
    """The edges of what each schema accepts: the agent may refuse them for reasons of its own, and goes on."""
    for offered in play.offered:
        await _refusals(play, offered, _edges(offered))


def _edges(offered: Offered) -> list[bytes]:
    return [encoded(value) for value in offered.inputs.boundary(_BOUNDARY)]


async def _refusals(play: Play, offered: Offered, inputs: list[bytes]) -> list[str]:
    """What was said of each input that was refused as INVALID_INPUT."""
    line = await play.stage.line()
    made = [play.stage.assignment(offered.name, data) for data in inputs]
    results = await play.stage.play(line, made, _OUTCOME)
    return [
        f"{told(result)} for {shortened(data)}"
        for data, result in zip(inputs, results, strict=True)
        if result.failure.kind == failure_pb2.FAILURE_KIND_INVALID_INPUT
    ]


async def invalid_input(play: Play) -> None:
    """Inputs that each schema refuses, and some that are not even JSON."""
    line = await play.stage.line()
    for offered in play.offered:
        refused = [encoded(value) for value in offered.inputs.invalid(_INVALID)]
        inputs = [*refused, b'{"broken": ', b"\xff\xfe"] if refused else []
        made = [play.stage.assignment(offered.name, data) for data in inputs]
        for data, result in zip(inputs, await play.stage.play(line, made, _OUTCOME), strict=True):
            if result.failure.kind != failure_pb2.FAILURE_KIND_INVALID_INPUT:
                seen = f"{told(result)} for {shortened(data)}"
                raise Wrong(f"a failure INVALID_INPUT of {offered.name}, whose schema refuses it", seen, _INPUT)


async def pure(play: Play) -> None:
    """What is declared pure."""
    line = await play.stage.line()
    for offered in play.offered:
        if offered.capability.effect != capability_pb2.EFFECT_PURE:
            continue
        (data,) = play.valid(offered)
        made = [play.stage.assignment(offered.name, data) for _ in range(3)]
        values = [_value(result) for result in await play.stage.play(line, made, _OUTCOME)]
        if any(value != values[0] for value in values):
            seen = f"different outcomes for {shortened(data)}"
            expected = f"{offered.name}, which is declared pure, answers the same input the same way"
            raise Wrong(expected, seen, f"{CAPABILITY}: EFFECT_PURE")


def _value(result: pb.Result) -> object:
    if result.WhichOneof("outcome") == "failure":
        return result.failure.kind
    try:
        return json.loads(result.output.inline)
    except ValueError:
        return result.output.inline


async def unknown_capability(play: Play) -> None:
    """Work that it never offered: another name, and another version."""
    line = await play.stage.line()
    (data,) = play.valid(play.offered[0])
    name = play.offered[0].capability.name
    made = [play.stage.assignment(wanted, data) for wanted in ("verify.nobody-offers-this@1", f"{name}@999999")]
    contract = f"{SERVICE}: Assignment.capability, version"
    for one, result in zip(made, await play.stage.play(line, made, contract), strict=True):
        if result.WhichOneof("outcome") != "failure":
            seen = f"{told(result)} of {one.capability}@{one.version}"
            raise Wrong("a failure of what it does not offer", seen, contract)


async def large_payload(play: Play) -> None:
    """The largest input that travels inline: the same value, in whitespace."""
    line = await play.stage.line()
    for offered in play.offered:
        (data,) = play.valid(offered)
        padded = data + b" " * (INLINE_LIMIT - len(data))
        made = [play.stage.assignment(offered.name, one) for one in (data, padded)]
        small, large = await play.stage.play(line, made, _OUTCOME)
        if small.WhichOneof("outcome") != "failure" and large.WhichOneof("outcome") == "failure":
            seen = f"{told(large)} for {INLINE_LIMIT} bytes, and success for the same value in {len(data)}"
            raise Wrong(f"{offered.name} takes an input of {INLINE_LIMIT} bytes", seen, f"{PAYLOAD}: Payload.inline")


async def unknown_media(play: Play) -> None:
    """Inputs that it may not be able to read: by reference, and in a media type of its own."""
    line = await play.stage.line()
    made = []
    for offered in play.offered:
        stored = play.stage.assignment(offered.name, b"")
        stored.input.CopyFrom(Payload())
        stored.input.blob.digest, stored.input.blob.size = "0" * 64, 1 << 20
        made += [stored, play.stage.assignment(offered.name, b"\x00\x01", media_type="application/x-verify")]
    await play.stage.play(line, made, f"{PAYLOAD}: Payload.content, media_type")


CASES = (
    Case("valid-input", "It takes known inputs, and some that its schemas accept.", valid_input),
    Case("boundary-input", "It gives an outcome at the edges of what its schemas accept, and goes on.", boundary_input),
    Case("invalid-input", "It refuses inputs that its schemas refuse, as INVALID_INPUT, and goes on.", invalid_input),
    Case("pure", "What it declares pure answers the same input the same way.", pure),
    Case("unknown-capability", "It fails work that it never offered, and goes on.", unknown_capability),
    Case("large-payload", "It takes an input as large as may travel inline.", large_payload),
    Case("unknown-media", "It gives an outcome for inputs that it cannot read, and goes on.", unknown_media),
)
