"""Writes docs/reference/settings.md: each setting of the orchestrator and of the sidecar, its default and its meaning.

`make gen` calls it; `--check` (in `make check`) fails on a difference instead. Names and defaults are those of the
dataclasses that are loaded, meanings the texts below their fields.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from antiphon_orchestrator.config import SECTIONS, Flag, flags, shown
from antiphon_orchestrator.config_words import meanings
from antiphon_sidecar import config as sidecar

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/reference/settings.md")

_HEAD = """\
<!-- Generated from the source by `make gen`; do not edit. -->
# Settings

- [Orchestrator](#orchestrator): `antiphon orchestrator serve`
- [Sidecar](#sidecar): `antiphon sidecar run`

Sizes are in bytes. Durations are written 500ms, 30s, 5m, 1h, for the orchestrator 7d and 1h30m as well. Paths in a file
are relative to it.

## Orchestrator

A flag wins over a variable, that over the file that `--config` (or `ANTIPHON_ORCHESTRATOR_CONFIG`) names, that over the
default. The setting `api.call_burst` is the flag `--api-call-burst`, the variable
`ANTIPHON_ORCHESTRATOR_API_CALL_BURST`, and in the file

```toml
[api]
call_burst = 8000
```

Lists are written `a,b` in flags and variables. `antiphon orchestrator check` says what is in force, and where each
value came from. What those of `schedule` do together is in [scheduling](../scheduling.md), limits at work in
[operations](../operations.md).
"""
_SIDECAR = """
## Sidecar

The file is named by `--config` (or `ANTIPHON_SIDECAR_CONFIG`). Keys of the top level are also flags (`--run-folder`)
and variables (`ANTIPHON_SIDECAR_RUN_FOLDER`), of which a flag wins over a variable, that over the file. The join token
is best given as `ANTIPHON_TOKEN`, or in a file that `--token-file` or `ANTIPHON_TOKEN_FILE` names. What follows `--` is
the command of one agent, which needs no file. [Beside what exists](../sidecar.md) shows them at work.
"""
_TABLES: Mapping[str, tuple[type, str]] = {
    "": (sidecar.Config, ""),
    "[identity]": (
        sidecar.Files,
        "Instead of a token: a credential that something else keeps current, and that is read again as it changes.",
    ),
    "[socket]": (sidecar.SocketConfig, "Who may open the agents' sockets."),
    "[[agent]]": (sidecar.AgentConfig, "One of up to 64 agents beside this sidecar."),
    "[[agent.capability]]": (
        sidecar.CapabilityConfig,
        "What an adapter offers; an agent that speaks gRPC says it itself.",
    ),
    '[[agent.capability]] with adapter = "http"': (sidecar.HttpCall, "How the service is asked; in the same table."),
}


def page() -> str:
    """The whole page."""
    known = flags()
    parts = [_HEAD]
    for section, (_, words) in SECTIONS.items():
        own = [flag for flag in known if flag.key.rpartition(".")[0] == section]
        text = f"{words[0].upper()}{words[1:]}."
        if section == "join":
            text = f"{text[:-1]}, as those of `api`, with these defaults:"
            usual = {flag.key.partition(".")[2]: flag.default for flag in known if flag.key.startswith("api.")}
            own = [flag for flag in own if usual[flag.key.partition(".")[2]] != flag.default]
        parts += [f"\n### `[{section}]`\n\n{text}\n" if section else "", "\n", _table(own)]
    parts.append(_SIDECAR)
    for name, (kind, text) in _TABLES.items():
        parts += [f"\n### `{name}`\n\n{text}\n" if name else "", "\n", _table(_keys(kind))]
    return "".join(parts)


def _keys(kind: Any) -> Iterable[Flag]:
    """The keys of one of the sidecar's tables: fields that are no tables of their own and have a meaning."""
    words = meanings(kind)
    for item in fields(kind):
        if item.name in words:
            required = item.default is MISSING and item.default_factory is MISSING
            default = "" if item.default is MISSING else shown(item.default)
            if kind is sidecar.SocketConfig and item.name == "mode":
                default = f"{item.default:04o}"
            yield Flag(item.name, "", "", default, f"Required. {words[item.name]}" if required else words[item.name])


def _table(rows: Iterable[Flag]) -> str:
    lines = ["| setting | default | |", "|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        meaning = row.meaning.replace("|", "\\|")
        lines.append(f"| `{row.key.rpartition('.')[2]}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    text = page()
    path = ROOT / PAGE
    if path.exists() and path.read_text() == text:
        print(f"{PAGE} is up to date")
        return 0
    if "--check" in arguments:
        print(f"{PAGE} differs from what the source says; run: make gen")
        return 1
    path.write_text(text)
    print(f"{PAGE} is written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
