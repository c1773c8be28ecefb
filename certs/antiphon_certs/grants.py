"""What an identity may claim: agent names and capabilities, as patterns, carried inside its certificate.

Grants are fixed when a join token is made. They travel in a private X.509 extension, so that admission and renewal need
no lookup, and the holder cannot widen them without the authority's key. Absent grants allow nothing.

A pattern is letters, digits, `.`, `_`, `-` and `*`, where `*` stands for any run of characters, dots included:
`text.*` allows `text.summarize` and `text.pdf.extract`, not `text`. Matching is `fnmatch.fnmatchcase`, whose other
wildcards the grammar leaves out. A name being asked about never holds `*`, and carries no version (`@1`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from cryptography import x509

from .errors import InvalidGrants

# 32473 is the private enterprise number that RFC 5612 sets aside for uses without one of their own.
GRANTS_OID = x509.ObjectIdentifier("1.3.6.1.4.1.32473.1.1")
_ENCODED_LENGTH = 4096  # a certificate travels in every handshake; keep it within a few packets
_PATTERN = re.compile(r"[A-Za-z0-9._*-]{1,576}")
_ASKED = re.compile(r"[A-Za-z0-9._-]{1,576}")


@dataclass(frozen=True, slots=True)
class Grants:
    """Patterns of agent names and of capabilities. Raises `InvalidGrants`, also beyond 4 KiB encoded."""

    agents: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.agents, *self.capabilities):
            if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
                raise InvalidGrants(
                    f"{str(pattern)[:80]!r} is not a pattern: use letters, digits, '.', '_', '-', '*', as in 'text.*'"
                )
        if len(self.encode()) > _ENCODED_LENGTH:
            raise InvalidGrants(f"the grants exceed {_ENCODED_LENGTH} bytes; use patterns such as 'text.*'")

    def allows_agent(self, name: str) -> bool:
        """Whether an agent of this name may be presented."""
        return _allows(self.agents, name)

    def allows_capability(self, name: str) -> bool:
        """Whether a capability may be offered; `name` without its version, for example `text.summarize`."""
        return _allows(self.capabilities, name)

    def to_json(self) -> dict[str, list[str]]:
        """JSON-ready form; `from_json` is its inverse."""
        return {"agents": list(self.agents), "capabilities": list(self.capabilities)}

    @classmethod
    def from_json(cls, value: Any) -> Grants:
        """Inverse of `to_json`. Raises `InvalidGrants` for any other shape."""
        if not isinstance(value, dict) or value.keys() != {"agents", "capabilities"}:
            raise InvalidGrants("grants must be an object with 'agents' and 'capabilities'")
        if not all(isinstance(patterns, list) for patterns in value.values()):
            raise InvalidGrants("'agents' and 'capabilities' must be lists")
        return cls(tuple(value["agents"]), tuple(value["capabilities"]))

    def encode(self) -> bytes:
        """The extension's body: compact JSON, so that any tool that can show a certificate can show the grants."""
        return json.dumps(self.to_json(), separators=(",", ":")).encode()

    def extension(self) -> x509.UnrecognizedExtension:
        """The non-critical extension that carries these grants; software that does not know it ignores it."""
        return x509.UnrecognizedExtension(GRANTS_OID, self.encode())


def grants_of(certificate: x509.Certificate) -> Grants:
    """The grants a certificate carries; none at all when it has no such extension. Raises `InvalidGrants`."""
    try:
        extension = certificate.extensions.get_extension_for_oid(GRANTS_OID)
    except x509.ExtensionNotFound:
        return Grants()
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    if len(extension.value.value) > _ENCODED_LENGTH:
        raise InvalidGrants("the certificate's grants are too large")
    try:
        return Grants.from_json(json.loads(extension.value.value))
    except (ValueError, RecursionError) as error:
        raise InvalidGrants(f"the certificate's grants cannot be read: {error}") from error


def _allows(patterns: Iterable[str], name: str) -> bool:
    return _ASKED.fullmatch(name) is not None and any(fnmatchcase(name, pattern) for pattern in patterns)
