"""Where policies come from: the text of a folder of `*.cedar` files, or the development profile that ships with us.

A bundle is only text with an epoch; `rules.py` reads it. Nothing here is a default: without a bundle all is denied.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

# Finding the line of a mistake is quadratic in the size of a file: about a second at this size.
MAX_FILE_BYTES = 64 * 1024
MAX_FILES = 256


class PolicyError(ValueError):
    """Policies were refused. `problems`: every mistake found, each `file:line: what` where the line is known."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class PolicyFile(NamedTuple):
    """`name` is what error messages call the file."""

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
        if epoch < 1:
            raise ValueError(f"a policy epoch is at least 1, not {epoch}")
        ordered = tuple(sorted(files))
        # Texts only: the same policies are the same bundle wherever their folder lies.
        digest = hashlib.sha256(json.dumps([file.text for file in ordered]).encode()).hexdigest()
        return cls(epoch, ordered, digest)


def load_folder(folder: Path, *, epoch: int = 1) -> PolicyBundle:
    """The `*.cedar` files directly in a folder. Raises PolicyError if it holds none, or one cannot be read."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".cedar")
    except OSError as error:
        raise PolicyError([f"{folder}: cannot be read: {error.strerror}"]) from error
    if not paths:
        raise PolicyError([f"{folder}: holds no *.cedar file"])
    if len(paths) > MAX_FILES:
        raise PolicyError([f"{folder}: holds more than {MAX_FILES} *.cedar files"])
    files, problems = [], []
    for path in paths:
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                problems.append(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
            files.append(PolicyFile(str(path), data.decode()))
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            problems.append(f"{path}: is not UTF-8")
    if problems:
        raise PolicyError(problems)
    return PolicyBundle.of(epoch, files)


def dev_profile(*, epoch: int = 1) -> PolicyBundle:
    """The bundled development profile (`profiles/dev.cedar`)."""
    source = resources.files(__package__).joinpath("profiles/dev.cedar")
    return PolicyBundle.of(epoch, [PolicyFile("profiles/dev.cedar", source.read_text(encoding="utf-8"))])
