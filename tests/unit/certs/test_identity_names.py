"""Names: one identity, one spelling, and nothing else gets in."""

from __future__ import annotations

import pytest
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Identity, InvalidName, Kind, dns_name, parse_kind
from antiphon_certs.names import check_address, check_trust_domain
from hypothesis import example, given
from hypothesis import strategies as st

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
trust_domains = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda text: len(text) <= 100)
identities = st.builds(Identity, trust_domains, labels, st.sampled_from(Kind), labels)


@given(identities)
def test_an_identity_reads_back_from_its_uri(identity: Identity) -> None:
    assert Identity.parse(identity.uri) == identity
    assert str(identity) == identity.uri


@given(st.text() | st.from_regex(r"spiffe://[a-zA-Z0-9./_%-]{0,80}", fullmatch=True))
@example("spiffe://mesh.test/ns/a/sidecar/b/")
@example("spiffe://mesh.test/ns/a/sidecar//b")
@example("SPIFFE://mesh.test/ns/a/sidecar/b")
@example("spiffe://mesh.test/ns/a/sidecar/b\n")
@example("spiffe://user@mesh.test:1/ns/a/sidecar/b")
@example("spiffe://mesh.test/ns/a/sidecar/b?x=1")
def test_a_text_is_refused_or_is_the_one_spelling_of_an_identity(text: str) -> None:
    try:
        identity = Identity.parse(text)
    except InvalidName:
        return
    assert identity.uri == text


@given(identities, identities)
def test_two_identities_of_a_trust_domain_never_share_a_dns_name(one: Identity, other: Identity) -> None:
    other = Identity(one.trust_domain, other.namespace, other.kind, other.name)
    assert (dns_name(one) == dns_name(other)) == (one == other)


@given(identities)
def test_a_dns_name_is_valid_and_is_not_the_shared_one(identity: Identity) -> None:
    name = dns_name(identity)
    assert len(name) <= 253
    assert all(0 < len(label) <= 63 for label in name.split("."))
    assert name != ORCHESTRATOR_DNS_NAME


def test_the_longest_identity_has_a_valid_dns_name() -> None:
    longest = Identity("d" * 63 + "." + "e" * 36, "n" * 63, Kind.ORCHESTRATOR, "x" * 63)
    assert len(dns_name(longest)) <= 253


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a.b", "a/b", "é", "a" * 64, "a\n", "*"])
def test_a_name_outside_the_grammar_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        Identity("mesh.test", "team-a", Kind.CLIENT, name)
    with pytest.raises(InvalidName):
        Identity("mesh.test", name, Kind.CLIENT, "a")


@pytest.mark.parametrize("domain", ["", ".", "a.", ".a", "a..b", "A.b", "a_b", "a" * 64, ".".join("a" * 51)])
def test_a_trust_domain_outside_the_grammar_is_refused(domain: str) -> None:
    with pytest.raises(InvalidName):
        check_trust_domain(domain)


def test_an_unknown_kind_is_refused_with_the_list_of_kinds() -> None:
    with pytest.raises(InvalidName, match="orchestrator, sidecar, client, operator"):
        parse_kind("root")
    with pytest.raises(InvalidName):
        Identity("mesh.test", "a", "sidecar", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["127.0.0.1:7443", "[::1]:7443", "localhost:1", "a.b-c.example:65535"])
def test_an_address_is_host_and_port(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("address", ["", ":1", "a:", "a:0", "a:65536", "::1:1", "a b:1", 'a":1', "a\\:1", "dns:///a:1"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidName):
        check_address(address)
