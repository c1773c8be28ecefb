"""Who someone is: `spiffe://<trust domain>/ns/<namespace>/<kind>/<name>`.

Invariants: an `Identity` that exists is valid; one identity has one spelling, as URI and as DNS name; no two identities
of a trust domain share a DNS name. Namespace and name are single lowercase DNS labels, so nothing a user chooses can
hold a separator of a URI, a DNS name or a store key. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from .errors import InvalidName

ORCHESTRATOR_DNS_NAME = "orchestrator.antiphon.internal"
"""In the certificate of every orchestrator and of nothing else. A gRPC client in Python checks a server by DNS name
only, so it overrides the target name with this one, whatever address it dialled. Three labels: no `dns_name` can
equal it."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(_LABEL)
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# 63 (name) + 12 (kind) + 63 (namespace) + 3 dots + 100 = 241: every DNS name we derive stays within 253.
_TRUST_DOMAIN_LENGTH = 100
_URI_LENGTH = 300
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")


class Kind(StrEnum):
    """What an identity may be; access rules are written in these words."""

    ORCHESTRATOR = "orchestrator"
    SIDECAR = "sidecar"
    CLIENT = "client"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Identity:
    """One member of a trust domain. Hashable. Raises `InvalidName` for anything outside the grammar."""

    trust_domain: str
    namespace: str
    kind: Kind
    name: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        check_name("namespace", self.namespace)
        check_name("name", self.name)
        if not isinstance(self.kind, Kind):
            raise InvalidName(f"identity kind must be a Kind, not {self.kind!r}")

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """The identity a SPIFFE id names; the only spelling accepted is the one `uri` produces."""
        parts = uri.split("/") if len(uri) <= _URI_LENGTH else []
        if len(parts) != 7 or parts[0] != "spiffe:" or parts[1] or parts[3] != "ns":
            raise InvalidName(f"{uri[:80]!r} is not spiffe://<trust domain>/ns/<namespace>/<kind>/<name>")
        return cls(parts[2], parts[4], parse_kind(parts[5]), parts[6])

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/{self.kind.value}/{self.name}"

    def __str__(self) -> str:
        return self.uri


def dns_name(identity: Identity) -> str:
    """The DNS name of an identity, at most 253 characters; it goes into the certificate and need not resolve."""
    return f"{identity.name}.{identity.kind.value}.{identity.namespace}.{identity.trust_domain}"


def parse_kind(text: str) -> Kind:
    """The kind spelled `text`. Raises `InvalidName` that lists the kinds."""
    try:
        return Kind(text)
    except ValueError:
        raise InvalidName(f"{text[:80]!r} is not an identity kind; use one of {', '.join(Kind)}") from None


def check_name(what: str, text: str) -> None:
    """Raise `InvalidName` unless `text` is one lowercase DNS label; `what` names it in the message."""
    if not _NAME.fullmatch(text):
        raise InvalidName(
            f"{what} {text[:80]!r} must be 1-63 lowercase letters, digits and inner hyphens, for example 'team-a'"
        )


def check_trust_domain(text: str) -> None:
    """Raise `InvalidName` unless `text` is a lowercase dotted DNS name of at most 100 characters."""
    if len(text) > _TRUST_DOMAIN_LENGTH or not is_dns_name(text):
        raise InvalidName(
            f"trust domain {text[:80]!r} must be a lowercase DNS name of at most {_TRUST_DOMAIN_LENGTH} characters"
        )


def is_dns_name(text: str) -> bool:
    """Whether `text` is a lowercase DNS name of at most 253 characters, without wildcard."""
    return len(text) <= 253 and _DNS_NAME.fullmatch(text) is not None


def check_address(text: str) -> None:
    """Raise `InvalidName` unless `text` is `host:port` or `[ipv6]:port`."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[1]) <= 65535:
        raise InvalidName(f"address {text[:80]!r} must be host:port, for example 'orchestrator.example:7443'")
