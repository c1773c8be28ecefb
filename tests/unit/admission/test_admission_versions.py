"""Versions and what tasks require of them."""

import pytest
from antiphon_orchestrator.admission import Requirement, Version


@pytest.mark.parametrize(
    ("wanted", "fits", "fits_not"),
    [
        ("a.b@1", ["1", "1.0.0", "1.9.3"], ["0.9", "2", "10"]),
        ("a.b@1.2", ["1.2", "1.2.5", "1.10"], ["1", "1.1.9", "2.0"]),
        ("a.b@1.2.3", ["1.2.3", "1.3"], ["1.2.2", "2"]),
        ("a.b@=1.2.3", ["1.2.3"], ["1.2.4", "1.2"]),
        ("a.b@>=1,<3", ["1", "2.9.9"], ["0.9", "3"]),
        ("a.b@>=1, <=3", ["3"], ["3.0.1"]),
        ("a.b@>1", ["1.0.1", "7"], ["1"]),
    ],
)
def test_a_requirement_matches_its_versions(wanted: str, fits: list[str], fits_not: list[str]) -> None:
    requirement = Requirement.parse(wanted)
    assert requirement.name == "a.b"
    assert [text for text in fits if not requirement.matches(Version.parse(text))] == []
    assert [text for text in fits_not if requirement.matches(Version.parse(text))] == []


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("text.summarize", "has no version; write text.summarize@1"),
        ("Text@1", "lower case"),
        ("a..b@1", "lower case"),
        ("a@", "write 1, 1.2"),
        ("a@v1", "write 1, 1.2"),
        ("a@1.2.3.4", "is not a version"),
        ("a@1,2", "write 1, 1.2"),
        ("a@>=1,", "write 1, 1.2"),
        ("a@~1", "write 1, 1.2"),
        ("a@1@2", "write 1, 1.2"),
        ("a@1.", "is not a version"),
    ],
)
def test_what_is_no_requirement_is_refused_with_what_to_write(wanted: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Requirement.parse(wanted)


def test_versions_are_ordered_by_number_not_by_text() -> None:
    versions = [Version.parse(text) for text in ("10", "2.10", "2.9.1", "1.0.0", "1")]
    assert [str(version) for version in sorted(versions)] == ["1.0.0", "1.0.0", "2.9.1", "2.10.0", "10.0.0"]
    assert Version.parse("1") == Version.parse("1.0.0")
