"""`antiphon orchestrator serve | check | health`, on argparse alone: a server does not carry a command's libraries.

Exit codes: 0 done, 1 failed, 2 the configuration or the surroundings are wrong. Every expected failure is one line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Authority, AuthorityError, CertsError, ExternalFiles, replace_private
from grpc_health.v1 import health_pb2, health_pb2_grpc

from . import telemetry
from .api.server import AddressNotFree
from .app import Orchestrator
from .archive import Archive, ArchiveError, archive_at
from .blobs import BlobError, Blobs, ObjectBlobs
from .cluster import common
from .cluster.common import NotInCommon
from .cluster.membership import AddressInUse, check_address
from .config import SECTIONS, Config, ConfigError, Flag, flags, keys, load
from .data_folder import DataInUse, in_use
from .policy import PolicyBundle, PolicyError, compile_bundle, dev_profile, load_folder
from .shards.host import RecoveryFailed
from .shards.log import ShardsFixed
from .store import StoreError, StoreFull
from .store.etcd import EtcdStore
from .store.file import check_file
from .tracing import TracingUnavailable

ENDPOINTS = "endpoints.json"
"""In the data folder while an orchestrator serves: the addresses by which others reach it, where its health can be
asked for on this machine, and its process id."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""What to dial for a listener on all addresses."""

EXPECTED = (
    CertsError,
    PolicyError,
    StoreError,
    ArchiveError,
    BlobError,
    AddressInUse,
    AddressNotFree,
    DataInUse,
    NotInCommon,
    RecoveryFailed,
    ShardsFixed,
    TracingUnavailable,
)
"""What may be wrong with the surroundings; each says so in one line, with a remedy."""


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser(explained={"-h", "--help"} & set(words) != set()).parse_args(words)
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "json", "live")}
    try:
        config = load(given, os.environ)
        if arguments.command == "check":
            return asyncio.run(_check(config, arguments.json))
        if arguments.command == "health":
            return asyncio.run(_health(config, arguments.json, arguments.live))
        telemetry.configure_logging(config.telemetry.log_level)
        _tune_collector()
        return asyncio.run(_serve(config))
    except ConfigError as error:
        return _fail(*error.mistakes)
    except EXPECTED as error:
        return _fail(str(error))
    except ExceptionGroup as group:
        expected, rest = group.split(EXPECTED)
        if rest is not None or expected is None:
            raise
        return _fail(*(str(error) for error in expected.exceptions))


def _tune_collector() -> None:
    """Runs are trees, freed as their references go; the default collector would walk all live ones again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _fail(*lines: str) -> int:
    for line in lines:
        print(f"antiphon orchestrator: {line}", file=sys.stderr)
    return 2


def _parser(*, explained: bool) -> argparse.ArgumentParser:
    """`explained`: with what each setting means, for which the source is read."""
    known = {flag.key: flag for flag in flags()} if explained else {}
    parser = argparse.ArgumentParser(prog="antiphon orchestrator", description="The control plane of a mesh.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("serve", "Serve until SIGTERM or SIGINT."),
        ("check", "Check configuration, authority, policies, store, archive and payloads, and say what holds."),
        ("health", "Ask a running orchestrator whether it serves."),
    ):
        usage = f"antiphon orchestrator {name} [--config FILE] [--json] [settings]"
        command = commands.add_parser(name, help=text, description=text, usage=usage)
        command.add_argument("--config", metavar="FILE", help="TOML file; every setting below may stand in it")
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "health":
            text = "exit with 0 also when it answers that it does not serve: no restart would help"
            command.add_argument("--live", action="store_true", help=text)
        groups = {name: command.add_argument_group(*words) for name, words in SECTIONS.items()}
        for key, flag in keys():
            told = known.get(key)
            kind, meaning = (told.kind, _explained(told)) if told else ("VALUE", None)
            groups[key.rpartition(".")[0]].add_argument(flag, dest=key, metavar=kind, help=meaning)
    return parser


def _explained(told: Flag) -> str:
    section, _, name = told.key.rpartition(".")
    meaning = f"As --api-{name.replace('_', '-')}." if section == "join" else told.meaning
    return (f"{meaning} Default: {told.default}" if told.default else meaning).replace("%", "%%")


async def _serve(config: Config) -> int:
    orchestrator = Orchestrator(config)
    serving = asyncio.create_task(orchestrator.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    ready = asyncio.create_task(orchestrator.ready.wait())
    endpoints = config.data / ENDPOINTS
    try:
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            address, join_address = orchestrator.addresses
            here = _from_here(config.join_listen, orchestrator.join_port)
            facts = {"address": address, "join_address": join_address, "health_address": here, "pid": os.getpid()}
            replace_private(endpoints, json.dumps(facts).encode())  # whoever waits for it reads all of it, or none
            telemetry.logger("orchestrator").info("serving", address=address)
        await serving
    except asyncio.CancelledError:
        telemetry.logger("orchestrator").info("stopped")
    finally:
        ready.cancel()
        if orchestrator.ready.is_set() and _written_by_us(endpoints):  # else the next one on this data is there
            endpoints.unlink(missing_ok=True)
    return 0


def _from_here(listen: str, port: int | str) -> str:
    """Where this machine reaches a listener without asking for a name: at the host it listens on, at its real port."""
    host = listen.rpartition(":")[0]
    return f"{_LOOPBACK.get(host, host)}:{port}"


def _written_by_us(endpoints: Path) -> bool:
    try:
        return bool(json.loads(endpoints.read_text())["pid"] == os.getpid())
    except (OSError, ValueError, KeyError):
        return False


def _files_of_another(config: Config) -> ExternalFiles | None:
    """Our certificate where another authority issues it."""
    if config.private_key is None or config.certificate is None or config.trust_bundle is None:
        return None
    return ExternalFiles(config.private_key, config.certificate, config.trust_bundle)


def _trusted(config: Config) -> tuple[str, bytes]:
    """Our trust domain, and the roots that we trust, PEM. Raises CertsError."""
    files = _files_of_another(config)
    if files is not None:
        ours = files.load()
        return ours.identity.trust_domain, ours.bundle_pem
    authority = Authority.load(config.authority)
    return authority.trust_domain, authority.bundle_pem


def _who_certifies(config: Config) -> dict[str, str]:
    """Authority and certificate, as the start will find them. Raises CertsError."""
    files = _files_of_another(config)
    facts = {}
    if files is not None:
        ours = files.load()
        facts["certificate"] = f"{files.cert}: {ours.identity}, until {ours.not_after:%Y-%m-%d %H:%M:%S} UTC"
    if files is not None and not config.authority.exists():
        return facts | {"authority": "none, so nobody can join here"}
    authority = Authority.load(config.authority)
    return facts | {"authority": f"{config.authority}: {authority.trust_domain}, until {authority.not_after:%Y-%m-%d}"}


async def _check(config: Config, as_json: bool) -> int:
    archive = archive_at(config.archive_url, config.archive_password_file)
    async with AsyncExitStack() as stack:
        stack.push_async_exit(archive)  # not entered, which would make its tables
        facts = await _facts(config, archive, ObjectBlobs(config.payloads_url))
    if as_json:
        settings = {s.key: {"value": s.value, "source": s.source} for s in config.describe()}
        print(json.dumps({"settings": settings, **facts}))
        return 0
    for setting in config.describe():
        print(f"{setting.key:32} {setting.value:32} {setting.source}")
    for name, fact in facts.items():
        print(f"{name:32} {fact}")
    return 0


async def _facts(config: Config, archive: Archive, blobs: Blobs) -> dict[str, str]:
    certified = _who_certifies(config)
    if config.policy_folder is not None:
        policies = f"{config.policy_folder}: {_count(load_folder(config.policy_folder))}"
    elif config.policy_profile:
        policies = f"profile {config.policy_profile}: {_count(dev_profile())}"
    else:
        policies = "none for a store without any, which denies all; give policy_folder, or policy_profile dev"
    return {
        **certified,
        "policies": policies,
        **await _look_at_store(config, archive, blobs),
        "archive": await archive.state(),
        "payloads": await blobs.probe(),
    }


async def _look_at_store(config: Config, archive: Archive, blobs: Blobs) -> dict[str, str]:
    """What there is to say of the store, or of each member of its cluster. Raises StoreError when it cannot be used."""
    address = config.etcd
    if address is None:
        path = config.data / "store.db"
        if not path.exists():
            return {"store": f"{path}: not made yet"}
        check_file(path)
        return {"store": f"{path}: {_mebibytes(path.stat().st_size)}"}
    facts = {}
    async with EtcdStore(address) as store:
        for member in await store.members():
            if "NOSPACE" in member.trouble:
                raise StoreFull(f"etcd at {member.endpoint} has reached its quota; docs/store.md says how to make room")
            quota = _mebibytes(member.quota) if member.quota else "a quota that it does not tell"
            used = f"{_mebibytes(member.in_use)} in use, {_mebibytes(member.size)} of {quota}"
            said = [f"etcd {member.version}", used, "leads" if member.leads else ""] if member.version else []
            facts[f"store {member.endpoint}"] = ", ".join(filter(None, (*said, member.trouble)))
        await _fit_in(config, store, archive, blobs)
    return facts


async def _fit_in(config: Config, store: EtcdStore, archive: Archive, blobs: Blobs) -> None:
    """Raises NotInCommon and AddressInUse, as the start would beside the replicas that are there."""
    await common.check(store, config.trusting, *_trusted(config), archive, blobs)
    address = config.advertised
    if int(address.rpartition(":")[2]) and not in_use(config.data):  # else it is our own, which is there
        await check_address(store, address)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _count(bundle: PolicyBundle) -> str:
    """Raises PolicyError for policies that cannot be put in force."""
    return f"{len(compile_bundle(bundle).by_id)} policies, for a store without any"


async def _health(config: Config, as_json: bool, live: bool) -> int:
    """Asks the join listener, which needs no certificate of ours."""
    try:
        address = json.loads((config.data / ENDPOINTS).read_text())["health_address"]
    except (OSError, ValueError, KeyError):
        address = _from_here(config.join_listen, config.join_listen.rpartition(":")[2])
    if _files_of_another(config) is None and not config.authority.exists():
        dev = config.authority.parent / "dev" / "ca"
        which = f"of antiphon dev: --authority {dev}" if dev.exists() else "as it was started with: --authority DIR"
        raise AuthorityError(f"{config.authority} is missing; ask a running orchestrator with its authority, {which}")
    _, roots = _trusted(config)
    options = [("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME)]
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            well = live or status == "SERVING"
        except grpc.aio.AioRpcError as error:
            status, well = f"UNREACHABLE: {error.details()}", False
    print(json.dumps({"address": address, "status": status}) if as_json else f"{address}: {status}")
    return 0 if well else 1
