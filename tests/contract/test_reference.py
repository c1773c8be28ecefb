"""The reference pages say what the contracts say of every method, message, field and reason; their links lead there.

That they are current is for `make check`; here is what the pages are made of.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.contract.contract import Contract

FOLDER = Path(__file__).resolve().parents[2] / "docs/reference"
PAGES = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
CONTRACTS = ("api.md", "errors.md", "access.md")
CONTRACT = Contract()
OUTSIDE = ("antiphon.v1.", "antiphon.mesh.v1.")


def rows(page: str) -> dict[str, list[str]]:
    """The rows of a page's table by their first cell's plain text."""
    found = {}
    for line in PAGES[page].splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[re.sub(r"<[^>]*>|[`\[\]]|\([^)]*\)", "", cells[0])] = cells
    return found


def anchors(page: str) -> list[str]:
    headings = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    return [re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_page_is_there_and_says_that_it_is_generated() -> None:
    assert set(PAGES) == {*CONTRACTS, "settings.md"}
    assert all("do not edit" in text for text in PAGES.values())


def test_every_method_is_in_the_access_table_as_its_options_say() -> None:
    table = rows("access.md")
    kinds = table.pop("method")[1:6]
    assert len(table) == len(CONTRACT.methods)
    for method in CONTRACT.methods.values():
        service, _, name = method.path.rpartition("/")
        row = table[f"{service.rpartition('.')[2]}.{name}"]
        may = {kind for kind, cell in zip(kinds, row[1:6], strict=True) if cell}
        assert may == (set(method.kinds) or set(kinds)), method.path
        assert row[7].replace(" ", "_") == method.listener
        assert row[8].replace(" ", "_") == method.idempotency


def test_every_reason_is_in_the_errors_table_as_the_registry_says() -> None:
    table = rows("errors.md")
    del table["reason"]
    assert list(table) == list(CONTRACT.reasons)
    for name, reason in CONTRACT.reasons.items():
        _, _, remedy, metadata, _, methods = table[name]
        assert set(re.findall(r"`(\w+)`", metadata)) == reason.keys
        assert (remedy == "retry") == reason.retry
        users = {method.path for method in CONTRACT.methods.values() if name in method.errors}
        assert (methods == "any") == reason.universal
        if not reason.universal:
            assert methods.count("](api.md#") == len(users)


def test_every_message_and_field_that_somebody_outside_can_meet_is_described() -> None:
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", PAGES["api.md"], re.MULTILINE | re.DOTALL))
    for message in CONTRACT.messages():
        if message.full_name.startswith(OUTSIDE):
            for field in message.fields:
                assert f"`{field.name}`" in sections[message.name], field.full_name
    assert all(text.strip() for text in sections.values())


@pytest.mark.parametrize("page", CONTRACTS)
def test_links_lead_somewhere(page: str) -> None:
    assert len(anchors(page)) == len(set(anchors(page)))
    for file, anchor in re.findall(r"\]\(([a-z.]*)(?:#([^)]*))?\)", PAGES[page]):
        target = file or page
        places = {*anchors(target), *re.findall(r'<a id="(.*?)"', PAGES[target])}
        assert not anchor or anchor in places, f"{target}#{anchor}"
