"""What an orchestrator is told: flag, else environment, else the TOML file, else a default; one frozen tree.

A setting has one key: `shards`, `api.call_burst`. Its flag is `--shards`, `--api-call-burst`; its variable
`ANTIPHON_ORCHESTRATOR_SHARDS`, `ANTIPHON_ORCHESTRATOR_API_CALL_BURST`; in the file a section is a table. All mistakes
are reported at once, each with where it was found and what to write instead. `describe` says where each value came
from. Reading it opens nothing but the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from antiphon_certs import LONGEST_RECOVERY

from . import archive, blobs
from .api.server import ServerOptions
from .config_words import meanings
from .context.rules import Quota
from .placement.fleet import Schedule
from .placement.shares import read_weights
from .store.etcd import EtcdAddress, TlsFiles, parse

PREFIX = "ANTIPHON_ORCHESTRATOR_"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_HOUR, _CENTURY = timedelta(hours=1), timedelta(days=36_500)
_BOUNDS: dict[str, tuple[Any, Any]] = {
    "shards": (1, 1024),
    "telemetry.metrics_port": (1, 65535),
    "archive_retention": (_HOUR, _CENTURY),
    "audit_retention": (_HOUR, _CENTURY),
    "payload_grace": (_HOUR, _CENTURY),
    "agent_retention": (_HOUR, _CENTURY),
    "schedule.breaker_failures": (1, 1000),
    "schedule.breaker_share": (0.01, 1),
    "recovery_window": (timedelta(), LONGEST_RECOVERY),
}
_KINDS = {
    bool: "true|false",
    int: "NUMBER",
    float: "NUMBER",
    timedelta: "DURATION",
    Path: "PATH",
    tuple[str, ...]: "A,B",
}
_MAY_BE_ZERO = frozenset({"api.shutdown_grace", "join.shutdown_grace"})
_CHOICES = {
    "policy_profile": ("", "dev"),
    "telemetry.log_level": ("debug", "info", "warning", "error"),
}
_EVERYWHERE = frozenset({"0.0.0.0", "[::]"})
_URLS = {"archive": archive.check_url, "payloads": blobs.check_url}
_ADDRESSES = frozenset({"listen", "join_listen", "advertise", "join_advertise"})
_Section = TypeVar("_Section")


class ConfigError(Exception):
    """The configuration cannot be used; the message lists every mistake, one a line."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class Setting(NamedTuple):
    """One value in force and where it came from."""

    key: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What leaves the process about itself. Tracing is off: it costs ~200 µs a call. No port: no metrics are served."""

    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""
    tracing: bool = False
    """Spans of calls and tasks, by OTLP."""
    tracing_endpoint: str = "http://127.0.0.1:4317"
    """Where spans go."""
    metrics_port: int | None = None
    """Where Prometheus may fetch metrics. Absent: nowhere."""
    metrics_host: str = "127.0.0.1"
    """Whence metrics may be fetched: an address of this machine, `0.0.0.0` for all of them."""


@dataclass(frozen=True, slots=True)
class Config:
    """The whole. Sizes in bytes; durations are written 500ms, 30s, 5m, 1h30m."""

    data: Path
    """Store, archive and payloads; `$ANTIPHON_HOME` stands for `~/.antiphon` where it is set."""
    authority: Path
    """The folder that `antiphon certs init` made."""
    archive: str = field(default="", repr=False)
    """Where finished runs are: `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`; a file in `data` by default."""
    archive_password_file: Path | None = None
    """Holds the password of a PostgreSQL archive, and is read for every connection."""
    archive_retention: timedelta | None = None
    """Runs that ended longer ago are deleted, events and all. Absent: they are kept."""
    audit_retention: timedelta = timedelta(days=365)
    """Audit records that are older leave the archive, oldest first."""
    payloads: str = ""
    """Where large payloads are: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://…`, `azure://…`; a folder in `data` by
    default. Endpoint, region and credentials come from the environment."""
    payload_grace: timedelta = timedelta(days=7)
    """How long a payload stays that nothing refers to, since it was last put or used."""
    certificate: Path | None = None
    """Our certificate chain when another authority issues it, with `private_key` and `trust_bundle`; read again as the
    files change. Without `authority` nobody can join here then."""
    private_key: Path | None = None
    """The key of `certificate`, in PEM."""
    trust_bundle: Path | None = None
    """Who may issue the certificates of others, in PEM."""
    recovery_window: timedelta = timedelta(days=7)
    """How long after its expiry the certificate of a sidecar is given anew to who holds its key. 0s: never."""
    listen: str = "127.0.0.1:7443"
    """host:port of the listener that everybody works with, by mutual TLS."""
    join_listen: str = "127.0.0.1:7444"
    """host:port for joining, the trust bundle and health, by server TLS alone."""
    advertise: str = ""
    """host:port by which others reach `listen`, such as a published port; port 0 means the one that is listened on.
    Empty: what `listen` says."""
    join_advertise: str = ""
    """The same of `join_listen`. Empty: the host of `advertise`, with the port of `join_listen`."""
    hosts: tuple[str, ...] = ()
    """Further names and addresses in our certificate, besides those of `advertise` and `join_advertise`."""
    shards: int | None = None
    """Fixed for the life of a store, since a run's id names its shard. Absent: what the store has; a new one gets 16 in
    a cluster, and one in a file: one process writes all of it, and one turn costs less than many small ones."""
    inbox_limit: int = 8192
    """Inputs that may wait for one shard."""
    store: str = ""
    """`etcd://host1:2379,host2:2379/prefix`: the store is in this cluster. Absent: in a file of `data`."""
    store_ca: Path | None = None
    """PEM: who may sign the cluster's certificates; turns TLS on."""
    store_cert: Path | None = None
    """PEM: our certificate for the cluster, with `store_key`; its common name is the user there."""
    store_key: Path | None = None
    """The key of `store_cert`, in PEM."""
    store_max_bytes: int = 8 << 30
    """Size of the store from which new runs are refused; of a cluster no more than its quota."""
    agent_retention: timedelta = timedelta(days=30)
    """Agents without an instance and without a new report of `antiphon verify` are forgotten after so long, unless an
    operator has stopped them."""
    payload_limit: int = 1 << 30
    """Size of one payload of PayloadService."""
    context: Quota = field(default_factory=Quota)
    """Shared context of each namespace."""
    policy_folder: Path | None = None
    """Cedar policies that a store without any begins with."""
    policy_profile: str = ""
    """`dev` begins with the development profile instead; with neither folder nor profile everything is denied."""
    development: bool = False
    """Turns reflection on."""
    schedule: Schedule = field(default_factory=Schedule)
    """Shares of namespaces, and breakers of agents."""
    api: ServerOptions = field(default_factory=ServerOptions)
    join: ServerOptions = field(
        default_factory=lambda: ServerOptions(
            connections=1024,
            concurrent_streams=256,
            caller_streams=256,
            calls_per_second=50,
            call_burst=200,
            unseen_calls=1024,
        )
    )
    telemetry: Telemetry = field(default_factory=Telemetry)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where each value that is not a default came from, by key."""

    @property
    def etcd(self) -> EtcdAddress | None:
        """The cluster that holds the store; None: a file does. Raises ValueError, which `load` has ruled out."""
        if not self.store:
            if self.store_ca or self.store_cert or self.store_key:
                raise ValueError("store_ca, store_cert and store_key are for a store in a cluster; give store")
            return None
        if (self.store_cert is None) != (self.store_key is None):
            raise ValueError("store_cert and store_key belong together; give both or none")
        if self.store_ca is None and self.store_cert is not None:
            raise ValueError("store_cert and store_key are for TLS; give store_ca, too")
        tls = TlsFiles(self.store_ca, self.store_cert, self.store_key) if self.store_ca is not None else None
        return parse(self.store, tls)

    @property
    def archive_url(self) -> str:
        """Where the archive is, the default spelled out."""
        return self.archive or f"sqlite:///{self.data / 'archive.db'}"

    @property
    def payloads_url(self) -> str:
        """Where payloads are, the default spelled out."""
        return self.payloads or (self.data / "payloads").absolute().as_uri()

    @property
    def trusting(self) -> str:
        """The setting that says whom to trust."""
        return "trust_bundle" if self.trust_bundle is not None else "authority"

    @property
    def advertised(self) -> str:
        """host:port by which others reach us; port 0 stands for the one that is bound."""
        return self.advertise or self.listen

    @property
    def advertised_host(self) -> str:
        """Its host."""
        return self.advertised.rpartition(":")[0]

    @property
    def join_advertised(self) -> str:
        """host:port by which others reach the join listener; port 0 likewise."""
        return self.join_advertise or f"{self.advertised_host}:{self.join_listen.rpartition(':')[2]}"

    @property
    def certificate_hosts(self) -> tuple[str, ...]:
        """Every further name our certificate must hold."""
        dialled = (address.rpartition(":")[0].strip("[]") for address in (self.advertised, self.join_advertised))
        return tuple(dict.fromkeys((*dialled, *self.hosts)))

    def describe(self) -> list[Setting]:
        """Every setting, by key."""
        return [
            Setting(key, archive.shown_url(value) if key in _URLS else shown(value), self.sources.get(key, "default"))
            for key, value in sorted(_leaves(self, ""), key=lambda leaf: leaf[0])
        ]


SECTIONS = {
    "": (
        "settings",
        "each also as a variable and in the file; bytes, durations such as 30s or 1h30m (docs/reference/settings.md)",
    ),
    "context": ("context", "shared context of each namespace"),
    "schedule": ("schedule", "who gets how much, and when an agent gets nothing"),
    "api": ("api", "limits of the listener that everybody works with"),
    "join": ("join", "limits of the listener for joining"),
    "telemetry": ("telemetry", "what leaves the process about itself"),
}
"""Name and words of each section."""


class Flag(NamedTuple):
    """What may be set, before it is. `default` is empty where there is none; `kind` says what is written."""

    key: str
    flag: str
    kind: str
    default: str
    meaning: str


_DEFAULTS = Config(Path("~/.antiphon/orchestrator"), Path("~/.antiphon/ca"))


def keys() -> list[tuple[str, str]]:
    """Every setting's key and flag, in the order of the tree."""
    return [(key, _flag(key)) for key, _ in _leaves(_DEFAULTS, "")]


def flags() -> list[Flag]:
    """The same with defaults and meanings. Raises OSError where the source is not there."""
    return [
        Flag(key, _flag(key), _KINDS.get(hint, "VALUE"), shown(value), meaning)
        for key, hint, value, meaning in _described(_DEFAULTS, "")
    ]


def load(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """The configuration. `flags`: those of the command line by key, None when absent, and `config`, the file's path.

    Raises `ConfigError`.
    """
    home = Path(environ["ANTIPHON_HOME"]) if environ.get("ANTIPHON_HOME") else Path.home() / ".antiphon"
    reading = _Reading(flags, environ)
    config = reading.section(Config(home / "orchestrator", home / "ca"), "")
    reading.nothing_else()
    if config.policy_folder is not None and config.policy_profile:
        reading.mistakes.append("policy_folder and policy_profile exclude each other; give one of them")
    if len({config.certificate is None, config.private_key is None, config.trust_bundle is None}) > 1:
        reading.mistakes.append("certificate, private_key and trust_bundle belong together; give all three or none")
    try:
        cluster = config.etcd
    except ValueError as error:
        reading.mistakes.append(f"store: {error}")
    else:
        if cluster is not None and not cluster.local:
            reading.mistakes += _not_shared(config)
    if config.advertised_host in _EVERYWHERE:
        reading.mistakes.append(f"others cannot dial {config.advertised_host}; give advertise, such as HOST:7443")
    if (host := config.join_advertise.rpartition(":")[0]) in _EVERYWHERE:
        reading.mistakes.append(f"others cannot dial {host}; give join_advertise, such as HOST:7444")
    if reading.mistakes:
        raise ConfigError(reading.mistakes)
    return replace(config, sources=reading.sources)


def _not_shared(config: Config) -> list[str]:
    """What would be each machine's own beside a store that machines share: runs that had ended would be found on one
    of them only, and payloads collected whose references the others have."""
    mistakes = []
    if config.archive_url.startswith("sqlite:"):
        mistakes.append(
            "archive: the store is shared between machines, a file is not; give --archive postgresql://USER@HOST/DATABASE"
        )
    if not config.payloads:
        shared = "--payloads s3://BUCKET/PREFIX, or file:///FOLDER on a file system that all share"
        mistakes.append(f"payloads: the store is shared between machines, a folder in data is not; give {shared}")
    return mistakes


class _Reading:
    """One pass over all sources, with what was found wrong."""

    def __init__(self, flags: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.mistakes: list[str] = []
        self.sources: dict[str, str] = {}
        self._known: set[str] = set()
        self._flags = {key: value for key, value in flags.items() if value is not None and key != "config"}
        self._environ = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
        self._file: dict[str, Any] = {}
        path = flags.get("config") or self._environ.pop(f"{PREFIX}CONFIG", None)
        self._path = Path(path) if path else None
        if self._path is not None:
            try:
                self._file = dict(_flat(tomllib.loads(self._path.read_text("utf-8")), ""))
            except OSError as error:
                self.mistakes.append(f"{self._path} cannot be read: {error.strerror}")
            except ValueError as error:
                self.mistakes.append(f"{self._path} is not TOML: {error}")

    def section(self, defaults: _Section, prefix: str) -> _Section:
        """The same dataclass with what the sources say."""
        hints = get_type_hints(type(defaults))
        values: dict[str, Any] = {}
        for item in fields(defaults):  # type: ignore[arg-type]
            default = getattr(defaults, item.name)
            if item.name == "sources":
                continue
            if is_dataclass(default):
                values[item.name] = self.section(default, f"{prefix}{item.name}.")
            else:
                values[item.name] = self._value(f"{prefix}{item.name}", hints[item.name], default)
        return replace(defaults, **values)  # type: ignore[type-var]

    def nothing_else(self) -> None:
        """Everything that was said must have been meant for something."""
        for key in sorted(self._file.keys() - self._known):
            self.mistakes.append(f"{self._path}: {key} is not a setting{_near(key, self._known)}")
        variables = {_variable(key) for key in self._known}
        for name in sorted(self._environ.keys() - variables):
            self.mistakes.append(f"{name} is not a setting{_near(name, variables)}")
        for key in sorted(self._flags.keys() - self._known):
            self.mistakes.append(f"{_flag(key)} is not a setting{_near(key, self._known)}")

    def _value(self, key: str, hint: Any, default: Any) -> Any:
        self._known.add(key)
        said = (
            (_flag(key), self._flags.get(key)),
            (_variable(key), self._environ.get(_variable(key))),
            (f"{self._path}: {key}", self._file.get(key)),
        )
        for where, raw in said:
            if raw is None:
                continue
            try:
                value = _parse(hint, raw)
                _check(key, value)
            except ValueError as error:
                self.mistakes.append(f"{where}: {error}")
                return default
            if isinstance(value, Path) and self._path is not None and where.startswith(f"{self._path}: "):
                value = self._path.parent / value  # a file may be read from anywhere
            self.sources[key] = where
            return value
        return default


def _present(hint: Any) -> Any:
    """The type of a value that is there."""
    return next(kind for kind in get_args(hint) if kind is not type(None)) if isinstance(hint, UnionType) else hint


def _parse(hint: Any, raw: Any) -> Any:
    """The value of this type that text, or a TOML value, spells. Raises `ValueError`."""
    hint = _present(hint)
    if hint is bool:
        if isinstance(raw, bool):
            return raw
        if str(raw).lower() in ("true", "1", "yes", "on"):
            return True
        if str(raw).lower() in ("false", "0", "no", "off"):
            return False
        raise ValueError(f"write true or false, not {raw!r}")
    if hint in (int, float):
        if isinstance(raw, bool):
            raise ValueError(f"write a number, not {raw!r}")
        try:
            return hint(raw)
        except (TypeError, ValueError):
            raise ValueError(f"write a{' whole' if hint is int else ''} number, not {raw!r}") from None
    if hint is timedelta:
        parts = _DURATION.findall(str(raw))
        if not parts or "".join(number + unit for number, unit in parts) != raw:
            raise ValueError(f"write a duration such as 500ms, 30s or 1h30m, not {raw!r}")
        return sum((float(number) * _UNITS[unit] for number, unit in parts), timedelta())
    if get_args(hint)[:1] == (str,):
        texts = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"write a list of texts, not {raw!r}")
        return tuple(text.strip() for text in texts if text.strip())
    if not isinstance(raw, str | Path):
        raise ValueError(f"write a text, not {raw!r}")
    if hint is Path and not str(raw):  # it would be the folder we happen to be in
        raise ValueError("write a path; where none is meant, leave the setting out")
    return hint(raw)


def _check(key: str, value: Any) -> None:
    """What a value must be besides its type. Raises `ValueError`."""
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"write one of {', '.join(choice or '(nothing)' for choice in _CHOICES[key])}, not {value!r}")
    if key == "schedule.weights":
        read_weights(value)
    if key in _URLS and value:
        _URLS[key](value)
    if key in _ADDRESSES and value:
        address = _ADDRESS.fullmatch(value)
        if address is None or int(address[1]) > 65535:  # port 0: the system chooses
            raise ValueError(f"write host:port, such as 127.0.0.1:7443 or [::1]:7443, not {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        return
    nothing: Any = timedelta() if isinstance(value, timedelta) else 0
    if key in _BOUNDS:
        low, high = _BOUNDS[key]
        if not low <= value <= high:
            what = "a duration" if isinstance(value, timedelta) else "a number"
            raise ValueError(f"write {what} from {shown(low)} to {shown(high)}, not {shown(value)}")
    elif not (nothing < value and value != float("inf")) and not (value == nothing and key in _MAY_BE_ZERO):
        raise ValueError(f"must be finite and more than nothing, not {shown(value)}")


def _leaves(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{item.name}.")
        elif item.name != "sources":
            yield f"{prefix}{item.name}", value


def _described(section: Any, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    words, hints = meanings(type(section)), get_type_hints(type(section))
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _described(value, f"{prefix}{item.name}.")
        elif item.name != "sources":
            yield f"{prefix}{item.name}", _present(hints[item.name]), value, words[item.name]


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flag(key: str) -> str:
    return f"--{key.replace('.', '-').replace('_', '-')}"


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", "_").upper()


def _near(word: str, known: set[str]) -> str:
    near = get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """A value as it is written in a flag; empty when there is none."""
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def _duration(value: timedelta) -> str:
    """As one writes it: 30d, 1h30m, 500ms. Parts below a millisecond, which nobody writes, are left out."""
    text = ""
    for unit, length in _UNITS.items():
        count, value = divmod(value, length)
        text += f"{count}{unit}" if count else ""
    return text or "0s"
