"""The report of a review: rows out of the tasks' outputs, and the two files made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from antiphon.v1 import run_pb2 as pb

_KINDS = ("permissive", "weak-copyleft", "strong-copyleft", "proprietary", "unknown")
_KINDS_BY_CONCERN = ("proprietary", "strong-copyleft", "unknown", "weak-copyleft", "permissive")


@dataclass(frozen=True, slots=True)
class Row:
    """One package."""

    name: str
    version: str
    homepage: str
    kind: str
    license: str
    evidence: str
    doubt: str
    about: str
    summary: str
    contacts: str
    redactions: int


@dataclass(frozen=True, slots=True)
class Report:
    """The whole; `totals` is the run's own output."""

    folder: str
    run_id: str
    totals: dict[str, Any]
    rows: tuple[Row, ...]


def report_of(folder: Path, run: pb.Run, tasks: Sequence[pb.Task]) -> Report:
    """The report of a run that has succeeded; `tasks` with payloads."""
    outputs: dict[str, list[Any]] = {"read": [], "classify": [], "summarize": [], "redact": []}
    for task in tasks:
        if task.key.member:
            outputs[task.key.task_id].append(json.loads(task.output.inline))
    rows = tuple(_row(*parts) for parts in zip(*outputs.values(), strict=True))
    return Report(str(folder), run.run_id, json.loads(run.output.inline), rows)


def _row(package: Any, verdict: Any, summarized: Any, redacted: Any) -> Row:
    return Row(
        name=package["name"],
        version=package["version"],
        homepage=package["homepage"],
        kind=verdict["kind"],
        license=verdict["license"],
        evidence=verdict["evidence"],
        doubt=verdict["doubt"],
        about=package["summary"],
        summary=summarized["summary"],
        contacts=redacted["text"],
        redactions=redacted["redactions"],
    )


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write report.md and report.json into a folder; their paths. Raises `OSError`."""
    markdown, data = folder / "report.md", folder / "report.json"
    markdown.write_text(to_markdown(report), "utf-8")
    data.write_text(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return markdown, data


def to_markdown(report: Report) -> str:
    """The report as people read it: the totals, what needs a person first, then every package."""
    flagged = sorted((row for row in report.rows if row.doubt), key=lambda row: _KINDS_BY_CONCERN.index(row.kind))
    parts = [
        "# Licences and contacts of the installed packages",
        f"{len(report.rows)} packages in `{report.folder}`, reviewed in run `{report.run_id}`. "
        "Found by rules in what the packages say of themselves; not legal advice.",
        "## Totals",
        _table(
            ("licence class", "packages", ""),
            [
                (kind, str(count), "█" * max(1, round(40 * count / len(report.rows))))
                for kind in _KINDS
                if (count := sum(row.kind == kind for row in report.rows))
            ],
        ),
        f"{sum(row.redactions for row in report.rows)} e-mail addresses, phone numbers and keys were blackened.",
        "## For a person to look at",
        _table(("package", "class", "why"), [(f"**{row.name}** {row.version}", row.kind, row.doubt) for row in flagged])
        if flagged
        else "Nothing: every package has an open licence, and ships its text.",
        "## Every package",
    ]
    for kind in _KINDS_BY_CONCERN:
        rows = [row for row in report.rows if row.kind == kind]
        if rows:
            parts.append(f"### {kind.capitalize()} ({len(rows)})")
            parts.append(_table(("package", "licence and evidence", "what it is", "contacts"), map(_cells, rows)))
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> tuple[str, str, str, str]:
    name = f"[{row.name}]({row.homepage})" if row.homepage.startswith("https://") else row.name
    license = f"**{row.license}**<br>{_plain(row.evidence)}" if row.license else _plain(row.evidence)
    what = "<br>".join(_plain(text) for text in (row.about, row.summary) if text)
    return f"{name} {row.version}", license, what, _plain(row.contacts)


def _table(heads: Sequence[str], rows: Any) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """A package's own words, which must neither break the table nor bring markup of theirs."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
