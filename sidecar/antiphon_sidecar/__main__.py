"""The program: `python -m antiphon_sidecar run|check|health`, also `antiphon sidecar …`.

Exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong, 130 stopped at once. Every expected
failure is one line on stderr with what to do about it. It imports neither the command line's libraries nor an adapter
that is not configured.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence

from . import logs
from .app import CAUSE, agents_of, check_programs, run, run_folder_of
from .config import Config, ConfigError, load
from .errors import Revoked
from .identity import HOW, IdentityError, locate
from .socket import SocketError

_FLAGS = {
    "config": "TOML file with agents and settings",
    "token": "join token; better given as ANTIPHON_TOKEN, which no list of processes shows",
    "token_file": "file that holds the join token",
    "state": "folder that keeps key and certificate between starts",
    "profile": "profile to take the identity from instead",
    "agent": "name of the agent after --; default: the one the token allows",
    "orchestrators": "host:port, comma between several; default: as the token says",
    "run_folder": "folder for the sockets",
    "grace": "time to finish work after SIGTERM; default 30s",
    "log_level": "DEBUG, INFO, WARNING or ERROR; default INFO",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = []
    if "--" in words:
        command = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
    given = _parser().parse_args(words)
    flags = {key: getattr(given, key) for key in _FLAGS}
    try:
        config = load(flags, command, os.environ)
        logs.configure(config.log_level)
        asyncio.run(_COMMANDS[given.command](config))
    except ConfigError as error:
        return _failed(2, "the configuration cannot be used", error)
    except BaseExceptionGroup as group:
        expected, bugs = group.split((IdentityError, Revoked, SocketError, OSError, ConfigError))
        if bugs or expected is None:
            logging.getLogger(__name__).critical("internal error", exc_info=bugs)
            return _failed(1, "stopped by an internal error", "see the log entry above")
        return _failed(1, "stopped", _first(expected))
    except (IdentityError, Revoked, SocketError, OSError) as error:
        return _failed(1, "cannot run", error)
    except KeyboardInterrupt:  # before there was anything to drain
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="antiphon sidecar", description="Stands beside agents and speaks for them over mutual TLS."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|check|health")
    for name, text in (
        ("run", "attach to the orchestrators; the agent's command may follow after --"),
        ("check", "say what is wrong with configuration, identity and reachability"),
        ("health", "exit 0 when the running sidecar is attached and an agent is there that is not refused"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for key, what in _FLAGS.items():
            command.add_argument(f"--{key.replace('_', '-')}", dest=key, help=what)
    return parser


async def _run(config: Config) -> None:
    await run(config, os.environ)


async def _check(config: Config) -> None:
    """Everything that can be known without joining: a token works once."""
    from .upstream import connected, secure_channel

    check_programs(config)
    place = locate(config, os.environ)
    credential = place.stored()
    kept = place.kept()
    if credential is None and place.token is None and kept is not None:
        print(f"identity: {kept.identity}, whose certificate has expired; its key may get it a new one")
        return
    if credential is None and place.token is None:
        raise IdentityError(f"there is no valid certificate, and no join token; give one: {HOW}")
    if credential is None:
        assert place.token is not None
        identity, grants = place.token.identity, place.token.grants
        print(f"identity: {identity}, to be joined with the token until {place.token.expire_time:%H:%M:%S} UTC")
    else:
        grants = credential.grants
        print(f"identity: {credential.identity}, until {credential.not_after:%Y-%m-%d %H:%M:%S} UTC")
    for agent in agents_of(config, grants):
        how = agent.adapter or ("started: " + " ".join(agent.command) if agent.command else "dials in")
        print(f"agent: {agent.name}, {how}")
    folder = run_folder_of(config, place, os.environ)
    print(f"run folder: {folder.path}")
    if credential is None:
        return
    for address in config.orchestrators or place.addresses:
        async with secure_channel(address, credential) as channel:
            try:
                await connected(channel)
            except (ConnectionError, TimeoutError) as error:
                raise OSError(f"orchestrator {address}: {error or 'it does not answer in time'}") from error
        print(f"orchestrator: {address}, reachable")


async def _health(config: Config) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    folder = run_folder_of(config, locate(config, os.environ), os.environ)
    async with grpc.aio.insecure_channel(f"unix:{folder.control}") as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            call = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            answer, said = await call, await call.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            raise OSError(f"no sidecar answers in {folder.path}; start it with: antiphon sidecar run") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        cause = dict(said or ()).get(CAUSE, b"").decode("utf-8", "replace")
        raise OSError(f"the sidecar does not serve: {cause}")
    print("serving")


_COMMANDS: dict[str, Callable[[Config], Coroutine[None, None, None]]] = {
    "run": _run,
    "check": _check,
    "health": _health,
}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _failed(code: int, what: str, why: object) -> int:
    for line in str(why).splitlines() or [""]:
        print(f"antiphon sidecar: {what}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
