"""Grants: what a pattern allows, and that nothing widens on the way through a certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from antiphon_certs import Authority, Credential, Grants, Identity, InvalidGrants, grants_of
from antiphon_certs.certificate import load_chain, new_key, subject
from antiphon_certs.grants import GRANTS_OID
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

patterns = st.from_regex(r"[A-Za-z0-9._*-]{1,40}", fullmatch=True)
grants = st.builds(Grants, *[st.lists(patterns, max_size=8).map(tuple)] * 2)


def extension_with(body: bytes, now: Any) -> x509.Certificate:
    """A certificate with this body as its grants."""
    key = new_key()
    builder = x509.CertificateBuilder(subject("a"), subject("a"), key.public_key(), 1, now, now)
    builder = builder.add_extension(x509.UnrecognizedExtension(GRANTS_OID, body), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("text.*", "text.summarize", True),
        ("text.*", "text.pdf.extract", True),
        ("text.*", "text", False),
        ("text.*", "texts.summarize", False),
        ("text.summarize", "text.summarize", True),
        ("text.summarize", "text.summarize2", False),
        ("text.summarize", "TEXT.summarize", False),
        ("*", "anything.at.all", True),
        ("*", "", False),
        ("*", "*", False),
        ("text.*", "text.*", False),
        ("text.*", "text.summarize@1", False),
        ("*", "a\nb", False),
    ],
)
def test_a_pattern_allows_what_it_says(pattern: str, name: str, allowed: bool) -> None:
    assert Grants(capabilities=(pattern,)).allows_capability(name) is allowed
    assert Grants(agents=(pattern,)).allows_agent(name) is allowed
    assert not Grants(agents=(pattern,)).allows_capability(name)


def test_no_grants_allow_nothing() -> None:
    assert not Grants().allows_agent("a")
    assert not Grants().allows_capability("a")


@pytest.mark.parametrize("pattern", ["", "a b", "[a-z]", "a?", "a/b", "text.*@1", "é", "a" * 577, "a\n"])
def test_a_pattern_outside_the_grammar_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidGrants):
        Grants(agents=(pattern,))


def test_grants_too_large_for_a_certificate_are_refused() -> None:
    with pytest.raises(InvalidGrants, match="4096"):
        Grants(capabilities=tuple(f"capability-{number}" for number in range(400)))


@given(grants)
def test_grants_read_back_from_json(value: Grants) -> None:
    assert Grants.from_json(json.loads(json.dumps(value.to_json()))) == value


def test_grants_read_back_from_a_certificate(
    authority: Authority, sidecar: Identity, credential_for: Callable[..., Credential]
) -> None:
    granted = Grants(("writer", "reader-*"), ("text.*", "license.classify"))
    leaf, intermediate = load_chain(credential_for(authority, sidecar, granted).chain_pem)
    assert grants_of(leaf) == granted
    assert grants_of(intermediate) == Grants()


def test_a_certificate_without_grants_allows_nothing(
    authority: Authority, sidecar: Identity, credential_for: Callable[..., Credential]
) -> None:
    assert credential_for(authority, sidecar).grants == Grants()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"agents":["a"]}',
        b'{"agents":"a","capabilities":[]}',
        b'{"agents":[1],"capabilities":[]}',
        b'{"agents":[],"capabilities":[],"more":[]}',
        b"[" * 4000,
        b" " * 5000 + b'{"agents":[],"capabilities":[]}',
    ],
)
def test_damaged_grants_are_an_error_and_never_a_grant(body: bytes, now: Any) -> None:
    with pytest.raises(InvalidGrants):
        grants_of(extension_with(body, now))
