"""The run folder: where agents' sockets are, and the lock that keeps a second sidecar away from them.

Two servers on one socket path do not refuse each other: the second silently takes the path. So the folder is locked
while a sidecar lives, and a socket that is there when the lock is won is a leftover. A path of a Unix socket holds 107
bytes, hence the short folder of its own, named after the identity, not inside the state.

The folder is closed to others unless the sockets are opened to a group or to all; it must be ours, since the place
above it may be writable for everyone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .config import SocketConfig

_LONGEST_PATH = 107
_CONTROL = "control.sock"


class SocketError(Exception):
    """The run folder or a socket cannot be used; the message says what to do."""


def default_folder(owner: str, environ: Mapping[str, str]) -> Path:
    """The run folder for `owner`, a state folder or a SPIFFE id: always the same one, and short."""
    name = hashlib.sha256(owner.encode()).hexdigest()[:12]
    runtime = environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "antiphon" if runtime else Path(tempfile.gettempdir()) / f"antiphon-{os.getuid()}"
    return base / name


class RunFolder:
    """The run folder of one sidecar."""

    def __init__(self, path: Path, config: SocketConfig) -> None:
        self.path = path.absolute()
        self._config = config

    @property
    def control(self) -> str:
        """The socket on which the sidecar answers health checks. Raises `SocketError` when its path is too long."""
        return self._fitting(_CONTROL)

    def agent(self, name: str) -> str:
        """The socket of an agent. Raises `SocketError` when its path is too long."""
        return self._fitting(f"{name}.sock")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if need be, while in the block. Raises `SocketError`."""
        try:
            self._make()
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SocketError(f"run folder {self.path} cannot be used: {error}; choose another: run_folder") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SocketError(
                    f"another sidecar runs in {self.path}; stop it, or give this one its own state or run_folder"
                ) from error
            for leftover in self.path.glob("*.sock"):
                leftover.unlink(missing_ok=True)
            yield
            for socket in self.path.glob("*.sock"):
                socket.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def open_to_others(self, socket: str) -> None:
        """Give a socket that was just made its mode and group. Raises `SocketError`."""
        try:
            if self._config.group is not None:
                self._give(socket, self._config.group)
            os.chmod(socket, self._config.mode)
        except OSError as error:
            raise SocketError(f"socket {socket} cannot be opened to others: {error}") from error

    def _make(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        above, status = os.stat(self.path.parent), os.lstat(self.path)
        ours = (os.geteuid(), 0)  # whoever owns the folder above could put another in its place
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or above.st_uid not in ours:
            raise SocketError(f"{self.path} is not a folder of this user's own; choose another: run_folder")
        mode = 0o700
        if self._config.mode & 0o070:
            mode |= 0o010  # others go through, they do not look around
            if self._config.group is not None:
                self._give(self.path, self._config.group)
        if self._config.mode & 0o007:
            mode |= 0o001
        self.path.chmod(mode)

    def _give(self, path: str | Path, group: str) -> None:
        try:
            shutil.chown(path, group=group)
        except (OSError, LookupError) as error:
            remedy = "[socket]: name a group that this user is a member of"
            raise SocketError(f"{path} cannot be given to group {group}: {error}; {remedy}") from error

    def _fitting(self, name: str) -> str:
        path = str(self.path / name)
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise SocketError(f"socket path {path} is longer than {_LONGEST_PATH} bytes; set a shorter run_folder")
        return path
