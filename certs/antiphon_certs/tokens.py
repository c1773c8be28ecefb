"""Join tokens: how someone without a certificate gets the first one.

A token is the text `antiphon1.<base64url JSON>`. It carries whom its bearer may become, what it will be granted,
where to join, and the root certificate, so that the joiner pins TLS to that root and the secret never goes to a
stranger. The server keeps a `TokenRecord` with a hash. Pure functions: single use is enforced by whoever stores the
record, with one compare-and-put of the consumed record, before anything is issued.

Invariants: the secret is in `text()` only, never in a repr, a message or a record; a token has one spelling, so a
text that parses differs in meaning from every other text that parses.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .certificate import fingerprint, load_chain, to_pem, trust_domain_of
from .errors import TokenError, TokenReason
from .grants import Grants
from .names import Identity, check_address

LONGEST_TOKEN_LIFETIME = timedelta(hours=24)
_PREFIX = "antiphon1."
_TEXT_LENGTH = 16 * 1024
_MAX_ADDRESSES = 16
_MAX_CERTIFICATES = 16
_TOKEN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A parsed token, as its bearer sees it."""

    token_id: str
    secret: bytes = field(repr=False)
    identity: Identity
    grants: Grants
    addresses: tuple[str, ...]
    """`host:port` of the listeners with mutual TLS, for everything after the join."""
    join_addresses: tuple[str, ...]
    """`host:port` of the listeners with server TLS only, where the token is accepted."""
    root_pem: bytes = field(repr=False)
    """The only certificate to trust while joining."""
    expire_time: datetime

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """The token spelled `text`; white space is ignored, since terminals wrap long lines.

        Raises `TokenError` (MALFORMED). Expiry is not checked.
        """
        text = "".join(text.split())
        if not text.startswith(_PREFIX) or len(text) > _TEXT_LENGTH:
            raise TokenError(TokenReason.MALFORMED, f"this is not a join token: it must begin with '{_PREFIX}'")
        token = _decode(text.removeprefix(_PREFIX))
        # One comparison refuses unknown fields, other spellings of a number or string, and loose base64.
        if token is None or token.text() != text:
            raise TokenError(TokenReason.MALFORMED, "the join token is damaged; copy it again, whole")
        return token

    def text(self) -> str:
        """The printable form. It holds the secret: show it once, to the person who asked for it."""
        root = load_chain(self.root_pem)[0]
        body = {
            "addresses": list(self.addresses),
            "expire": int(self.expire_time.timestamp()),
            "fingerprint": fingerprint(root),
            "grants": self.grants.to_json(),
            "id": self.token_id,
            "identity": self.identity.uri,
            "join_addresses": list(self.join_addresses),
            "root": b64encode(root.public_bytes(Encoding.DER)).decode(),
            "secret": self.secret.hex(),
        }
        return _PREFIX + urlsafe_b64encode(_dump(body)).rstrip(b"=").decode()

    def check_not_expired(self, now: datetime) -> None:
        """What a joiner asks before it dials. Raises `TokenError` (EXPIRED)."""
        _check_not_expired(self.expire_time, now)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What the server keeps of a token."""

    token_id: str
    secret_digest: str
    """SHA-256, hexadecimal. A plain hash is enough: the secret is 32 random bytes, there is nothing to guess."""
    identity: Identity
    grants: Grants
    expire_time: datetime
    consumed_time: datetime | None = None
    request_digest: str | None = None
    """SHA-256 of the signing request that consumed the token, hexadecimal. The same request may come again, since its
    answer may have been lost; a certificate for the same key gives nobody anything new."""
    serials: tuple[str, ...] = ()
    """Serial numbers of the certificates it gave, lower-case hexadecimal: once one is revoked, it gives no more."""

    def consumed(self, csr_pem: bytes, now: datetime, serial: str) -> TokenRecord:
        """The record to put in place of this one, compared against this one, whenever the token gives a certificate."""
        first = self.consumed_time or now
        return replace(self, consumed_time=first, request_digest=_digest(csr_pem), serials=(*self.serials, serial))

    def to_json(self) -> str:
        """One line of JSON; equal records give equal text, so it can be compared in the store."""
        return _dump(
            {
                "consumed_time": self.consumed_time and self.consumed_time.isoformat(),
                "expire_time": self.expire_time.isoformat(),
                "grants": self.grants.to_json(),
                "identity": self.identity.uri,
                "request_digest": self.request_digest,
                "secret_digest": self.secret_digest,
                "serials": self.serials,
                "token_id": self.token_id,
            }
        ).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> TokenRecord:
        """Inverse of `to_json`. Raises `ValueError` for anything else: a damaged store, not a bad request."""
        try:
            value = json.loads(text)
            consumed = value["consumed_time"]
            return cls(
                value["token_id"],
                value["secret_digest"],
                Identity.parse(value["identity"]),
                Grants.from_json(value["grants"]),
                datetime.fromisoformat(value["expire_time"]),
                None if consumed is None else datetime.fromisoformat(consumed),
                value["request_digest"],
                tuple(value.get("serials", ())),  # a record of before has none
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a token record: {error!r}") from error


def mint(
    identity: Identity,
    grants: Grants,
    ttl: timedelta,
    *,
    root_pem: bytes,
    addresses: Sequence[str],
    join_addresses: Sequence[str],
    now: datetime,
) -> tuple[str, TokenRecord]:
    """A new token: its text for the bearer, its record for the store. `ttl` is 1 s to 24 h; times are whole seconds.

    `root_pem` is `Authority.root_pem`. Raises `TokenError` (MALFORMED) or `InvalidName` for arguments that make no
    token.
    """
    if not timedelta(seconds=1) <= ttl <= LONGEST_TOKEN_LIFETIME:
        raise TokenError(TokenReason.MALFORMED, "a join token lives between 1 second and 24 hours")
    expire_time = (now.astimezone(UTC) + ttl).replace(microsecond=0)
    secret = secrets.token_bytes(32)
    root = load_chain(root_pem)[0]
    token = JoinToken(
        secrets.token_hex(8),
        secret,
        identity,
        grants,
        tuple(addresses),
        tuple(join_addresses),
        to_pem(root),
        expire_time,
    )
    _check(token, root)
    text = token.text()
    if len(text) > _TEXT_LENGTH:
        raise TokenError(TokenReason.MALFORMED, "the join token would be too long; use fewer grants")
    return text, TokenRecord(token.token_id, _digest(secret), identity, grants, expire_time)


def verify(record: TokenRecord | None, secret: bytes, csr_pem: bytes, now: datetime) -> None:
    """Raise `TokenError` unless `secret` may have `csr_pem` signed by the token of `record`; None is an unknown id.

    The secret is compared first and in constant time, so a stranger learns nothing else about a token. When this passes
    put `record.consumed(csr_pem, now, serial)` in its place, compared, before the certificate leaves. Where
    `record.serials` has any, this is a repetition: there is none when one of them is revoked, and only so many.
    """
    if record is None:
        raise TokenError(TokenReason.UNKNOWN, "this orchestrator did not issue the join token, or no longer knows it")
    if not hmac.compare_digest(_digest(secret), record.secret_digest):
        raise TokenError(TokenReason.MISMATCH, "the join token is damaged or forged; copy it again, whole")
    other = record.consumed_time is not None and record.request_digest != _digest(csr_pem)
    if other or len(record.serials) >= _MAX_CERTIFICATES:
        raise TokenError(
            TokenReason.CONSUMED,
            f"the join token was used at {record.consumed_time:%Y-%m-%d %H:%M:%S} UTC and works once; get a new one",
        )
    _check_not_expired(record.expire_time, now)


def _decode(body: str) -> JoinToken | None:
    """The token in a body, or None: an exception could carry the secret into a log."""
    try:
        value: Any = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        root = x509.load_der_x509_certificate(b64decode(value["root"]))
        token = JoinToken(
            value["id"],
            bytes.fromhex(value["secret"]),
            Identity.parse(value["identity"]),
            Grants.from_json(value["grants"]),
            tuple(value["addresses"]),
            tuple(value["join_addresses"]),
            to_pem(root),
            datetime.fromtimestamp(value["expire"], UTC),
        )
        _check(token, root)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        OSError,
        RecursionError,
        TokenError,
        x509.InvalidVersion,
    ):
        return None
    return token


def _check(token: JoinToken, root: x509.Certificate) -> None:
    """What holds for every token, minted or parsed. Raises `TokenError` or `InvalidName`."""
    if len(token.secret) != 32 or not _TOKEN_ID.fullmatch(token.token_id):
        raise TokenError(TokenReason.MALFORMED, "a join token has an id and a secret of 32 bytes")
    if trust_domain_of(root) != token.identity.trust_domain:
        raise TokenError(TokenReason.MALFORMED, f"the root is not that of trust domain {token.identity.trust_domain}")
    for addresses in (token.addresses, token.join_addresses):
        if not 0 < len(addresses) <= _MAX_ADDRESSES:
            raise TokenError(TokenReason.MALFORMED, f"a join token names 1-{_MAX_ADDRESSES} addresses of each listener")
        for address in addresses:
            check_address(address)


def _check_not_expired(expire_time: datetime, now: datetime) -> None:
    if now >= expire_time:
        raise TokenError(
            TokenReason.EXPIRED, f"the join token expired at {expire_time:%Y-%m-%d %H:%M:%S} UTC; ask for a new one"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
