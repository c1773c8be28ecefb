"""Where an etcd cluster is, as it is written in one setting: `etcd://host1:2379,host2:2379/prefix`. Pure.

Several programs may share a cluster, so every key of ours lies below the prefix, which is never empty. Without TLS
anybody on the way could read and change everything, so plain text is for this machine alone; `etcd+plaintext://` says
that the network is trusted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

DEFAULT_PREFIX = "antiphon"
DEFAULT_PORT = 2379

_SCHEMES = ("etcd", "etcd+plaintext")
_ENDPOINT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_LONGEST_PREFIX = 64
_MOST_ENDPOINTS = 16
_EXAMPLE = "etcd://host1:2379,host2:2379/antiphon"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: who may sign the cluster's certificates and, where it asks for one, our own certificate and key."""

    ca: Path
    certificate: Path | None = None
    private_key: Path | None = None


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """`endpoints` are host:port. `prefix` ends with "/". Without `tls` everything goes in plain text."""

    endpoints: tuple[str, ...]
    prefix: bytes
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        return ",".join(self.endpoints)

    @property
    def local(self) -> bool:
        """Whether all of it is on this machine."""
        return all(map(_is_loopback, self.endpoints))


def parse(text: str, tls: TlsFiles | None) -> EtcdAddress:
    """The address that a setting spells. Raises ValueError, which says what to write instead."""
    scheme, found, rest = text.partition("://")
    if not found or scheme not in _SCHEMES:
        raise ValueError(f"write an address such as {_EXAMPLE}, not {text!r}")
    hosts, slash, prefix = rest.partition("/")
    prefix = prefix.rstrip("/") if slash else ""
    prefix = prefix or DEFAULT_PREFIX
    if _PREFIX.fullmatch(prefix) is None or len(prefix) > _LONGEST_PREFIX:
        raise ValueError(f"write a prefix of letters, digits and ._-/ up to {_LONGEST_PREFIX} long, not {prefix!r}")
    endpoints = tuple(dict.fromkeys(_endpoint(host) for host in hosts.split(",")))
    if len(endpoints) > _MOST_ENDPOINTS:
        raise ValueError(f"write at most {_MOST_ENDPOINTS} endpoints, not {len(endpoints)}")
    trusted = scheme == "etcd+plaintext"
    if trusted and tls is not None:
        raise ValueError("etcd+plaintext:// and store_ca exclude each other; write etcd:// for TLS")
    address = EtcdAddress(endpoints, prefix.encode() + b"/", tls)
    if tls is None and not trusted and not address.local:
        raise ValueError(
            "give store_ca, so that the cluster is reached by TLS; only on this machine may it be plain text, "
            "or with etcd+plaintext:// on a network that nobody else can reach"
        )
    return address


def _endpoint(text: str) -> str:
    match = _ENDPOINT.fullmatch(text.strip())
    if match is None or not 0 < int(match["port"] or DEFAULT_PORT) < 65536:
        raise ValueError(f"write host:port, such as {_EXAMPLE}, not {text!r}")
    return f"{match['host']}:{match['port'] or DEFAULT_PORT}"


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
