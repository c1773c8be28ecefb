"""`antiphon dev`: a mesh on this machine in one command, for development: authority, orchestrator, and two profiles.

The profile `default` is a client and `operator` an operator, both of the namespace `default`. The policy is the
development profile, which is explicit and stays inside one namespace. The data is kept: the next start goes on with
it. It never touches a profile of another mesh, unless that is one of its own kind that does not serve any more.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from antiphon.cli.problems import FAILED, Problem, describe
from antiphon_certs import (
    Authority,
    CertificateFiles,
    Credential,
    CredentialError,
    Grants,
    Identity,
    Kind,
    Profile,
    ProfileError,
    SystemClock,
    new_key_and_csr,
    profile_folder,
    run_rotation,
)

from . import telemetry
from .api.server import AddressNotFree
from .app import Orchestrator
from .archive import ArchiveError
from .cluster.common import NotInCommon
from .config import Config, ConfigError, load
from .data_folder import DataInUse
from .dev_cluster import MOST, DevCluster, watch
from .policy import PolicyError
from .store import StoreError

TRUST_DOMAIN = "dev.antiphon.internal"
NAMESPACE = "default"
_PROFILES = {"default": Kind.CLIENT, "operator": Kind.OPERATOR}
_KEEP = "to keep it, set ANTIPHON_HOME to another folder for this mesh, here and where you use it"
_PATIENCE = 1.0
"""Seconds for an address on this machine to answer."""
_NEXT = """\
Next, in another terminal:
  antiphon agent list
To put a sidecar beside an agent, begun with: antiphon new agent hello && cd hello
  export ANTIPHON_TOKEN=$(antiphon certs token --profile operator --kind sidecar --name edge \\
      --agent hello --capability 'hello.*')
  antiphon sidecar run --config sidecar.toml
To run a graph:
  antiphon run submit hello/graph.yaml --input '{"name": "Ada"}' --wait
"""
_NEXT_OF_SEVERAL = """\
To see who has what, and then who has it when one of them is killed:
  antiphon cluster status
  kill -9 {pid}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; 0 then, 2 when it cannot be run here."""
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_run(_config(options), options.port, options.replicas))
    except AddressNotFree as error:
        ours = error.setting in ("listen", "join_listen")
        remedy = "give other ports with --port, or any free ones with --port 0" if ours else ""
        told = describe(Problem(str(error), remedy))
    except (ConfigError, PolicyError, StoreError, ArchiveError, DataInUse, NotInCommon) as error:
        told = describe(Problem(str(error)))
    except Exception as error:  # the last resort: a line for people, and the traceback in a file
        told = describe(error)
    print(told.line(), file=sys.stderr)
    return told.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="antiphon dev",
        description="Run a mesh on this machine: an authority, an orchestrator and its store, under the development "
        "policy. Writes the profiles `default` (a client) and `operator`, so that other commands find it.",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="authority, store and payloads (default: dev in ~/.antiphon)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=7443,
        help="of the orchestrator; joining is on the next one; 0: any free (%(default)s)",
    )
    parser.add_argument(
        "--replicas",
        type=int,
        default=1,
        metavar="N",
        help="so many orchestrators, each a process, on an etcd that is started with them; two ports for each and two "
        "for etcd (%(default)s)",
    )
    parser.add_argument("--log-level", default="warning", help="debug, info, warning or error (%(default)s)")
    return parser


def _config(options: argparse.Namespace) -> Config:
    data: Path = (options.data or profile_folder("default").parent.parent / "dev").absolute()
    if not 0 <= options.port < 65_535:
        raise Problem(f"there is no port {options.port}", "give --port 1 to 65534, or 0 for any free one")
    if not 1 <= options.replicas <= MOST:
        raise Problem(f"there are no {options.replicas} replicas", f"give --replicas 1 to {MOST}")
    flags = {
        "data": str(data / "orchestrator"),
        "authority": str(data / "ca"),
        "listen": f"127.0.0.1:{options.port}",
        "join_listen": f"127.0.0.1:{options.port + 1 if options.port else 0}",
        "policy_profile": "dev",
        "development": "true",
        "telemetry.log_level": options.log_level,
    }
    return load(flags, os.environ)


async def _run(config: Config, port: int, replicas: int) -> int:
    telemetry.configure_logging(config.telemetry.log_level)
    members = [_Member(name, kind) for name, kind in _PROFILES.items()]
    known = Authority.load(config.authority) if config.authority.exists() else None
    for member in members:
        await member.check_not_in_use(known)
    authority = known or Authority.init(config.authority, TRUST_DOMAIN)
    ready: asyncio.Future[_Addresses] = asyncio.get_running_loop().create_future()
    serve = _serve_alone(config, ready) if replicas == 1 else _serve_several(config, port, replicas, ready)
    serving = asyncio.create_task(serve)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    following = asyncio.create_task(_follow(ready, authority, members, config.data.parent))
    try:
        # Whichever ends first has failed, or was told to stop.
        await asyncio.wait({serving, following}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        await serving
    except asyncio.CancelledError:
        print("stopped", flush=True)
    except ExceptionGroup as group:
        raise Problem(f"stopped: {group.exceptions[0]}", exit_code=FAILED) from group
    finally:
        for task in (following, serving):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return 0


async def _serve_alone(config: Config, ready: asyncio.Future[_Addresses]) -> None:
    """One replica, in this process."""
    orchestrator = Orchestrator(config)

    async def tell() -> None:
        await orchestrator.ready.wait()
        address, join_address = orchestrator.addresses
        ready.set_result(_Addresses((address,), (join_address,)))

    telling = asyncio.create_task(tell())
    try:
        await orchestrator.run()
    finally:
        telling.cancel()


async def _serve_several(config: Config, port: int, replicas: int, ready: asyncio.Future[_Addresses]) -> None:
    """Replicas in processes of their own."""
    cluster = DevCluster(config, port, replicas)
    async with cluster.running() as (etcd, orchestrators):
        ready.set_result(_Addresses(cluster.addresses, cluster.join_addresses, cluster.pids(orchestrators)))
        await watch(etcd, orchestrators)


class _Addresses(NamedTuple):
    """Where orchestrators are, for calls and for joining."""

    calls: tuple[str, ...]
    joining: tuple[str, ...]
    pids: tuple[int, ...] = ()
    """Of the processes at these addresses, when there are several."""


async def _follow(
    ready: asyncio.Future[_Addresses], authority: Authority, members: Sequence[_Member], data: Path
) -> None:
    """Once it serves: write the profiles, say what there is, and keep the certificates fresh."""
    addresses = await ready
    async with asyncio.TaskGroup() as group:
        for member in members:
            member.save(authority, addresses)
            group.create_task(member.keep_fresh(authority))
        several = len(addresses.calls) > 1
        what = f"{len(addresses.calls)} orchestrators serve" if several else "An orchestrator serves"
        where = ", ".join(addresses.calls)
        print(f"{what} at {where}; profiles: {', '.join(_PROFILES)} (in {members[0].home}).")
        for number, (address, pid) in enumerate(zip(addresses.calls, addresses.pids, strict=False), 1):
            log = data / f"orchestrator-{number}.log"
            print(f"  orchestrator-{number} at {address} is process {pid}; its log: {log}")
        print(_NEXT, end="")
        if several:
            print(_NEXT_OF_SEVERAL.format(pid=addresses.pids[0]), end="")
        print(f"Ctrl-C stops it; the data stays in {data}.", flush=True)


@dataclass(frozen=True, slots=True)
class _Member:
    """One of the profiles, and who it is. Making it refuses a profile of another mesh."""

    name: str
    kind: Kind

    def __post_init__(self) -> None:
        folder = profile_folder(self.name)
        if not folder.exists():
            return
        try:
            found = Profile.load(self.name).trust_domain
        except ProfileError as error:
            raise Problem(str(error), f"remove {folder}") from None
        if found != TRUST_DOMAIN:
            raise Problem(f"the profile {self.name!r} belongs to the mesh {found}", _KEEP)

    async def check_not_in_use(self, authority: Authority | None) -> None:
        """Raises `Problem` when the profile is that of another authority, whose orchestrators may still use it."""
        if not profile_folder(self.name).exists():
            return
        profile = Profile.load(self.name)
        try:
            bundle = profile.credential.load().bundle_pem
        except CredentialError:
            return  # nobody can use it
        if authority is not None and authority.root_pem in bundle:
            return
        for address in profile.addresses:
            if await _answers(address):
                raise Problem(f"the profile {self.name!r} belongs to another mesh, which serves at {address}", _KEEP)

    @property
    def home(self) -> Path:
        return profile_folder(self.name).parent

    def save(self, authority: Authority, addresses: _Addresses) -> None:
        """Write the profile with a new certificate."""
        profile = Profile(profile_folder(self.name), addresses.calls, addresses.joining, TRUST_DOMAIN, NAMESPACE)
        self._certify(authority, profile.credential)
        profile.save()

    async def keep_fresh(self, authority: Authority) -> None:
        """Renew the certificate for as long as the mesh runs: nobody may use the profile for hours."""
        files = CertificateFiles(profile_folder(self.name) / "credential")

        async def renew(_old: Credential) -> None:
            self._certify(authority, files)

        log = logging.getLogger(__name__)
        await run_rotation(
            files,
            renew,
            SystemClock(),
            changed=lambda credential: log.info("profile %s: valid until %s", self.name, credential.not_after),
            delayed=lambda error: log.warning("profile %s: not renewed yet: %s", self.name, error),
        )

    def _certify(self, authority: Authority, files: CertificateFiles) -> None:
        identity = Identity(authority.trust_domain, NAMESPACE, self.kind, "dev")
        key_pem, request = new_key_and_csr(identity)
        files.store(key_pem, authority.issue(request, identity, grants=Grants()), authority.bundle_pem)


async def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:  # as is a timeout
        return False
    writer.close()
    return True
