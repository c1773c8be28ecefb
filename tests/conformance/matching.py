"""Does what was seen hold what was expected? JSON against JSON: members beyond those named are ignored."""

from __future__ import annotations

import json
from typing import Any


def mismatch(expected: Any, seen: Any, path: str = "") -> str:
    """Where they differ and how; empty when they do not. Texts whose names end in `_json` are compared as JSON."""
    if path.endswith("_json") and isinstance(expected, str) and isinstance(seen, str):
        try:
            return mismatch(json.loads(expected), json.loads(seen), path.removesuffix("_json"))
        except ValueError:
            return f"{path}: {seen[:200]!r} is not JSON"
    if isinstance(expected, dict):
        if not isinstance(seen, dict):
            return f"{path or 'it'} is {_short(seen)}, not an object"
        for name, part in expected.items():
            if name not in seen:
                return f"{path}/{name} is missing in {_short(seen)}"
            if found := mismatch(part, seen[name], f"{path}/{name}"):
                return found
        return ""
    if isinstance(expected, bool) is isinstance(seen, bool) and expected == seen:
        return ""
    return f"{path or 'it'} is {_short(seen)}, not {_short(expected)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
