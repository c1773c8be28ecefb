"""The program: `python -m antiphon_sidecar run|check|health`, also `antiphon sidecar …`.

Exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong, 130 stopped at once. Every expected
failure is said on stderr with what to do about it, each mistake of a configuration in a line. It imports neither the
command line's libraries nor an adapter that is not configured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import NoReturn

from . import (
    logs,
    silence,  # noqa: F401  before gRPC
)
from .app import CAUSE, look_over, run, run_folder_of
from .config import Config, ConfigError, load, load_place, read
from .errors import Revoked
from .identity import HOW, IdentityError, TokenMissing, locate
from .socket import RunFolder, SocketError, default_folder
from .table import Mistakes

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
_FLAGS_OF_PLACE = ("config", "state", "profile", "run_folder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = []
    if "--" in words:
        command = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
    given = _parser().parse_args(words)
    flags = {key: value for key, value in vars(given).items() if key in _FLAGS}
    try:
        asyncio.run(_COMMANDS[given.command](flags, command))
    except ConfigError as error:
        path = flags.get("config") or os.environ.get("ANTIPHON_SIDECAR_CONFIG")
        return _failed(2, f"the configuration{f' of {path}' if path else ''} cannot be used", error)
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
        for key in _FLAGS_OF_PLACE if name == "health" else _FLAGS:
            command.add_argument(f"--{key.replace('_', '-')}", help=_FLAGS[key])
    return parser


async def _run(flags: Mapping[str, str | None], command: Sequence[str]) -> None:
    config = load(flags, command, os.environ)
    logs.configure(config.log_level)
    await run(config, os.environ)


async def _check(flags: Mapping[str, str | None], command: Sequence[str]) -> None:
    """Everything that can be known without joining: a token works once."""
    from .upstream import connected, secure_channel

    config, mistakes = read(flags, command, os.environ)
    _check_schemas(config, mistakes)
    try:
        place = locate(config, os.environ)
    except IdentityError as error:
        look_over(config, None, mistakes)
        if mistakes:
            mistakes.add("identity", str(error))
            mistakes.raise_any(ConfigError)
        raise
    agents = look_over(config, place, mistakes)
    mistakes.raise_any(ConfigError)
    credential = place.stored()
    kept = place.kept()
    if credential is None and place.token is None and kept is not None:
        print(f"identity: {kept.identity}, whose certificate has expired; its key may get it a new one")
        return
    if credential is None and place.token is None:
        raise IdentityError(f"there is no valid certificate, and no join token; give one: {HOW}")
    if credential is None:
        token = place.token
        assert token is not None
        print(f"identity: {token.identity}, to be joined with the token until {token.expire_time:%H:%M:%S} UTC")
    else:
        print(f"identity: {credential.identity}, until {credential.not_after:%Y-%m-%d %H:%M:%S} UTC")
    for agent in agents:
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


def _check_schemas(config: Config, mistakes: Mistakes) -> None:
    """As the orchestrators read them, which refuse an agent with one that is none."""
    import jsonschema_rs  # here alone: a sidecar that runs has no room for it

    patterns = jsonschema_rs.RegexOptions()  # those that take linear time
    for agent in config.agents:
        for capability in agent.capabilities:
            for key, text in (("input_schema", capability.input_schema), ("output_schema", capability.output_schema)):
                try:
                    jsonschema_rs.Draft202012Validator(
                        json.loads(text or "true"), retriever=_refuse, pattern_options=patterns, validate_formats=False
                    )
                except (ValueError, TypeError) as error:  # ValidationError is a ValueError
                    where = "".join(f"/{step}" for step in getattr(error, "instance_path", ()))
                    why = str(getattr(error, "message", error)).partition(" and retrieving it failed")[0]
                    remedy = f"it is not a JSON Schema: {where + ': ' if where else ''}{why}"
                    mistakes.add(f"agent {agent.name}: capability {capability.name}: {key}", remedy)


def _refuse(uri: str) -> NoReturn:
    raise ValueError(uri)


async def _health(flags: Mapping[str, str | None], _command: Sequence[str]) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    config = load_place(flags, os.environ)
    try:
        path = config.run_folder or default_folder(locate(config, os.environ).owner, os.environ)
    except TokenMissing as error:
        raise IdentityError("no sidecar is known; give its --run-folder, --state or --config") from error
    folder = RunFolder(path, config.socket)
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


_COMMANDS: dict[str, Callable[[Mapping[str, str | None], Sequence[str]], Coroutine[None, None, None]]] = {
    "run": _run,
    "check": _check,
    "health": _health,
}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _failed(code: int, what: str, why: object) -> int:
    lines = str(why).splitlines()
    text = "".join(f"\n  {line}" for line in lines) if len(lines) > 1 else f" {why}"
    print(f"antiphon sidecar: {what}:{text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
