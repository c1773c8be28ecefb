"""Values made from a JSON Schema, by a seed: valid ones, ones at the edges of what is valid, and ones that are not.

A generator only proposes; what counts is what the schema's validator says of each proposal. So it may be simple: it
knows the common vocabulary, follows local references, takes a schema's own examples, and turns one valid value into
others by changing one place of it at a time. Numbers stay within what every language's JSON can carry (2^53).
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

Json = Any
Path = tuple[str | int, ...]

LARGEST = 2**53 - 1
_TRIES = 60
_DEEPEST = 6
_LONGEST = 1_000
_WORDS = ("a", "Ada", "naïve café", "日本語 🙂", 'a "quoted" \\ text', "line\nline\ttab", "0")
_TEXTS = ("", *_WORDS, "null", " ", "x" * _LONGEST)
_FORMATS = {
    "date-time": ("2026-02-28T23:59:59Z", "1970-01-01T00:00:00Z", "2030-12-31T12:00:00.5+05:30"),
    "date": ("2026-02-28", "1970-01-01", "2030-12-31"),
    "time": ("23:59:59Z", "00:00:00Z"),
    "duration": ("P1D", "PT0S", "PT36H"),
    "email": ("ada@example.com", "a@b.example"),
    "uri": ("https://example.com/a?b=c", "http://example.com"),
    "uuid": ("4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "00000000-0000-4000-8000-000000000000"),
    "ipv4": ("192.0.2.1", "0.0.0.0"),
    "ipv6": ("2001:db8::1", "::"),
    "hostname": ("example.com", "a"),
}
_OF_TYPE: dict[str, tuple[Json, ...]] = {
    "string": _TEXTS,
    "integer": (0, 1, -1, 2, 100, LARGEST, -LARGEST),
    "number": (0, 1, -1, 0.5, -2.25, 1e9, LARGEST, -LARGEST),
    "boolean": (True, False),
    "null": (None,),
    "array": ([],),
    "object": ({},),
}
_ANYTHING: tuple[Json, ...] = (None, True, 0, 1.5, "text", [], {}, [1, "a"], {"a": 1})


class BadSchema(ValueError):
    """It is not a JSON Schema, or refers to something outside itself."""


class Schema:
    """One schema; empty text accepts anything. Raises `BadSchema`.

    A format, such as date-time, is a remark by JSON Schema: the mesh refuses nothing for it, and an agent may. So what
    is made to be valid has the format, and nothing counts as invalid for lack of it.
    """

    def __init__(self, text: str) -> None:
        try:
            self.tree: Json = json.loads(text) if text else True
            self._validator, self._of_formats = (
                jsonschema_rs.Draft202012Validator(self.tree, retriever=_refuse, validate_formats=formats)
                for formats in (False, True)
            )
        except (ValueError, RecursionError) as error:
            raise BadSchema(str(error)) from None

    def fits(self, value: Json) -> bool:
        """Whether the value is valid, and has the formats that the schema names."""
        return bool(self._of_formats.is_valid(value))

    def refuses(self, value: Json) -> bool:
        """Whether the value is invalid, whatever its formats."""
        return not self._validator.is_valid(value)

    def complaint(self, value: Json) -> str:
        """What is wrong with a value; empty when nothing is. It may quote the value."""
        for error in self._validator.iter_errors(value):
            where = "".join(f"/{part}" for part in error.instance_path)
            return f"{where or 'the value'}: {error.message}"
        return ""


def _refuse(uri: str) -> Json:
    raise ValueError(f"{uri} is outside the schema")


class Inputs:
    """Inputs for one schema. The same seed makes the same ones; of `given` the valid ones are known."""

    def __init__(self, schema: Schema, seed: int, given: tuple[Json, ...] = ()) -> None:
        self._schema = schema
        self._random = random.Random(seed)
        self._given = given

    def known(self) -> list[Json]:
        """The valid values that somebody vouches for: the given ones, and the schema's own examples."""
        tree = self._schema.tree
        examples = tree.get("examples") if isinstance(tree, dict) else None
        vouched = [*self._given, *(examples if isinstance(examples, list) else ())]
        return [value for value in vouched if not self._schema.refuses(value)]

    def valid(self, count: int) -> list[Json]:
        """Up to `count` different valid values, known ones first; none when nothing that was tried is valid."""
        found = {_text(value): value for value in self.known()}
        for _ in range(_TRIES):
            if len(found) >= count:
                break
            value = self._make(self._schema.tree, 0)
            if self._schema.fits(value):
                found.setdefault(_text(value), value)
        return list(found.values())[:count]

    def boundary(self, count: int) -> list[Json]:
        """Up to `count` valid values that have something extreme in one place."""
        return self._changed(count, valid=True)

    def invalid(self, count: int) -> list[Json]:
        """Up to `count` values that the schema refuses; none when it accepts everything that was tried."""
        return self._changed(count, valid=False)

    def _changed(self, count: int, *, valid: bool) -> list[Json]:
        found: dict[str, Json] = {}
        wanted = self._schema.fits if valid else self._schema.refuses
        for base in self.valid(3):
            for proposal in self._variants(base, valid=valid):
                if wanted(proposal):
                    found.setdefault(_text(proposal), proposal)
        proposals = list(found.values())
        if len(proposals) > count:  # a sample, in the order they were made
            kept = sorted(self._random.sample(range(len(proposals)), count))
            proposals = [proposals[index] for index in kept]
        return proposals

    def _variants(self, base: Json, *, valid: bool) -> Iterator[Json]:
        for path, schema in self._places(base, self._schema.tree, (), 0):
            value = _at(base, path)
            for other in (*self._extremes(schema, value), *(() if valid else _ANYTHING)):
                yield _with(base, path, other)
            if isinstance(value, dict):
                for name in value:
                    yield _with(base, path, {key: part for key, part in value.items() if key != name})
                yield _with(base, path, {**value, "x-unknown": True})
            if isinstance(value, list) and value:
                yield _with(base, path, [])
                if not (isinstance(schema, dict) and schema.get("uniqueItems")):
                    yield _with(base, path, value * (50 // len(value)))
                    yield _with(base, path, [*value, value[-1]])

    def _places(self, value: Json, schema: Json, path: Path, depth: int) -> Iterator[tuple[Path, Json]]:
        schema = self._resolved(schema)
        yield path, schema
        if depth < _DEEPEST and isinstance(schema, dict):
            if isinstance(value, dict):
                for name, part in value.items():
                    inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
                    yield from self._places(part, inner, (*path, name), depth + 1)
            if isinstance(value, list) and value:
                yield from self._places(value[0], schema.get("items", True), (*path, 0), depth + 1)

    def _extremes(self, schema: Json, value: Json) -> Iterator[Json]:
        """Values at and just beyond the bounds that a schema names, and the usual suspects of its type."""
        if not isinstance(schema, dict):
            return
        yield from schema.get("enum", ())
        yield from _FORMATS.get(str(schema.get("format")), ())
        for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(schema.get(bound), int | float):
                yield from (schema[bound], schema[bound] - 1, schema[bound] + 1)
        if isinstance(value, str):
            for bound in ("minLength", "maxLength"):
                length = schema.get(bound)
                if isinstance(length, int) and length <= 10_000:
                    yield from ("x" * length, "x" * (length + 1), "x" * max(0, length - 1), "é" * length)
        for kind in self._types(schema):
            yield from _OF_TYPE[kind]

    def _types(self, schema: dict[str, Json]) -> list[str]:
        kinds = schema.get("type", [])
        found = [kinds] if isinstance(kinds, str) else list(kinds)
        for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            branch = self._resolved(branch)
            if isinstance(branch, dict):
                found += self._types({key: branch[key] for key in branch if key == "type"})
        return [kind for kind in found if kind in _OF_TYPE]

    def _resolved(self, schema: Json) -> Json:
        for _ in range(_DEEPEST):
            if not isinstance(schema, dict) or not str(schema.get("$ref", "")).startswith("#"):
                break
            target = self._schema.tree
            for part in schema["$ref"].removeprefix("#").split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                target = target.get(part, True) if isinstance(target, dict) else True
            schema = target
        return schema

    def _make(self, schema: Json, depth: int) -> Json:
        schema = self._resolved(schema)
        choose = self._random
        if not isinstance(schema, dict):
            return choose.choice(_ANYTHING)
        if "const" in schema:
            return schema["const"]
        for known in ("enum", "examples"):
            if schema.get(known) and isinstance(schema[known], list) and (known == "enum" or choose.random() < 0.5):
                return copy.deepcopy(choose.choice(schema[known]))
        for several in ("anyOf", "oneOf"):
            if schema.get(several):
                rest = {key: part for key, part in schema.items() if key != several}
                return self._make(_merged(rest, self._resolved(choose.choice(schema[several]))), depth)
        if schema.get("allOf"):
            merged = {key: part for key, part in schema.items() if key != "allOf"}
            for part in schema["allOf"]:
                merged = _merged(merged, self._resolved(part))
            return self._make(merged, depth)
        kinds = self._types(schema)
        if not kinds:
            kinds = [kind for kind, mark in (("object", "properties"), ("array", "items")) if mark in schema]
        kind = choose.choice(kinds) if kinds else ""
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(schema, whole=kind == "integer")
        return choose.choice(_OF_TYPE.get(kind, _ANYTHING))

    def _object(self, schema: dict[str, Json], depth: int) -> Json:
        required = schema.get("required", [])
        properties = schema.get("properties", {})
        made = {}
        for name, part in properties.items():
            if name in required or (depth < _DEEPEST and self._random.random() < 0.7):
                made[name] = self._make(part, depth + 1)
        for name in required:
            made.setdefault(name, "a")
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) and depth < _DEEPEST:
            for number in range(max(schema.get("minProperties", 0), self._random.randint(0, 2))):
                made[f"key{number}"] = self._make(extra, depth + 1)
        return made

    def _array(self, schema: dict[str, Json], depth: int) -> Json:
        first = [self._make(part, depth + 1) for part in schema.get("prefixItems", ())]
        least = schema.get("minItems", 0)
        most = min(schema.get("maxItems", least + 3), least + 3)
        wanted = least if depth >= _DEEPEST else self._random.randint(least, max(least, most))
        items = schema.get("items", True)
        if items is False:
            return first
        return first + [self._make(items, depth + 1) for _ in range(wanted - len(first))]

    def _string(self, schema: dict[str, Json]) -> str:
        if known := _FORMATS.get(str(schema.get("format"))):
            return self._random.choice(known)
        least = min(int(schema.get("minLength", 0)), 10_000)
        most = min(int(schema.get("maxLength", least + 20)), 10_000)
        text = self._random.choice(_WORDS)
        return (text + "x" * least)[: max(least, most)]

    def _number(self, schema: dict[str, Json], *, whole: bool) -> Json:
        least = _first(schema, ("minimum", "exclusiveMinimum"), -1_000)
        most = _first(schema, ("maximum", "exclusiveMaximum"), max(least, 0) + 1_000)
        step = schema.get("multipleOf")
        value = self._random.uniform(least, most)
        if step:
            return round(value / step) * step
        return round(value) if whole or self._random.random() < 0.5 else round(value, 3)


def _first(schema: dict[str, Json], names: tuple[str, ...], default: float) -> float:
    """The first of some keywords that holds a number."""
    return next((schema[name] for name in names if isinstance(schema.get(name), int | float)), default)


def _merged(one: dict[str, Json], other: Json) -> dict[str, Json]:
    """Two schemas that both hold, as far as a proposal needs it."""
    if not isinstance(other, dict):
        return one
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *other["required"]]
    return merged


def _at(value: Json, path: Path) -> Json:
    for part in path:
        value = value[part]
    return value


def _with(value: Json, path: Path, other: Json) -> Json:
    """A copy in which the place at `path` is another value."""
    if not path:
        return copy.deepcopy(other)
    made = copy.deepcopy(value)
    _at(made, path[:-1])[path[-1]] = copy.deepcopy(other)
    return made


def _text(value: Json) -> str:
    """What makes a value different from others; 1 and true are."""
    return json.dumps(value, sort_keys=True)
