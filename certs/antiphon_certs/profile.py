"""Where a command finds its own identity: a profile, a folder under `$ANTIPHON_HOME/profiles` (`~/.antiphon/profiles`).

It holds `profile.toml` (whom to dial, as whom) and the folder `credential`. Which profile: an argument, else
`ANTIPHON_PROFILE`, else `default`. A profile holds no policy and no secret besides the credential.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .credentials import CertificateFiles
from .errors import InvalidName, ProfileError
from .files import make_private_folder, replace_private
from .names import check_address, check_name, check_trust_domain

_OF_DEV = ("default", "operator")
"""The profiles that `antiphon dev` writes."""
_FILE = "profile.toml"


def profile_folder(name: str | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the named profile, or of the one the environment chooses. Raises `ProfileError`."""
    name = name or environ.get("ANTIPHON_PROFILE") or "default"
    try:
        check_name("profile", name)
    except InvalidName as error:
        raise ProfileError(str(error)) from error
    home = environ.get("ANTIPHON_HOME")
    return (Path(home) if home else Path.home() / ".antiphon") / "profiles" / name


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the orchestrators are, and the trust domain and namespace to work in. Raises `InvalidName`."""

    folder: Path
    addresses: tuple[str, ...]
    """`host:port` of the listeners with mutual TLS."""
    join_addresses: tuple[str, ...]
    """`host:port` of the listeners with server TLS only."""
    trust_domain: str
    namespace: str
    token_id: str = ""
    """The join token that it began with, where that is of interest: a sidecar is given its own at each start."""

    def __post_init__(self) -> None:
        for address in (*self.addresses, *self.join_addresses):
            check_address(address)
        check_trust_domain(self.trust_domain)
        check_name("namespace", self.namespace)

    @classmethod
    def load(cls, name: str | None = None, environ: Mapping[str, str] = os.environ) -> Profile:
        """The profile to use now. Raises `ProfileError` with its remedy."""
        folder = profile_folder(name, environ)
        path = folder / _FILE
        try:
            values = tomllib.loads(path.read_text("utf-8"))
            return cls(
                folder,
                _strings(values, "addresses"),
                _strings(values, "join_addresses"),
                _string(values, "trust_domain"),
                _string(values, "namespace"),
                _string(values, "token_id") if "token_id" in values else "",
            )
        except FileNotFoundError:
            raise ProfileError(f"there is no profile '{folder.name}' in {folder.parent}; {_remedy(folder)}") from None
        except OSError as error:
            raise ProfileError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ProfileError(f"{path} is not a profile: {error}; mend it, or {_remedy(folder)}") from error

    def save(self) -> None:
        """Write `profile.toml`, replacing an earlier one at once; a new folder gets mode 0700. Raises `OSError`."""
        make_private_folder(self.folder)
        values = {
            "addresses": list(self.addresses),
            "join_addresses": list(self.join_addresses),
            "trust_domain": self.trust_domain,
            "namespace": self.namespace,
        }
        if self.token_id:
            values["token_id"] = self.token_id
        # Within the grammar of these values (printable ASCII, no quotes or backslashes) JSON's spelling is TOML's.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        replace_private(self.folder / _FILE, text.encode())

    @property
    def credential(self) -> CertificateFiles:
        """The credential folder of this profile; it may still be empty."""
        return CertificateFiles(self.folder / "credential")


def _remedy(folder: Path) -> str:
    option = "" if folder.name == "default" else f" --profile {folder.name}"
    return f"run: {'antiphon dev  or  ' if folder.name in _OF_DEV else ''}antiphon certs join TOKEN{option}"


def _string(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise ValueError(f"'{key}' must be a string")
    return value


def _strings(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = values.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f"'{key}' must be a list of strings, not empty")
    return tuple(value)
