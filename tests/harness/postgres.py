"""A PostgreSQL cluster of the test's own: in a folder of its own, as a user without rights, on a free loopback port."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from .ports import free_ports
from .process import stall

_START = 30.0
USER = "antiphon"
PASSWORD = "a password that nothing may print"


def find(program: str) -> str | None:
    """Where one of its programs is: Debian keeps them off the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *map(str, versions)]))


class Postgres:
    """Use it with `with`: initialised, started, and gone afterwards. Every life has the same port and folder.

    Its one user logs in with a password. `certificate`: PEM files of a chain and its key, with which it speaks TLS.
    `fsync`: whether what it acknowledges must outlive a crash of the machine.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None, *, fsync: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="anti-pg-"))
        self._data = self.folder / "data"
        self._certificate = certificate
        self._fsync = fsync
        self._account = _unprivileged()
        (self.port,) = free_ports(1)
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> Self:
        try:
            (self.folder / "password").write_text(PASSWORD)
            if self._certificate is not None:
                for name, source in zip(("server.crt", "server.key"), self._certificate, strict=True):
                    (self.folder / name).write_bytes(source.read_bytes())
                    (self.folder / name).chmod(0o600)
            if self._account is not None:
                for path in (self.folder, *self.folder.iterdir()):
                    shutil.chown(path, *self._account)
            arguments = ["-A", "scram-sha-256", "--pwfile", str(self.folder / "password"), "--no-sync", "-E", "UTF8"]
            self._run("initdb", "-D", str(self._data), "-U", USER, "--locale", "C.UTF-8", *arguments)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, database: str = "postgres", *, password: str | None = PASSWORD) -> str:
        secret = "" if password is None else f":{password.replace(' ', '%20')}"
        return f"postgresql://{USER}{secret}@{self.address}/{database}"

    def database(self) -> str:
        """The URL of a new, empty one."""
        self._databases += 1
        name = f"archive{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql answers, unaligned."""
        return self._run("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, self.url(database))

    def start(self) -> None:
        """Start it, and return once it takes connections."""
        settings = {"port": self.port, "unix_socket_directories": "", "listen_addresses": "127.0.0.1,127.0.0.2"}
        settings |= {"fsync": "on" if self._fsync else "off"}  # what a process has written outlives it anyway
        if self._certificate is not None:
            settings |= {"ssl": "on", "ssl_cert_file": self.folder / "server.crt"}
            settings |= {"ssl_key_file": self.folder / "server.key"}
        command = [_program("postgres"), "-D", str(self._data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*self._as_account(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )
        end = time.monotonic() + _START
        while subprocess.run([_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            if self._server.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"PostgreSQL does not start\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order, cutting its connections."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(30)

    def kill9(self) -> None:
        """End all of it as a crash of the machine would; gone, with its shared memory, when this returns."""
        if self._server is not None and self._server.poll() is None:
            with ExitStack() as opened:
                ends = []
                for pid in self._everyone():
                    with suppress(ProcessLookupError):  # it has ended since
                        ends.append(os.pidfd_open(pid))
                        opened.callback(os.close, ends[-1])
                        os.kill(pid, signal.SIGKILL)
                for end in ends:  # its children's, too, which nobody waits for any more
                    assert select.select([end], [], [], 30)[0], "PostgreSQL does not end"
            self._server.wait(30)

    def pause(self) -> None:
        """It stands still, connections and all, and answers nobody."""
        stall(*self._everyone())

    def resume(self) -> None:
        """It goes on where it stood."""
        for pid in self._everyone():
            with suppress(ProcessLookupError):  # a connection's, that has ended since
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Gone, and its files as well; by itself, since one that is killed leaves its shared memory to the system."""
        if self._server is not None and self._server.poll() is None:
            self.resume()
            self._server.send_signal(signal.SIGQUIT)
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _everyone(self) -> list[int]:
        """The server first, so that it starts no process meanwhile, then its processes."""
        assert self._server is not None
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def _run(self, program: str, *arguments: str) -> str:
        command = [*self._as_account(), _program(program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def _as_account(self) -> list[str]:
        """What makes a command another user's. A program does it, since Popen's `user` forks this process, and a fork
        of one with gRPC's threads may crash."""
        if self._account is None:
            return []
        user, group = self._account
        return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--"]


def _program(name: str) -> str:
    path = find(name)
    assert path is not None, f"{name} is missing"
    return path


def _unprivileged() -> tuple[str, int] | None:
    """As whom it runs when we are root, whom it refuses."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam("nobody")
    return account.pw_name, account.pw_gid
