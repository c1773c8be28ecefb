"""Where policies come from: the text of a folder of `*.cedar` files and its `roles.toml`, or the development profile.

A bundle is only text with an epoch; `rules.py` reads it. Nothing here is a default: without a bundle all is denied.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from antiphon_orchestrator.policy.roles import ROLES_FILE

MAX_FILE_BYTES = 64 * 1024
MAX_FILES = 32
MAX_BUNDLE_BYTES = 1024 * 1024
"""All files together: a bundle is one value of the store."""


class PolicyError(ValueError):
    """Policies were refused. `problems`: every mistake found, each `file:line: what` where the line is known."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class PolicyFile(NamedTuple):
    """`name` is that of the file, without its folder: `team.cedar`, or `roles.toml`."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """The policies of one epoch. Epochs only grow, are at least 1, and are given by whoever activates the bundle.

    `digest`: SHA-256 of the policy texts, in hex.
    """

    epoch: int
    files: tuple[PolicyFile, ...]
    digest: str

    @classmethod
    def of(cls, epoch: int, files: Iterable[PolicyFile]) -> "PolicyBundle":
        """Raises PolicyError for files that are too many or too large, ValueError for an epoch below 1."""
        if epoch < 1:
            raise ValueError(f"a policy epoch is at least 1, not {epoch}")
        ordered = tuple(sorted(files))
        problems = list(_sizes(ordered))
        if problems:
            raise PolicyError(problems)
        # Texts only: the same policies are the same bundle wherever their folder lies.
        digest = hashlib.sha256(json.dumps([file.text for file in ordered]).encode()).hexdigest()
        return cls(epoch, ordered, digest)


def load_folder(folder: Path, *, epoch: int = 1) -> PolicyBundle:
    """The `*.cedar` files directly in a folder, and its `roles.toml` if there is one.

    Raises PolicyError if it holds no policy, or a file cannot be read; problems begin with the file's path.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".cedar" or path.name == ROLES_FILE)
    except OSError as error:
        raise PolicyError([f"{folder}: cannot be read: {error.strerror}"]) from error
    if not any(path.suffix == ".cedar" for path in paths):
        raise PolicyError([f"{folder}: holds no *.cedar file"])
    if len(paths) > MAX_FILES:
        raise PolicyError([f"{folder}: holds more than {MAX_FILES} files of policies"])
    files, problems = [], []
    for path in paths:
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                problems.append(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
            files.append(PolicyFile(path.name, data.decode()))
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            problems.append(f"{path}: is not UTF-8")
    if problems:
        raise PolicyError(problems)
    return PolicyBundle.of(epoch, files)


def dev_profile(*, epoch: int = 1) -> PolicyBundle:
    """The bundled development profile (`profiles/`)."""
    folder = resources.files(__package__).joinpath("profiles")
    names = ("dev.cedar", ROLES_FILE)
    return PolicyBundle.of(epoch, [PolicyFile(name, folder.joinpath(name).read_text("utf-8")) for name in names])


def _sizes(files: tuple[PolicyFile, ...]) -> Iterator[str]:
    if len(files) > MAX_FILES:
        yield f"there are {len(files)} files of policies; {MAX_FILES} are the most"
    names = [file.name for file in files]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: is there twice"
    sizes = [len(file.text.encode()) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size > MAX_FILE_BYTES:
            yield f"{file.name}: is larger than {MAX_FILE_BYTES} bytes"
    if sum(sizes) > MAX_BUNDLE_BYTES:
        yield f"the files of policies are larger than {MAX_BUNDLE_BYTES} bytes together"
