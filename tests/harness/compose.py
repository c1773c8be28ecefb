"""A compose file without a container engine: each service in a network, a mount and a file system of its own.

Names, ports, paths, users, capabilities, read-only roots, volumes and their owners are those of the file; images are
layers (images.py). What is not here: an engine's own scheduling, `restart` and health checks, which the tests do by
hand with the commands that the file names. Images that others make are played by programs of this machine. Needs root.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from .images import Image, mounts
from .postgres import find
from .process import Process

_PATH = "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"
_SECONDS = 300
_MEMORY = Path("/dev/shm")


class Network:
    """A bridge, and a network space a service beside it. Raises Unavailable where that is not allowed."""

    def __init__(self) -> None:
        self._name = f"anti{secrets.token_hex(3)}"
        self._subnet = f"198.{18 + secrets.randbelow(2)}.{secrets.randbelow(256)}"
        self.addresses: dict[str, str] = {}
        self._ip("link", "add", self._name, "type", "bridge")
        self._ip("link", "set", self._name, "up")

    def add(self, service: str) -> None:
        """A place for a service, with an address."""
        number = len(self.addresses) + 2
        self.addresses[service] = f"{self._subnet}.{number}"
        space, outside = self.space(service), f"{self._name}v{number}"
        self._ip("netns", "add", space)
        self._ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("link", "set", outside, "master", self._name, "up")
        self._ip("-n", space, "addr", "add", f"{self.addresses[service]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._ip("-n", space, "link", "set", device, "up")

    def space(self, service: str) -> str:
        """The name of its network space."""
        return f"{self._name}-{service}"

    def close(self) -> None:
        for service in self.addresses:
            subprocess.run(["ip", "netns", "del", self.space(service)], capture_output=True)
        subprocess.run(["ip", "link", "del", self._name], capture_output=True)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def place(prefix: str) -> Path:
    """A new folder for layers: in memory, since those of one overlay must not lie in each other, and "/" is one."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_MEMORY))
    folder.chmod(0o755)
    return folder


class Unavailable(Exception):
    """This machine does not let us make network and mount spaces; the text says what it refuses."""


def require_spaces() -> None:
    """Raises Unavailable where services cannot be kept apart."""
    if os.geteuid() != 0:
        raise Unavailable("it needs root")
    if not _MEMORY.is_mount():
        raise Unavailable(f"{_MEMORY} is not a file system in memory")
    name = f"anti{secrets.token_hex(3)}"
    for command in (["unshare", "--mount", "true"], ["ip", "netns", "add", name], ["ip", "netns", "del", name]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{' '.join(command[:2])}: {done.stderr.strip()}")


class Compose:
    """Use it with `with`. `images`: those of the services that are built here, by target."""

    def __init__(self, file: Path, images: Mapping[str, Image], etcd: str) -> None:
        self.folder = place("anti-compose-")
        self._file = file
        self.services: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["services"]
        self._images = dict(images)
        self._programs = Path(str(find("initdb"))).resolve().parent  # not below /usr/local, which is Python there
        self._others = {"etcd": self._etcd(etcd), "postgres": self._postgres()}
        self.processes: dict[str, Process] = {}
        self._network = Network()
        for name, service in self.services.items():
            if service.get("network_mode") != "none":
                self._network.add(name)
        hosts = [f"{address} {name}" for name, address in self._network.addresses.items()]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.show()
        self.close()

    def close(self) -> None:
        """End everything and remove it."""
        for process in reversed(self.processes.values()):
            process.close()
        self._network.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def show(self) -> None:
        for process in self.processes.values():
            process.show()

    def start(self, name: str, *words: str, seeing: Mapping[str, Path] | None = None) -> Process:
        """Start a service, or start it again after its end, with an empty file system but for its volumes.

        `words`: what it runs in place of entry point and command. `seeing`: further folders of this machine that it may
        change, by the path it sees them at.
        """
        process = self.processes.setdefault(name, Process(name, self.folder))
        process.spawn(self._command(name, words or self._words(name), seeing), self._environ(name))
        return process

    def finish(self, name: str, *command: str) -> str:
        """Run a service, with another command if one is given, to a good end; what it printed.

        One that fails is run again as often as the file says. Raises AssertionError when none of its lives ended well.
        """
        words = [*self._image(name).entrypoint, *command] if command else self._words(name)
        _, _, more = str(self.services[name].get("restart", "")).partition("on-failure:")
        for _ in range(1 + int(more or 0)):
            done = subprocess.run(
                self._command(name, words),
                env=self._environ(name),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
            if done.returncode == 0:
                return done.stdout
            print(f"{name}: {done.stdout}{done.stderr}")
        raise AssertionError(f"{name}: {done.stdout}{done.stderr}")

    def healthy(self, name: str) -> bool:
        """Whether the health check of a running service passes."""
        process = self.processes[name]
        assert process.alive, f"{name} has ended\n{process.said()}"
        test: list[str] = self.services[name]["healthcheck"]["test"][1:]
        if shutil.which(test[0], path=_PATH) is None and test[0] == "etcdctl":
            test = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/2379"]  # the server's package has no client
        if test[0] == "pg_isready":
            test[0] = str(self._programs / "pg_isready")
        inside = ["nsenter", f"--target={process.pid}", "--mount", "--net", "--"]
        words = [*inside, *self._confined(name, test)]
        done = subprocess.run(words, env=self._environ(name), capture_output=True, timeout=_SECONDS)
        return done.returncode == 0

    def grace(self, name: str) -> float:
        """Seconds between SIGTERM and SIGKILL."""
        return float(self.services[name]["stop_grace_period"].removesuffix("s"))

    def _image(self, name: str) -> Image:
        build = self.services[name].get("build")
        return self._images[build["target"]] if build else self._others[name]

    def _words(self, name: str) -> list[str]:
        service, image = self.services[name], self._image(name)
        entrypoint = service.get("entrypoint", image.entrypoint)
        command = service.get("command", image.command if "entrypoint" not in service else ())
        return [*entrypoint, *command]

    def _environ(self, name: str) -> dict[str, str]:
        base = {"PATH": _PATH, "HOME": "/var/lib/antiphon", "GRPC_VERBOSITY": "NONE", "PYTHONDONTWRITEBYTECODE": "1"}
        given = self.services[name].get("environment", {})
        return {**base, **self._image(name).environment, **given}

    def _command(self, name: str, words: Sequence[str], seeing: Mapping[str, Path] | None = None) -> list[str]:
        """What becomes the service's own process, in spaces of its own; its id stays that of what is started."""
        service, image = self.services[name], self._image(name)
        scratch = self.folder / "scratch" / f"{name}-{secrets.token_hex(2)}"
        root = self._root(name)
        lines = mounts(image, scratch, root)
        lines += [f"mount --bind {self.folder}/hosts {root}/etc/hosts"]
        for place in service.get("tmpfs", []):
            target, _, options = place.partition(":")
            lines += [f"mkdir -p {root}{target}", f"mount -t tmpfs -o {options or 'mode=1777'} tmpfs {root}{target}"]
            lines += [f"mkdir -p {root}{path}" for path in image.needs if path.is_relative_to(target)]
            lines += [f"mount --bind {path} {root}{path}" for path in image.needs if path.is_relative_to(target)]
        for volume in service.get("volumes", []):
            source, target, *flags = volume.split(":")
            lines += self._bind(self._source(source, target, image), f"{root}{target}", flags == ["ro"])
        for target, outside in (seeing or {}).items():
            lines += self._bind(outside, f"{root}{target}", False)
        if service.get("read_only"):
            lines += [f"mount -o remount,ro {root}", f"mount -o remount,ro {root}/usr/local"]
        lines += [f"exec {shlex.join(self._confined(name, words))}"]
        space = ["ip", "netns", "exec", self._network.space(name)] if name in self._network.addresses else []
        alone = [] if space else ["--net"]
        return [*space, "unshare", "--mount", *alone, "sh", "-c", "\n".join(lines)]

    def _confined(self, name: str, words: Sequence[str]) -> list[str]:
        """The command as the service's user, with as few rights as the file leaves it."""
        service, image = self.services[name], self._image(name)
        user, _, group = str(service.get("user", image.user)).partition(":")
        rights = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
        if service.get("cap_drop") == ["ALL"]:
            rights += ["--inh-caps=-all", "--bounding-set=-all"]
        if "no-new-privileges:true" in service.get("security_opt", []):
            rights += ["--no-new-privs"]
        inside = ["chroot", str(self._root(name)), "env", "--chdir", image.folder, "--"]
        return [*inside, *rights, "--", *words]

    def _root(self, name: str) -> Path:
        return self.folder / "roots" / name

    def _bind(self, source: Path, target: str, read_only: bool) -> list[str]:
        make = f"mkdir -p {target}" if source.is_dir() else f"mkdir -p {os.path.dirname(target)} && touch {target}"
        bound = f"mount --bind {source} {target}"
        return [make, bound, *([f"mount -o remount,bind,ro {target}"] if read_only else [])]

    def _source(self, source: str, target: str, image: Image) -> Path:
        if source.startswith("."):
            return (self._file.parent / source).resolve()
        volume = self.folder / "volumes" / source
        if not volume.exists():
            # A new volume gets the owner and mode of what the image has in its place.
            volume.mkdir(parents=True)
            volume.chmod(0o755)
            if (found := image.find(target)) is not None:
                status = found.stat()
                os.chown(volume, status.st_uid, status.st_gid)
                volume.chmod(status.st_mode & 0o7777)
        return volume

    def _etcd(self, program: str) -> Image:
        layer = self.folder / "layers" / "etcd"
        (layer / "usr/bin").mkdir(parents=True)
        shutil.copy2(program, layer / "usr/bin/etcd")
        return Image((layer,))

    def _postgres(self) -> Image:
        """What the official image's entry point does, by this machine's PostgreSQL."""
        layer = self.folder / "layers" / "postgres"
        (layer / "etc").mkdir(parents=True)
        data = layer / "var/lib/postgresql/data"
        data.mkdir(parents=True, mode=0o700)
        os.chown(data, 999, 999)
        accounts = Path("/etc/passwd").read_text()
        (layer / "etc/passwd").write_text(f"postgres-image:x:999:999::/tmp:/bin/sh\n{accounts}")
        entry = layer / "entry.sh"
        entry.write_text(
            f"""#!/bin/sh -eu
PATH={self._programs}:$PATH
data=/var/lib/postgresql/data
if [ ! -e $data/PG_VERSION ]; then
  initdb -D $data --no-sync --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
  echo "host all all all scram-sha-256" >>$data/pg_hba.conf
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D $data postgres
fi
shift
exec postgres -D $data -c listen_addresses='*' -c unix_socket_directories='' -c fsync=off "$@"
"""
        )
        entry.chmod(0o755)
        return Image((layer,), user="999:999", entrypoint=("/entry.sh",))
