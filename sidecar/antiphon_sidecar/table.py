"""Reading values out of a TOML table: typed, with every mistake collected under its key path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_STATUS = re.compile(r"[1-5](xx|[0-9]{2})")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")


class Mistakes:
    """What is wrong with a configuration, in the order it was found."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, where: str, remedy: str) -> None:
        """One mistake: its key path, and what to do."""
        self._lines.append(f"{where}: {remedy}")

    def raise_any(self, kind: type[Exception]) -> None:
        """Raise one exception with all of them, if there are any."""
        if self._lines:
            raise kind("\n".join(self._lines))


class Table:
    """One table. Each getter takes its key away; `no_other` reports what is left. `where`: what its keys' paths begin
    with."""

    def __init__(
        self, values: Mapping[str, Any], where: str, mistakes: Mistakes, environ: Mapping[str, str], folder: Path
    ) -> None:
        self._where = where
        self.mistakes = mistakes
        self._values = dict(values)
        self._environ = environ
        self._folder = folder
        self._known: list[str] = []

    def key(self, key: str) -> str:
        """The path of a key."""
        return self._where + key

    def no_other(self) -> None:
        """Report keys that nobody asked for."""
        for key in self._values:
            close = get_close_matches(key, self._known, 1)
            self.mistakes.add(self.key(key), f"unknown key{f'; did you mean {close[0]}?' if close else ''}")

    def without(self, keys: Sequence[str], remedy: str) -> None:
        """Report those of the keys that are there, as they would have no effect. Asked before they are taken."""
        for key in keys:
            if key in self._values:
                self.mistakes.add(self.key(key), remedy)

    def string(self, key: str, default: str | None = None) -> str | None:
        """A text."""
        value = self._take(key, str, "a text in quotes")
        return default if value is None else str(value)

    def name(self, key: str) -> str:
        """An agent's name."""
        name = self.string(key) or ""
        if not _NAME.fullmatch(name):
            self.mistakes.add(self.key(key), "use 1-63 lower-case letters, digits and inner dashes")
        return name

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty when absent."""
        value = self._take(key, list, "a list of texts")
        if value is None:
            return ()
        if not all(isinstance(item, str) for item in value):
            self.mistakes.add(self.key(key), "must be a list of texts")
            return ()
        return tuple(value)

    def boolean(self, key: str) -> bool:
        """True or false; false when absent."""
        return bool(self._take(key, bool, "true or false"))

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = self._take(key, int, "a whole number")
        if value is None:
            return default
        if not least <= value <= most:
            self.mistakes.add(self.key(key), f"use {least} to {most}")
            return default
        return int(value)

    def number(self, key: str) -> float:
        """A number of 0 or more; 0 when absent."""
        value = self._values.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            self._values[key] = float(value)
        number = self._take(key, float, "a number") or 0.0
        if not 0 <= number <= 1e9:
            self.mistakes.add(self.key(key), "use 0 to 1000000000")
        return float(number)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        """One of some words."""
        value = self.string(key, default) or ""
        if value not in choices:
            self.mistakes.add(self.key(key), f"use one of {', '.join(word for word in choices if word)}")
            return default
        return value

    def duration(self, key: str, default: timedelta | None) -> timedelta | None:
        """A time such as 500ms, 30s, 5m or 1h."""
        value = self.string(key)
        if value is None:
            return default
        match = _DURATION.fullmatch(value)
        if not match or float(match[1]) == 0:
            self.mistakes.add(self.key(key), f"{value!r} is not a time; write 500ms, 30s, 5m or 1h")
            return default
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])

    def path(self, key: str) -> Path | None:
        """A path; in a file, relative to the file's folder."""
        value = self.string(key)
        return None if value is None else self._folder / Path(value).expanduser()

    def secret_file(self, key: str) -> str | None:
        """The content of a file that holds a secret."""
        path = self.path(key)
        if path is None:
            return None
        try:
            return path.read_text("utf-8").strip()
        except (OSError, ValueError):
            self.mistakes.add(self.key(key), f"{path} cannot be read")
            return None

    def schema(self, key: str) -> str:
        """A JSON Schema: inline, or in the file that `key`_file names."""
        text = self.string(key)
        path = self.path(f"{key}_file")
        if text is not None and path is not None:
            self.mistakes.add(self.key(key), f"give it here or in {key}_file, not both")
        if text is None and path is not None:
            try:
                text = path.read_text("utf-8")
            except (OSError, ValueError):
                self.mistakes.add(self.key(f"{key}_file"), f"{path} cannot be read")
        if not text:
            return ""
        try:
            schema = json.loads(text)
        except ValueError as error:
            self.mistakes.add(self.key(key), f"it is not JSON: {error}")
            return ""
        if not isinstance(schema, dict | bool):
            self.mistakes.add(self.key(key), 'it is not a JSON Schema, which is an object such as {"type": "object"}')
            return ""
        return text

    def headers(self, key: str) -> dict[str, str]:
        """HTTP headers; `${env:NAME}` in a value is replaced by that variable, so that no secret is in the file."""
        headers = {}
        for name, value in (self._take(key, dict, "a table of texts") or {}).items():
            where = f"{self.key(key)}.{name}"
            if not isinstance(value, str) or not _HEADER.fullmatch(name):
                self.mistakes.add(where, "must be a header name and a text")
                continue
            for variable in _SECRET.findall(value):
                if variable not in self._environ:
                    self.mistakes.add(where, f"set the environment variable {variable}")
            value = _SECRET.sub(lambda match: self._environ.get(match[1], ""), value)
            if not (value.isprintable() and value.isascii()):
                self.mistakes.add(where, "must hold printable ASCII characters only")
            headers[name] = value
        return headers

    def statuses(self, key: str, kinds: Sequence[str]) -> dict[str, str]:
        """HTTP statuses, or classes of them, with the kind of failure each means."""
        statuses = {}
        for status, kind in (self._take(key, dict, "a table") or {}).items():
            if not _STATUS.fullmatch(status) or kind not in kinds:
                self.mistakes.add(
                    f"{self.key(key)}.{status}", f"write a status such as 429 or 5xx, and {', '.join(kinds)}"
                )
                continue
            statuses[status] = kind
        return statuses

    def table(self, key: str) -> Table | None:
        """A table inside."""
        value = self._take(key, dict, "a table")
        return None if value is None else self._inside(value, f"{self.key(key)}.")

    def tables(self, key: str) -> list[Table]:
        """A list of tables inside, each told by its name."""
        values = self._take(key, list, "a list of tables") or []
        where = self.key(key.removesuffix("_tables"))
        if not all(isinstance(value, dict) for value in values):
            self.mistakes.add(where, "must be tables, each with its name in double brackets")
            return []
        names = [value.get("name") or f"number {number}" for number, value in enumerate(values, 1)]
        return [self._inside(value, f"{where} {name}: ") for name, value in zip(names, values, strict=True)]

    def _inside(self, values: Mapping[str, Any], where: str) -> Table:
        return Table(values, where, self.mistakes, self._environ, self._folder)

    def _take(self, key: str, kind: type, words: str) -> Any:
        self._known.append(key)
        value = self._values.pop(key, None)
        # A bool is an int in Python, never in TOML.
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            self.mistakes.add(self.key(key), f"must be {words}")
            return None
        return value
