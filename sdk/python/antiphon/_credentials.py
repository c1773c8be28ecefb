"""Where a client finds its certificate and its orchestrators. Reads what antiphon_certs writes; writes nothing.

The layout, which is that package's to change: a profile is the folder `$ANTIPHON_HOME/profiles/NAME` (`~/.antiphon`
without the variable; NAME from `ANTIPHON_PROFILE`, else `default`) with `profile.toml` (`addresses`: a list of
host:port) and the folder `credential`, in which the symbolic link `current` points to a generation: a folder that never
changes, with `key.pem`, `cert.pem` (leaf first) and `bundle.pem`. Every orchestrator's certificate holds `SERVER_NAME`.
"""

from __future__ import annotations

import binascii
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ._errors import SetupError

SERVER_NAME = "orchestrator.antiphon.internal"
"""The DNS name every orchestrator shows, whatever address it was dialled at."""

_FILES = ("key.pem", "cert.pem", "bundle.pem")
_PEM = b"-----BEGIN "
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_JOIN = "run: antiphon dev  or  antiphon certs join TOKEN"
_VALIDITY = re.compile(rb"\x30\x1e\x17\x0d[0-9]{12}Z\x17\x0d([0-9]{12})Z")
"""In DER, of a certificate that ends before 2050: a SEQUENCE of two UTCTimes (RFC 5280, 4.1.2.5)."""
_ADDRESS = re.compile(r"unix:.+|(?:\[[^\s\[\]]+\]|[^\s:/,@\[\]]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Pem:
    """A key, its certificate chain and the roots to trust, as they were at one moment."""

    key: bytes = field(repr=False)
    chain: bytes = field(repr=False)
    bundle: bytes = field(repr=False)

    def not_after(self) -> datetime | None:
        """When the certificate ends; None where that cannot be told."""
        leaf = self.chain.partition(_PEM + b"CERTIFICATE-----")[2].partition(b"-----END ")[0]
        try:
            found = _VALIDITY.search(binascii.a2b_base64(leaf))
        except binascii.Error:
            return None  # gRPC has said so when it was given the certificate
        return datetime.strptime(f"{found[1].decode()}+0000", "%y%m%d%H%M%S%z") if found else None


@dataclass(frozen=True, slots=True)
class Credentials:
    """Three PEM files that may change while they are used: a client looks again every few seconds."""

    cert: Path
    key: Path
    bundle: Path
    _folder: Path | None = None

    @classmethod
    def from_files(cls, cert: str | Path, key: str | Path, bundle: str | Path) -> Credentials:
        """Certificate chain (leaf first), private key, and the roots to trust."""
        return cls(Path(cert), Path(key), Path(bundle))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Credentials:
        """A credential folder as `antiphon certs` writes it, such as that of a profile."""
        current = Path(folder) / "current"
        return cls(current / "cert.pem", current / "key.pem", current / "bundle.pem", Path(folder))

    def read(self) -> Pem:
        """What the files hold now. Raises `SetupError`, for one that holds no PEM (yet) as well."""
        try:
            if self._folder is None:
                return Pem(_content(self.key), _content(self.cert), _content(self.bundle))
            # The link once, so that key and certificate are of one generation whatever happens meanwhile.
            generation = self._folder / os.readlink(self._folder / "current")
            return Pem(*(_content(generation / name) for name in _FILES))
        except FileNotFoundError as error:
            raise SetupError(f"there is no certificate: {error.filename} does not exist; {_JOIN}") from None
        except OSError as error:
            raise SetupError(f"the certificate cannot be read: {error.filename}: {error.strerror}") from error


def _content(path: Path) -> bytes:
    """Raises `OSError`; `SetupError` for a file that is being written, say: of an empty one gRPC ends the process."""
    pem = path.read_bytes()
    if _PEM not in pem:
        raise SetupError(f"the certificate cannot be used: {path} holds no PEM; {_JOIN}")
    return pem


def check_addresses(addresses: Iterable[str]) -> None:
    """Raises `SetupError` for one that no orchestrator can be at: it would be dialled until a deadline passes."""
    for address in addresses:
        found = _ADDRESS.fullmatch(address)
        if found is None or not 0 < int(found["port"] or 1) <= 65_535:
            raise SetupError(
                f"{address[:200]!r} is not the address of an orchestrator: write host:port, without a scheme,"
                " such as mesh.example:7443 or [::1]:7443"
            )


@dataclass(frozen=True, slots=True)
class Profile:
    """Whom to dial, as whom."""

    addresses: tuple[str, ...]
    credentials: Credentials


def load_profile(name: str | None = None, environ: Mapping[str, str] = os.environ) -> Profile:
    """The named profile, or the one the environment chooses. Raises `SetupError` with its remedy."""
    name = name or environ.get("ANTIPHON_PROFILE") or "default"
    if not _NAME.fullmatch(name):
        raise SetupError(f"profile {name[:80]!r} must be 1-63 lowercase letters, digits and inner hyphens")
    home = environ.get("ANTIPHON_HOME")
    folder = (Path(home) if home else Path.home() / ".antiphon") / "profiles" / name
    path = folder / "profile.toml"
    try:
        addresses = tomllib.loads(path.read_text("utf-8")).get("addresses")
    except FileNotFoundError:
        raise SetupError(f"there is no profile '{name}' in {folder.parent}; {_JOIN}") from None
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SetupError(f"{path} is not a profile: {error}; mend it, or {_JOIN}") from error
    if not isinstance(addresses, list) or not addresses or not all(isinstance(one, str) for one in addresses):
        raise SetupError(f"{path} is not a profile: 'addresses' must be a list of host:port; mend it, or {_JOIN}")
    return Profile(tuple(addresses), Credentials.from_folder(folder / "credential"))
