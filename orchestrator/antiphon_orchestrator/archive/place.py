"""Where an archive is, as one URL says it: what is allowed there, what of it may be shown, and who serves it.

`sqlite:///FILE`, or `postgresql://USER@HOST/DATABASE?sslmode=…&sslrootcert=…` with what libpq knows besides. Across a
network the database must prove who it is, since it is handed everything that runs hold; there is no switch for less.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from .port import Archive
from .sqlite import SqliteArchive

_POSTGRES = ("postgresql", "postgres")
_PROVING = ("verify-full", "verify-ca")
_SECRETS = frozenset({"password", "sslpassword"})
_HIDDEN = "***"


def check_url(url: str) -> None:
    """Raises ValueError, which holds no secret, for what is no place of an archive."""
    parts = _split(url)
    if parts.scheme == "sqlite":
        if parts.netloc or len(parts.path) < 2:
            raise ValueError("write sqlite:///FILE")
        return
    if parts.scheme not in _POSTGRES:
        raise ValueError("write sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    if not parts.path.strip("/"):
        raise ValueError("the database has no name: write postgresql://USER@HOST/DATABASE")
    if not hosts(url):  # else PGHOST would decide, and what is asked of a network with it
        raise ValueError("the server has no name: write postgresql://USER@HOST/DATABASE")
    mode = dict(parse_qsl(parts.query)).get("sslmode")
    if mode not in (None, *_PROVING) and not all(map(_is_here, hosts(url))):
        raise ValueError(f"sslmode={mode} across a network: write sslmode=verify-full, and sslrootcert=FILE with it")


def shown_url(url: str) -> str:
    """The URL without its secrets, for logs and people."""
    try:
        parts = _split(url)
    except ValueError:
        return _HIDDEN
    user, at, address = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    query = urlencode([(key, _HIDDEN if key in _SECRETS else value) for key, value in _query(parts)], safe="/*:,")
    return urlunsplit(parts._replace(netloc=f"{name}{f':{_HIDDEN}' if colon else ''}{at}{address}", query=query))


def hosts(url: str) -> list[str]:
    """The hosts of a PostgreSQL URL, without ports; a path is the folder of a socket."""
    parts = _split(url)
    said = [host.rpartition(":")[0] if _has_port(host) else host for host in parts.netloc.rpartition("@")[2].split(",")]
    said += [host for key, value in _query(parts) if key == "host" for host in value.split(",")]
    return [host.strip("[]") for host in said if host]


def root_file(url: str) -> Path | None:
    """The file of the authorities that a PostgreSQL URL names."""
    named = dict(_query(_split(url))).get("sslrootcert")
    return Path(named) if named else None


def proving(url: str) -> str:
    """The URL with the sslmode that holds when it says none: across a network the server proves its name."""
    parts = _split(url)
    if any(key == "sslmode" for key, _ in _query(parts)) or all(map(_is_here, hosts(url))):
        return url
    query = [*_query(parts), ("sslmode", "verify-full")]
    return urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))


def archive_at(url: str, password_file: Path | None = None) -> Archive:
    """The archive of a checked URL, not opened yet."""
    if _split(url).scheme == "sqlite":
        return SqliteArchive(url)
    from .postgres import PostgresArchive  # 10 MB that an orchestrator with an archive of its own does without

    return PostgresArchive(url, password_file)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError("this is no URL; write sqlite:///FILE or postgresql://USER@HOST/DATABASE") from None


def _query(parts: SplitResult) -> list[tuple[str, str]]:
    return parse_qsl(parts.query, keep_blank_values=True)


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and (host.count(":") == 1 or "]:" in host)


def _is_here(host: str) -> bool:
    """Whether what is said to this host stays on this machine."""
    if host.startswith(("/", "%2F", "%2f")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
