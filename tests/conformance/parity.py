"""The parity table of sdk/README.md, written from results: what each SDK passes.

It is text between two marks. The column of an SDK that was not run stays as it was, so that who lacks a language's
tools can write the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.conformance.executors import ROOT
from tests.conformance.runner import load, name_of

README = ROOT / "sdk/README.md"
BEGIN = "<!-- Written by `python -m tests.conformance --parity`; do not edit. -->\n"
END = "<!-- The end of what is written. -->\n"

Table = dict[str, dict[str, bool]]
"""Whether each case passed, by SDK and name."""


def rendered(table: Mapping[str, Mapping[str, bool]]) -> str:
    """The table, with its marks."""
    sdks = sorted(table)
    lines = [f"| case | {' | '.join(sdks)} | what it shows |", f"|---|{'---|' * len(sdks)}---|"]
    for case in load():
        marks = [{True: "yes", False: "**no**", None: ""}[table[sdk].get(name_of(case))] for sdk in sdks]
        lines.append(f"| {name_of(case)} | {' | '.join(marks)} | {case.meaning} |")
    return BEGIN + "\n".join(lines) + "\n" + END


def written() -> str:
    """What stands between the marks now, with them. Raises `ValueError` when they are not there."""
    text = README.read_text("utf-8")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def read() -> Table:
    """The table as it stands."""
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in written().splitlines() if "|" in line]
    if not rows:
        return {}
    table: Table = {sdk: {} for sdk in rows[0][1:-1]}
    for row in rows[2:]:
        for sdk, mark in zip(table, row[1:-1], strict=True):
            if mark:
                table[sdk][row[0]] = mark == "yes"
    return table


def write(table: Mapping[str, Mapping[str, bool]]) -> None:
    """Put a table between the marks."""
    README.write_text(README.read_text("utf-8").replace(written(), rendered(table)), "utf-8")
