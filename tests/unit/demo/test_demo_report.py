"""The report: what needs a person comes first, and no package can bring markup of its own."""

from __future__ import annotations

from dataclasses import replace

from antiphon_orchestrator.demo.report import Report, Row, to_markdown

PLAIN = Row("lib", "1.0", "https://lib.example", "permissive", "MIT", "License field: MIT", "", "A library.", "", "", 0)


def markdown(*rows: Row) -> str:
    return to_markdown(Report("/site", "r1", {}, rows))


def test_packages_in_doubt_stand_first_the_most_serious_at_the_top() -> None:
    weak = replace(PLAIN, name="weak", kind="weak-copyleft", doubt="look")
    strong = replace(PLAIN, name="strong", kind="strong-copyleft", doubt="look closer")
    text = markdown(PLAIN, weak, strong)
    assert (
        text.index("strong-copyleft | look closer") < text.index("weak-copyleft | look") < text.index("Every package")
    )
    assert "**lib**" not in text.partition("## Every package")[0]


def test_a_review_without_doubt_says_so() -> None:
    assert "Nothing: every package has an open licence" in markdown(PLAIN)


def test_a_package_cannot_break_the_table_or_bring_markup() -> None:
    text = markdown(replace(PLAIN, summary="x | <script>\n[y](z) `code`", homepage="javascript:alert(1)"))
    assert "x \\| \\<script\\> \\[y\\](z) \\`code\\`" in text
    assert "javascript" not in text
