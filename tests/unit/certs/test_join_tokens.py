"""Join tokens: damage is noticed, secrets stay secret, and each refusal says why."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from antiphon_certs import (
    Authority,
    Grants,
    Identity,
    InvalidName,
    JoinToken,
    Kind,
    TokenError,
    TokenReason,
    TokenRecord,
    mint,
    verify,
)
from hypothesis import given, settings
from hypothesis import strategies as st

TTL = timedelta(minutes=10)
REQUEST = b"a signing request"
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
patterns = st.lists(st.from_regex(r"[a-z.*]{1,20}", fullmatch=True), max_size=4).map(tuple)


@pytest.fixture(scope="session")
def minted(authority: Authority, sidecar: Identity, now: datetime) -> tuple[str, TokenRecord]:
    return mint_for(authority, sidecar, now)


def mint_for(
    authority: Authority, identity: Identity, now: datetime, grants: Grants | None = None, ttl: timedelta = TTL
) -> tuple[str, TokenRecord]:
    return mint(
        identity,
        grants or Grants(("writer",), ("text.*",)),
        ttl,
        root_pem=authority.root_pem,
        addresses=["127.0.0.1:7443", "[::1]:7443"],
        join_addresses=["127.0.0.1:7444"],
        now=now,
    )


def body_of(text: str) -> dict[str, object]:
    encoded = text.removeprefix("antiphon1.")
    body: dict[str, object] = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    return body


def text_of(body: object) -> str:
    data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return "antiphon1." + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def reason_of(text: str) -> TokenReason:
    with pytest.raises(TokenError) as caught:
        JoinToken.parse(text)
    return caught.value.reason


def refusal(record: TokenRecord | None, secret: bytes, now: datetime, request: bytes = REQUEST) -> TokenReason:
    with pytest.raises(TokenError) as caught:
        verify(record, secret, request, now)
    return caught.value.reason


def test_a_token_carries_everything_a_joiner_needs(
    authority: Authority, sidecar: Identity, now: datetime, minted: tuple[str, TokenRecord]
) -> None:
    token, record = JoinToken.parse(minted[0]), minted[1]
    assert token.identity == record.identity == sidecar
    assert token.grants == record.grants == Grants(("writer",), ("text.*",))
    assert token.expire_time == record.expire_time == now + TTL
    assert token.token_id == record.token_id
    assert token.addresses == ("127.0.0.1:7443", "[::1]:7443")
    assert token.join_addresses == ("127.0.0.1:7444",)
    assert token.root_pem == authority.root_pem
    verify(record, token.secret, REQUEST, now)


@settings(max_examples=40, deadline=None)
@given(labels, st.sampled_from(Kind), labels, patterns, patterns)
def test_every_token_reads_back(
    authority: Authority,
    now: datetime,
    namespace: str,
    kind: Kind,
    name: str,
    agents: tuple[str, ...],
    capabilities: tuple[str, ...],
) -> None:
    identity, grants = Identity("mesh.test", namespace, kind, name), Grants(agents, capabilities)
    text, record = mint_for(authority, identity, now, grants)
    token = JoinToken.parse(text)
    assert token.text() == text
    assert (token.identity, token.grants) == (identity, Grants(agents, capabilities))
    assert TokenRecord.from_json(record.to_json()) == record


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_makes_another_token(minted: tuple[str, TokenRecord], data: st.DataObject) -> None:
    text = minted[0]
    position = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.characters(max_codepoint=255).filter(lambda character: character != text[position]))
    try:
        changed = JoinToken.parse(text[:position] + byte + text[position + 1 :])
    except TokenError as error:
        assert error.reason is TokenReason.MALFORMED
    else:
        assert changed != JoinToken.parse(text)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_other_text_is_malformed(text: str) -> None:
    assert reason_of(text) is TokenReason.MALFORMED
    assert reason_of("antiphon1." + text) is TokenReason.MALFORMED


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"secret": "00"},
        {"secret": "00" * 33},
        {"secret": None},
        {"id": "../../x"},
        {"id": 7},
        {"identity": "spiffe://other.test/ns/team-a/sidecar/edge-1"},
        {"identity": "https://mesh.test"},
        {"grants": {"agents": ["[a]"], "capabilities": []}},
        {"grants": []},
        {"addresses": []},
        {"addresses": ["a:1"] * 17},
        {"addresses": "a:1"},
        {"addresses": [1]},
        {"join_addresses": ["nowhere"]},
        {"expire": "tomorrow"},
        {"expire": True},
        {"expire": 1.5},
        {"expire": 10**30},
        {"fingerprint": "0" * 64},
        {"root": "AAAA"},
    ],
)
def test_a_token_that_was_tampered_with_is_malformed(
    minted: tuple[str, TokenRecord], change: dict[str, object]
) -> None:
    assert reason_of(text_of(body_of(minted[0]) | change)) is TokenReason.MALFORMED


@pytest.mark.parametrize("value", [None, [], 1, "x", {}])
def test_a_body_that_is_no_object_is_malformed(value: object) -> None:
    assert reason_of(text_of(value)) is TokenReason.MALFORMED


def test_deep_nesting_and_great_length_are_malformed() -> None:
    nested = base64.urlsafe_b64encode(b"[" * 9000).rstrip(b"=").decode()
    assert reason_of("antiphon1." + nested) is TokenReason.MALFORMED
    assert reason_of("antiphon1." + "A" * 100_000) is TokenReason.MALFORMED


def test_a_token_survives_being_wrapped_by_a_terminal(minted: tuple[str, TokenRecord]) -> None:
    text = minted[0]
    wrapped = "\n".join(text[start : start + 80] for start in range(0, len(text), 80))
    assert JoinToken.parse(f"  {wrapped}\n") == JoinToken.parse(text)


def test_the_secret_shows_nowhere_but_in_the_text(minted: tuple[str, TokenRecord]) -> None:
    text, record = minted
    token = JoinToken.parse(text)
    for shown in (repr(token), str(token), repr(record), record.to_json()):
        assert token.secret.hex() not in shown
        assert repr(token.secret) not in shown
    with pytest.raises(TokenError) as caught:
        JoinToken.parse(text[:-2])
    assert text[20:60] not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_no_two_tokens_are_alike(authority: Authority, sidecar: Identity, now: datetime) -> None:
    one, other = (JoinToken.parse(mint_for(authority, sidecar, now)[0]) for _ in range(2))
    assert one.token_id != other.token_id
    assert one.secret != other.secret


def test_each_refusal_has_its_reason(minted: tuple[str, TokenRecord], now: datetime) -> None:
    text, record = minted
    secret = JoinToken.parse(text).secret
    wrong = bytes(32)
    assert refusal(None, secret, now) is TokenReason.UNKNOWN
    assert refusal(record, wrong, now) is TokenReason.MISMATCH
    assert refusal(record, secret, now + TTL) is TokenReason.EXPIRED
    assert refusal(record.consumed(b"another request", now, "1"), secret, now) is TokenReason.CONSUMED
    verify(record, secret, REQUEST, now + TTL - timedelta(seconds=1))


def test_the_same_request_may_come_again_within_the_lifetime(minted: tuple[str, TokenRecord], now: datetime) -> None:
    secret, used = JoinToken.parse(minted[0]).secret, minted[1].consumed(REQUEST, now, "1")
    verify(used, secret, REQUEST, now)
    assert refusal(used, bytes(32), now) is TokenReason.MISMATCH
    assert refusal(used, secret, now, b"another request") is TokenReason.CONSUMED
    assert refusal(used, secret, now + TTL) is TokenReason.EXPIRED
    for number in range(15):
        verify(used, secret, REQUEST, now)
        used = used.consumed(REQUEST, now + timedelta(seconds=1), f"a{number}")
    assert used.consumed_time == now and len(used.serials) == 16
    assert refusal(used, secret, now) is TokenReason.CONSUMED


def test_a_wrong_secret_learns_nothing_about_the_token(minted: tuple[str, TokenRecord], now: datetime) -> None:
    used = minted[1].consumed(b"another request", now, "1")
    assert refusal(used, bytes(32), now + TTL) is TokenReason.MISMATCH


def test_a_joiner_can_tell_that_its_token_expired(minted: tuple[str, TokenRecord], now: datetime) -> None:
    token = JoinToken.parse(minted[0])
    token.check_not_expired(now)
    with pytest.raises(TokenError) as caught:
        token.check_not_expired(now + TTL)
    assert caught.value.reason is TokenReason.EXPIRED


def test_a_consumed_record_reads_back(minted: tuple[str, TokenRecord], now: datetime) -> None:
    used = minted[1].consumed(REQUEST, now + timedelta(microseconds=1), "1")
    assert TokenRecord.from_json(used.to_json().encode()) == used
    before = {key: value for key, value in json.loads(used.to_json()).items() if key != "serials"}
    assert TokenRecord.from_json(json.dumps(before)) == replace(used, serials=())


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"consumed_time": null}'])
def test_a_damaged_record_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        TokenRecord.from_json(text)


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta(hours=25)])
def test_a_lifetime_out_of_range_makes_no_token(
    authority: Authority, sidecar: Identity, now: datetime, ttl: timedelta
) -> None:
    with pytest.raises(TokenError, match="24 hours"):
        mint_for(authority, sidecar, now, ttl=ttl)


def test_arguments_that_make_no_token_are_refused(authority: Authority, sidecar: Identity, now: datetime) -> None:
    foreign = Identity("other.test", "team-a", Kind.SIDECAR, "edge-1")
    with pytest.raises(TokenError, match="trust domain"):
        mint_for(authority, foreign, now)
    root_pem = authority.root_pem
    with pytest.raises(InvalidName):
        mint(sidecar, Grants(), TTL, root_pem=root_pem, addresses=["nowhere"], join_addresses=["a:1"], now=now)
