"""An agent that reads what is installed: the packages of a folder, their metadata and licences.

It reads only what a folder's *.dist-info and *.egg-info say, and never imports a package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from typing import Annotated

from antiphon import Agent, InvalidInput, Labels

DESCRIPTION = 5_000
LICENSE_TEXT = 3_000
SHORT = 300
MOST_PACKAGES = 1_000
METADATA = ("METADATA", "PKG-INFO", "")  # the last for metadata that is a file, not a folder

agent = Agent("inventory", concurrency=4)


@dataclass
class Folder:
    folder: str


@dataclass
class Packages:
    packages: list[str]
    """Names of the metadata folders, such as grpcio-1.80.0.dist-info."""


@dataclass
class Place:
    folder: str
    directory: str


@dataclass
class Package:
    """What a package says of itself, cut so that many fit into one run."""

    directory: str
    name: str
    version: str
    summary: str
    homepage: str
    expression: str
    license: str
    classifiers: list[str]
    license_files: list[str]
    license_text: str
    description: str
    contacts: Annotated[str, "Names and addresses of who made it.", Labels("pii")]


@agent.capability("package.list@1", effect="read", idempotent=True)
def list_packages(folder: Folder) -> Packages:
    """The packages installed in a folder."""
    note("package.list", "")
    try:
        entries = sorted(entry.name for entry in Path(folder.folder).iterdir())
    except OSError as error:
        raise InvalidInput(f"{folder.folder} cannot be read: {error.strerror}", field="/folder") from None
    found = [name for name in entries if name.endswith((".dist-info", ".egg-info"))]
    if not found:
        raise InvalidInput(f"{folder.folder} holds no installed packages", field="/folder")
    return Packages(found[:MOST_PACKAGES])


@agent.capability("package.read@1", effect="read", idempotent=True)
def read_package(place: Place) -> Package:
    """Metadata and licence text of one package."""
    note("package.read", place.directory)
    if "/" in place.directory:
        raise InvalidInput("must be the name of a folder, not a path", field="/directory")
    path = Path(place.folder, place.directory)
    meta = message_from_string(next(filter(None, map(Distribution.at(path).read_text, METADATA)), ""))
    field = _fields(meta)
    files = _license_files(path, field("License-File"))
    description = str(meta.get("Description") or meta.get_payload() or "")
    return Package(
        directory=place.directory,
        name=(field("Name") or [place.directory.partition("-")[0]])[0],
        version=(field("Version") or ["0"])[0],
        summary=" ".join(field("Summary"))[:SHORT],
        homepage=_homepage(field("Home-page"), field("Project-URL")),
        expression=" ".join(field("License-Expression"))[:SHORT],
        license=" ".join(" ".join(field("License")).split())[:SHORT],
        classifiers=[text for text in field("Classifier") if text.startswith("License ::")][:8],
        license_files=[file.name for file in files][:8],
        license_text=_text(files[0])[:LICENSE_TEXT] if files else "",
        description=description[:DESCRIPTION],
        contacts="; ".join(dict.fromkeys(field("Author", "Author-email", "Maintainer", "Maintainer-email")))[
            : 2 * SHORT
        ],
    )


def note(capability: str, subject: str) -> None:
    """Say in a file what is being worked on, for whoever wants to prove what ran, and how often."""
    journal = os.environ.get("COMPLIANCE_JOURNAL")
    if journal:
        with open(journal, "a", encoding="utf-8") as file:
            file.write(f"{capability}\t{subject}\t{os.getpid()}\n")


def _fields(meta: Message) -> Callable[..., list[str]]:
    def field(*names: str) -> list[str]:
        values = [str(value).strip() for name in names for value in meta.get_all(name) or ()]
        return [value for value in values if value and value != "UNKNOWN"]

    return field


def _homepage(pages: list[str], urls: list[str]) -> str:
    links = [(label.lower(), link.strip()) for label, _, link in (url.partition(",") for url in urls)]
    best = [link for word in ("home", "source", "repo", "git", "doc", "") for label, link in links if word in label]
    return (pages + best + [""])[0][:SHORT]


def _license_files(folder: Path, declared: list[str]) -> list[Path]:
    places = [folder / name for name in declared] + [folder / "licenses" / name for name in declared]
    places += sorted(path for path in folder.glob("*") if path.name.upper().startswith(("LICEN", "COPYING")))
    places += sorted((folder / "licenses").glob("**/*"))
    inside = folder.resolve()
    return [path for path in dict.fromkeys(places) if path.is_file() and path.resolve().is_relative_to(inside)]


def _text(path: Path) -> str:
    return path.read_bytes()[: 4 * LICENSE_TEXT].decode("utf-8", "replace")


if __name__ == "__main__":
    agent.run()
