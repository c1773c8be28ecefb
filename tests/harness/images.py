"""Images of a Dockerfile without a container engine: its stages as layers of an overlay, its RUN lines run in them.

What differs from a real build: the base image is this machine (with its Python at /usr/local, where the official image
has it), so what the base lacks or brings is not tested. Everything that the file itself says is done as it says:
folders, owners, users, what is copied and what `.dockerignore` keeps out. Needs root; what it makes lies in one folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

_LIMIT = 3600
PYTHON = Path(sys.base_prefix)


@dataclass(frozen=True)
class Image:
    """Layers, the upper one first, and what a container of it is started with."""

    layers: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()
    """Folders of this machine that must not be hidden."""

    def find(self, path: str) -> Path | None:
        """Where the image itself brings a path."""
        found = (layer / path.lstrip("/") for layer in self.layers)
        return next((place for place in found if place.exists()), None)


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    steps: tuple[tuple[str, str], ...]


def stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile, by name."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    found: dict[str, Stage] = {}
    for line in joined:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.split()
            stage = Stage(name, base, ())
        else:
            stage = replace(stage, steps=(*stage.steps, (word, rest.strip())))
        found[stage.name] = stage
    return found


class Builder:
    """Builds targets of one Dockerfile; each stage is built once. `context`: the folder that is sent to a build.

    With `installed` nothing is installed: what would be copied from another stage is this Python environment.
    """

    def __init__(self, dockerfile: Path, context: Path, folder: Path, installed: Path | None = None) -> None:
        self._installed = installed
        self._stages = stages(dockerfile.read_text())
        self._ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text()
        self._context = context
        self._folder = folder
        self._built: dict[str, Image] = {}
        self.ran: list[str] = []
        """Every RUN line that was run."""

    def build(self, target: str) -> Image:
        """The image of a stage."""
        if target not in self._stages:
            return Image()
        if target not in self._built:
            self._built[target] = self._stage(self._stages[target])
        return self._built[target]

    def _stage(self, stage: Stage) -> Image:
        image = self.build(stage.base)
        layer = self._folder / stage.name
        layer.mkdir(parents=True)
        image = replace(image, layers=(layer, *image.layers))
        _open_way(layer, PYTHON)  # the interpreter finds its library where it was built
        if self._installed is not None:
            image = replace(image, needs=(self._context,))
        for word, rest in stage.steps:
            image = self._step(image, layer, word, rest)
        return image

    def _step(self, image: Image, layer: Path, word: str, rest: str) -> Image:
        if word == "ENV":
            pairs = dict(part.split("=", 1) for part in shlex.split(rest))
            path = image.environment.get("PATH", "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin")
            pairs = {name: value.replace("$PATH", path) for name, value in pairs.items()}
            return replace(image, environment={**image.environment, **pairs})
        if word == "RUN":
            self.ran.append(rest)
            run(image, layer, ["/bin/sh", "-c", rest])
            return image
        if word == "COPY":
            self._copy(layer, rest.split())
            return image
        if word == "USER":
            return replace(image, user=rest)
        if word == "WORKDIR":
            (layer / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            return replace(image, folder=rest)
        if word == "ENTRYPOINT":
            return replace(image, entrypoint=tuple(json.loads(rest)), command=())
        if word == "CMD":
            return replace(image, command=tuple(json.loads(rest)))
        assert word == "EXPOSE", f"no part of a build here: {word} {rest}"
        return image

    def _copy(self, layer: Path, words: list[str]) -> None:
        if words[0].startswith("--from="):
            _, source, target = words
            if self._installed is not None:
                place = layer / target.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(self._installed)
                _open_way(layer, self._installed)
                return
            found = self.build(words[0].removeprefix("--from=")).find(source)
            assert found is not None, f"no stage has {source}"
            shutil.copytree(found, layer / target.lstrip("/"), symlinks=True)
            return
        source, target = words
        for path in self._sent():
            if source == "." or path == source:
                place = layer / target.lstrip("/") / (path if source == "." else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy_path(self._context / path, place)
            elif source.startswith(f"{path}/"):
                place = layer / target.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._context / source, place)
                return
        assert (layer / target.lstrip("/")).exists(), f"{source} is not sent to a build: .dockerignore leaves it out"

    def _sent(self) -> list[str]:
        lines = [line for line in self._ignore.splitlines() if line and not line.startswith("#")]
        assert lines[0] == "*", "what is sent is what is named"
        return [line[1:] for line in lines if line.startswith("!")]


def _open_way(layer: Path, path: Path) -> None:
    """Any user reaches a path of this machine, whoever may on the machine itself."""
    for folder in path.parents:
        if not folder.stat().st_mode & 0o001:
            (layer / str(folder).lstrip("/")).mkdir(mode=0o755, parents=True, exist_ok=True)


def _copy_path(source: Path, place: Path) -> None:
    if source.is_dir():
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=ignore)
    else:
        shutil.copy2(source, place)


def mounts(image: Image, upper: Path, root: Path) -> list[str]:
    """Shell lines that mount an image with a writable layer at `root`; for a shell with a mount space of its own."""
    work, ours, our_work = (upper.with_name(f"{upper.name}.{word}") for word in ("work", "python", "python.work"))
    for folder in (upper, work, ours, our_work, root):
        folder.mkdir(parents=True, exist_ok=True)
    lower = ":".join([*(str(layer) for layer in image.layers if layer != upper), "/"])
    return [
        "set -eu",
        "mount --make-rprivate /",
        f"mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work} {root}",
        f"mount -t overlay overlay -o lowerdir={PYTHON},upperdir={ours},workdir={our_work} {root}/usr/local",
        f"mount --rbind /proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
    ]


def run(image: Image, upper: Path, command: Sequence[str]) -> None:
    """Run one command of a build to its end; what it writes is in `upper`."""
    root = upper.with_name(f"{upper.name}.root")
    script = [*mounts(image, upper, root), f"exec chroot {root} {shlex.join(command)}"]
    environ = {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "HOME": "/tmp", **image.environment}
    # How this machine reaches the package index; what the file says comes after and wins.
    ours = {name: value for name, value in os.environ.items() if re.match(r"PIP_|\w+_proxy$", name, re.I)}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "\n".join(script)],
        env={**ours, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-8000:]}"
