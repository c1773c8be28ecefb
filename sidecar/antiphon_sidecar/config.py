"""What a sidecar is told: flag, else environment, else the TOML file, else a default; one frozen tree.

Every mistake is reported at once, each with its key and what to do about it. Reading the configuration opens no
connection and knows no identity; whether the certificate allows it is `app.py`'s question.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from .table import Mistakes, Table

PLACE = re.compile(r"\$\{input((?:\.[A-Za-z0-9_-]+)*)\}")
"""A part of the input in a template: `${input}`, `${input.a.0.b}`."""
_QUOTED = re.compile(f'"{PLACE.pattern}"')
_MOST_AGENTS = 64


class ConfigError(Exception):
    """The configuration cannot be used; the message lists every mistake."""


@dataclass(frozen=True, slots=True)
class HttpCall:
    """How an existing HTTP service does a capability."""

    url: str
    """`${input.a.b}` in it stands for that part of the input, percent-encoded."""
    method: str = "POST"
    """`GET`, `POST`, `PUT`, `PATCH` or `DELETE`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """A table; `${env:NAME}` in a value stands for that variable, so that no secret is in the file. They take the place
    of ours of the same name."""
    body: str | None = None
    """`${input.a.b}` in it stands for that part of the input as JSON. Absent: the whole input, but for GET."""
    output: str = ""
    """JSON pointer of the output in the answer; empty is the whole."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """A table: status, or its class such as 5xx, and the kind of failure that it means. By default 5xx, 408, 425 and
    429 are TRANSIENT, which is tried again, others PERMANENT."""
    max_response: int = 1 << 20
    """Bytes of an answer; a longer one is INVALID_OUTPUT. So is an `output` of more than 64 KiB, which is the part of
    it that counts."""
    connect_timeout: timedelta = timedelta(seconds=5)
    """To reach the service."""
    read_timeout: timedelta = timedelta(seconds=60)
    """Without a byte from the service, after which the attempt fails with TIMEOUT."""


@dataclass(frozen=True, slots=True)
class CapabilityConfig:
    """A capability that an adapter offers."""

    name: str
    """Such as text.redact; what tasks of graphs ask for, and the sidecar's token must allow."""
    version: str = "1"
    """Such as 1, or 1.4.2."""
    description: str = ""
    """For people and planners."""
    input_schema: str = ""
    """JSON Schema of the input, as text; or `input_schema_file`, a file that holds it. Fields that it does not declare
    are not handed over."""
    output_schema: str = ""
    """JSON Schema of the output, as text; or `output_schema_file`. What does not match it is INVALID_OUTPUT."""
    effect: str = ""
    """`pure`, `read`, `write` or `egress`: what it does to the world, which policies can ask for."""
    idempotent: bool = False
    """Whether twice with one idempotency key has one effect. A graph hedges only what does, or is pure."""
    clearance: tuple[str, ...] = ()
    """Labels of data that it may be given."""
    cost: float = 0.0
    """What one call is expected to cost, in your own unit; 0 means unknown."""
    timeout: timedelta | None = None
    """What one attempt may take; the graph may allow it less."""
    http: HttpCall | None = None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent: by default one that speaks gRPC, spawned when there is a command, else dialling in."""

    name: str
    """1 to 63 lower-case letters, digits and inner dashes; the sidecar's token must allow it."""
    command: tuple[str, ...] = ()
    """A list: the program and its arguments. Without an adapter it is started and started again; absent, the agent
    dials in."""
    adapter: str = ""
    """`http` or `exec`: the agent is a service, or a program, that knows nothing of the mesh. Absent: it speaks gRPC,
    as those made with an SDK do."""
    mode: str = "per_call"
    """With exec: `per_call` starts a process for each attempt, `pool` keeps some and gives each a line at a time."""
    pool_size: int = 1
    """With `pool`: how many; it is the concurrency, too."""
    concurrency: int = 4
    """Attempts at once."""
    prefetch: int = 0
    """Attempts that may wait here besides, so that short work does not wait for the network."""
    max_output: int = 1 << 20
    """With exec: bytes of an answer; a longer one is INVALID_OUTPUT."""
    capabilities: tuple[CapabilityConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class SocketConfig:
    """Who may open the agents' sockets."""

    mode: int = 0o600
    """Four octal digits as text; 0600 lets in the sidecar's own user."""
    group: str | None = None
    """The group that owns them. Absent: the sidecar's."""


@dataclass(frozen=True, slots=True)
class Files:
    """A credential that something else maintains."""

    key: Path
    """PEM: the private key."""
    cert: Path
    """PEM: its certificate, and those between it and the bundle's."""
    bundle: Path
    """PEM: who may issue the orchestrators' certificates."""


@dataclass(frozen=True, slots=True)
class Config:
    """The whole."""

    orchestrators: tuple[str, ...] = ()
    """A list of host:port. Absent: those that the token, or the kept profile, names."""
    agents: tuple[AgentConfig, ...] = ()
    command: tuple[str, ...] = ()  # what follows --: that of the one agent that `agent` names, or that the grants name
    agent: str | None = None
    token: str | None = field(default=None, repr=False)
    state: Path | None = None
    """Folder that keeps key, certificate and outcomes between starts; by default `~/.antiphon/sidecars/NAME`."""
    identity: Files | None = None
    profile: str | None = None
    """A profile of the command's, to take the identity from instead of a token."""
    run_folder: Path | None = None
    """Folder of the agents' sockets, `NAME.sock`; by default one below `$XDG_RUNTIME_DIR` or /tmp."""
    socket: SocketConfig = SocketConfig()
    grace: timedelta = timedelta(seconds=30)
    """What work under way has left to end after SIGTERM."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""


_PREFIX = "ANTIPHON_SIDECAR_"
_ENVIRONMENT = {
    "orchestrators": "ANTIPHON_SIDECAR_ORCHESTRATORS",
    "token_file": "ANTIPHON_TOKEN_FILE",
    "state": "ANTIPHON_SIDECAR_STATE",
    "run_folder": "ANTIPHON_SIDECAR_RUN_FOLDER",
    "grace": "ANTIPHON_SIDECAR_GRACE",
    "log_level": "ANTIPHON_SIDECAR_LOG_LEVEL",
    "agent": "ANTIPHON_SIDECAR_AGENT",
}


def load(flags: Mapping[str, str | None], command: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The configuration. `flags` are those of the command line by key, None when absent. Raises `ConfigError`."""
    config, mistakes = read(flags, command, environ)
    mistakes.raise_any(ConfigError)
    return config


def read(
    flags: Mapping[str, str | None], command: Sequence[str], environ: Mapping[str, str]
) -> tuple[Config, Mistakes]:
    """As `load`, with what is wrong, so that more can be looked for: a default stands where a value is.

    Raises `ConfigError` when the file is none.
    """
    mistakes = Mistakes()
    table = _settings(flags, environ, mistakes)
    config = Config(
        orchestrators=table.strings("orchestrators"),
        agents=tuple(_agent(entry) for entry in table.tables("agent_tables")),
        command=tuple(command),
        agent=table.string("agent"),
        token=_token(table, flags, environ),
        state=table.path("state"),
        identity=_identity(table.table("identity")),
        profile=table.string("profile"),
        run_folder=table.path("run_folder"),
        socket=_socket(table.table("socket")),
        grace=table.duration("grace", timedelta(seconds=30)) or timedelta(seconds=30),
        log_level=table.choice("log_level", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
    )
    table.no_other()
    _check_environment(environ, mistakes)
    _check(config, mistakes)
    return config, mistakes


def load_place(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Config:
    """Only what says where the folder of a sidecar that runs is, which takes none of the services' secrets.

    Raises `ConfigError`.
    """
    mistakes = Mistakes()
    table = _settings(flags, environ, mistakes)
    folder = table.path("run_folder")
    if folder is not None:
        config = Config(run_folder=folder)
    else:
        identity, profile = _identity(table.table("identity")), table.string("profile")
        config = Config(
            token=_token(table, flags, environ), state=table.path("state"), identity=identity, profile=profile
        )
    mistakes.raise_any(ConfigError)
    return config


def _check_environment(environ: Mapping[str, str], mistakes: Mistakes) -> None:
    known = {*_ENVIRONMENT.values(), f"{_PREFIX}CONFIG"}
    for name in sorted(name for name in environ if name.startswith(_PREFIX) and name not in known):
        close = get_close_matches(name, sorted(known), 1)
        mistakes.add(name, f"unknown variable{f'; did you mean {close[0]}?' if close else '; unset it'}")


def _settings(flags: Mapping[str, str | None], environ: Mapping[str, str], mistakes: Mistakes) -> Table:
    """All that is said, each key by who is heard first. Raises `ConfigError` when the file is none."""
    path = flags.get("config") or environ.get("ANTIPHON_SIDECAR_CONFIG")
    said: dict[str, object] = _read(Path(path)) if path else {}
    said |= {key: environ[name] for key, name in _ENVIRONMENT.items() if environ.get(name)}
    said |= {key: value for key, value in flags.items() if value is not None and key not in ("config", "token")}
    if isinstance(orchestrators := said.get("orchestrators"), str):
        said["orchestrators"] = orchestrators.split(",")
    return Table(said, "", mistakes, environ, Path(path).parent if path else Path())


def _token(table: Table, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> str | None:
    held = table.secret_file("token_file")
    return flags.get("token") or (None if flags.get("token_file") else environ.get("ANTIPHON_TOKEN")) or held


def _read(path: Path) -> dict[str, object]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config: {path} is not TOML: {error}") from error
    # `--agent` names one agent, `[[agent]]` describes them: two keys inside.
    if "agent" in values:
        values["agent_tables"] = values.pop("agent")
    return values


def _identity(table: Table | None) -> Files | None:
    if table is None:
        return None
    paths = [table.path(key) for key in ("key", "cert", "bundle")]
    table.no_other()
    key, cert, bundle = paths
    if key is None or cert is None or bundle is None:
        table.mistakes.add("identity", "give key, cert and bundle")
        return None
    return Files(key, cert, bundle)


def _socket(table: Table | None) -> SocketConfig:
    if table is None:
        return SocketConfig()
    mode = table.string("mode", "0600") or ""
    if not (len(mode) == 4 and set(mode) <= set("01234567")):
        table.mistakes.add(table.key("mode"), "use four octal digits, such as 0660")
        mode = "0600"
    socket = SocketConfig(int(mode, 8), table.string("group"))
    table.no_other()
    return socket


def _agent(table: Table) -> AgentConfig:
    adapter = table.choice("adapter", ("", "http", "exec"), "")
    if not adapter:
        table.without(("concurrency", "prefetch"), "leave it out; an agent says itself how much it takes at once")
    if adapter != "exec":
        table.without(("mode", "pool_size", "max_output"), 'leave it out; it is for adapter = "exec"')
    mode = table.choice("mode", ("per_call", "pool"), "per_call")
    if adapter == "exec" and mode == "pool":
        table.without(("concurrency",), "leave it out; with a pool it is pool_size")
    if adapter == "exec" and mode == "per_call":
        table.without(("pool_size",), 'leave it out, or set mode = "pool"; otherwise it is concurrency')
    agent = AgentConfig(
        name=table.name("name"),
        command=table.strings("command"),
        adapter=adapter,
        mode=mode,
        pool_size=table.integer("pool_size", 1, 1, 1_000),
        concurrency=table.integer("concurrency", 4, 1, 1_000),
        prefetch=table.integer("prefetch", 0, 0, 10_000),
        max_output=table.integer("max_output", 1 << 20, 1, 64 << 20),
    )
    pool = agent.adapter == "exec" and agent.mode == "pool"
    capabilities = tuple(_capability(entry, agent.adapter) for entry in table.tables("capability"))
    table.no_other()
    if agent.adapter and not capabilities:
        table.mistakes.add(table.key("capability"), "an adapter needs at least one [[agent.capability]]")
    if capabilities and not agent.adapter:
        table.mistakes.add(
            table.key("capability"), 'an agent says its capabilities itself; or set adapter = "http" or "exec"'
        )
    offered = [f"{capability.name}@{capability.version}" for capability in capabilities]
    for name in sorted({name for name in offered if offered.count(name) > 1}):
        table.mistakes.add(table.key("capability"), f"{name} is there twice; give each a name or a version of its own")
    if agent.adapter == "exec" and not agent.command:
        table.mistakes.add(table.key("command"), "the exec adapter needs the command to run")
    if agent.adapter == "http" and agent.command:
        table.mistakes.add(table.key("command"), "the http adapter starts nothing; leave it out")
    return replace(agent, capabilities=capabilities, concurrency=agent.pool_size if pool else agent.concurrency)


def _capability(table: Table, adapter: str) -> CapabilityConfig:
    capability = CapabilityConfig(
        name=table.string("name") or "",
        version=table.string("version", "1") or "",
        description=table.string("description", "") or "",
        input_schema=table.schema("input_schema"),
        output_schema=table.schema("output_schema"),
        effect=table.choice("effect", ("", "pure", "read", "write", "egress"), ""),
        idempotent=table.boolean("idempotent"),
        clearance=table.strings("clearance"),
        cost=table.number("cost"),
        timeout=table.duration("timeout", None),
        http=_http(table) if adapter == "http" else None,
    )
    table.no_other()
    return capability


def _http(table: Table) -> HttpCall:
    kinds = ("TRANSIENT", "PERMANENT", "INVALID_INPUT", "INVALID_OUTPUT", "POLICY", "BUDGET", "TIMEOUT")
    call = HttpCall(
        url=table.string("url") or "",
        method=table.choice("method", ("GET", "POST", "PUT", "PATCH", "DELETE"), "POST"),
        headers=table.headers("headers"),
        body=table.string("body"),
        output=table.string("output", "") or "",
        errors=table.statuses("errors", kinds),
        max_response=table.integer("max_response", 1 << 20, 1, 64 << 20),
        connect_timeout=table.duration("connect_timeout", timedelta(seconds=5)) or timedelta(seconds=5),
        read_timeout=table.duration("read_timeout", timedelta(seconds=60)) or timedelta(seconds=60),
    )
    templates = (("url", call.url, _mistake_in_url(call.url)), ("body", call.body or "", _mistake_in_body(call)))
    for key, template, mistake in templates:
        if "${" in PLACE.sub("", template):
            table.mistakes.add(table.key(key), "only ${input} and parts such as ${input.a.b} can stand in a template")
        elif mistake:
            table.mistakes.add(table.key(key), mistake)
    if call.output and not call.output.startswith("/"):
        table.mistakes.add(table.key("output"), "give a JSON pointer such as /result")
    return call


def _mistake_in_url(template: str) -> str:
    """What to do about the URL of a service; empty when nothing. It quotes nothing, since a password may be in it."""
    remedy = "give the service's URL, such as http://127.0.0.1:8080/path, beginning with http:// or https://"
    try:
        url = urlsplit(PLACE.sub("1", template))
        if "@" in url.netloc:
            return (
                "leave out user and password, which failures would show; give a header instead: "
                'headers = { Authorization = "Basic ${env:NAME}" }'
            )
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0  # which is parsed only here
    except ValueError:
        return remedy
    if not usable:
        return remedy
    if not (template.isprintable() and (url.path + url.query).isascii()) or " " in template:
        return "write blanks, and characters that are not ASCII, percent-encoded, such as %20"
    return ""


def _mistake_in_body(call: HttpCall) -> str:
    """What to do about the body of a request; empty when nothing. Of what is not sent as JSON nothing is known."""
    types = [text.partition(";")[0].strip() for name, text in call.headers.items() if name.lower() == "content-type"]
    if call.body is None or not all(text == "application/json" or text.endswith("+json") for text in types):
        return ""
    mistake = ""
    # Within a text a place is right for numbers; one that is all of a text was meant for texts.
    for value in ('"text"', "1") if not _QUOTED.search(call.body) else ('"text"',):
        try:
            json.loads(PLACE.sub(value, call.body))
            return ""
        except ValueError as error:
            mistake = mistake or f"it is not JSON once a text is filled in: {error}; ${{input.a}} brings its own quotes"
    return mistake


def _check(config: Config, mistakes: Mistakes) -> None:
    names = [agent.name for agent in config.agents]
    for name in sorted({name for name in names if names.count(name) > 1}):
        mistakes.add("agent", f"{name} is there twice; one table for each agent")
    if len(names) > _MOST_AGENTS:
        mistakes.add("agent", f"use at most {_MOST_AGENTS} agents beside one sidecar")
    if config.command and config.agents:
        mistakes.add("--", "give the command after -- or in [[agent]], not in both")
    for address in config.orchestrators:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            mistakes.add("orchestrators", f"{address!r} is not host:port, such as 127.0.0.1:7443")
