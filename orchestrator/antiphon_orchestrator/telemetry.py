"""Every metric name and log field of the orchestrator, and how they leave the process.

Logs are JSON lines on stderr: an event name and fields, never sentences. A field that is not in FIELDS is printed as
"***", so that a secret or a user's content cannot reach a log by being passed along; whoever adds a field adds it here
and thinks about what it holds. Metrics are Prometheus', with children looked up once. Neither belongs on the path of a
single task.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, MutableMapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO
from weakref import WeakKeyDictionary

if "rich" in sys.modules:
    import structlog
else:
    # It looks for rich, to paint what it never writes here: 4 MB that an idle server can do without.
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog
    finally:
        del sys.modules["rich"]

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

FIELDS = frozenset(
    {
        "action",
        "address",
        "agent",
        "attempt_id",
        "bytes",
        "cause",
        "component",
        "count",
        "decision_id",
        "duration",
        "epoch",
        "event",
        "exception",
        "expire_time",
        "fingerprint",
        "free",
        "incarnation",
        "key",
        "level",
        "limit",
        "listener",
        "method",
        "namespace",
        "path",
        "policies",
        "port",
        "principal",
        "queue",
        "reason",
        "replica_id",
        "revision",
        "run_id",
        "seq",
        "shard",
        "sidecar",
        "signal",
        "source",
        "state",
        "task_id",
        "time",
        "trace_id",
        "version",
    }
)
HIDDEN = "***"
REPEATED = 10.0
"""Seconds in which what lasts is told once."""

_told: MutableMapping[asyncio.AbstractEventLoop, dict[str, float]] = WeakKeyDictionary()
"""By event, when it was told last, in seconds of the loop."""

_TEXT_LENGTH = 2048
_TRACEBACK_LENGTH = 16384


def _only_known_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: _bounded(name, value) if name in FIELDS else HIDDEN for name, value in event.items()}


def _bounded(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    limit = _TRACEBACK_LENGTH if name == "exception" else _TEXT_LENGTH
    # The end of a traceback says what happened, the beginning of everything else does.
    return text if len(text) <= limit else text[-limit:] if name == "exception" else text[:limit]


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr). `level`: debug, info, warning or error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            _only_known_fields,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=True,
    )


def log_to_logging() -> None:
    """Log to the standard library's logger `antiphon.orchestrator`, in a process whose log is somebody else's.

    A process that has configured structlog for itself keeps that.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[_only_known_fields, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: logging.getLogger("antiphon.orchestrator"),
        cache_logger_on_first_use=False,
    )


def logger(component: str) -> FilteringBoundLogger:
    """The logger of one part: `logger("api").info("listening", address=…)`."""
    bound: FilteringBoundLogger = structlog.get_logger(component=component)
    return bound


def tell_seldom(tell: Callable[..., None], event: str, **fields: object) -> None:
    """Tells of what goes on while something lasts, such as `tell_seldom(log.error, "store_takes_no_writes", cause=…)`.

    One line when it begins, and one every REPEATED seconds, however many parts of the process say the same event.
    """
    loop = asyncio.get_running_loop()
    told, now = _told.setdefault(loop, {}), loop.time()
    if event not in told or now - told[event] >= REPEATED:
        told[event] = now
        tell(event, **fields)


class _Unread:
    """Stands for the library, and for all that is made of it, where nobody fetches the metrics: it takes 2 MB."""

    def __getattr__(self, name: str) -> _Unread:
        return self

    def __call__(self, *arguments: object, **named: object) -> _Unread:
        return self


class Metrics:
    """Every metric. One object a process, made by the composition root; tests make their own.

    `fetched`: whether somebody may ask for them; else nothing is kept.
    """

    def __init__(self, *, fetched: bool = True) -> None:
        library: Any = _Unread()
        if fetched:
            import prometheus_client as library
        self.registry: CollectorRegistry = library.CollectorRegistry()
        self._calls: Counter = library.Counter(
            "antiphon_calls", "Calls that ended, by method and status code", ["method", "code"], registry=self.registry
        )
        # Without labels, so that it is there, and 0, before the first: only then is that one an increase.
        self.internal_errors: Counter = library.Counter(
            "antiphon_internal_errors", "Calls that ended with INTERNAL here, which is a bug", registry=self.registry
        )
        self.serving: Gauge = library.Gauge(
            "antiphon_serving",
            "1 while calls are answered here; 0 until then, and while the store does not renew the lease",
            registry=self.registry,
        )
        self.streams: Gauge = library.Gauge(
            "antiphon_open_streams",
            "Streams of clients and sidecars that are open, and calls that wait for a run",
            registry=self.registry,
        )
        self.certificate_expiry: Gauge = library.Gauge(
            "antiphon_certificate_expiry_timestamp_seconds",
            "When the server's certificate expires",
            registry=self.registry,
        )
        self.turn_inputs: Histogram = library.Histogram(
            "antiphon_turn_inputs",
            "Inputs in one turn of a shard",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self.commit_duration: Histogram = library.Histogram(
            "antiphon_commit_duration_seconds",
            "Time until a turn's records were durable",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
            registry=self.registry,
        )
        self.archive_waiting: Gauge = library.Gauge(
            "antiphon_archive_waiting_runs", "Ended runs that the archive does not have yet", registry=self.registry
        )
        self.audit_waiting: Gauge = library.Gauge(
            "antiphon_audit_waiting_records", "Audit records that are to leave for the archive", registry=self.registry
        )
        self.archive_available: Gauge = library.Gauge(
            "antiphon_archive_available", "0 while the archive cannot be written, else 1", registry=self.registry
        )
        self.payloads_collected: Counter = library.Counter(
            "antiphon_payloads_collected", "Payloads that went because nothing referred to them", registry=self.registry
        )
        self.payload_bytes_collected: Counter = library.Counter(
            "antiphon_payload_bytes_collected", "Bytes of the payloads that went", registry=self.registry
        )
        self.store_bytes: Gauge = library.Gauge(
            "antiphon_store_bytes", "Bytes that the store has in use", registry=self.registry
        )
        self.store_limit_bytes: Gauge = library.Gauge(
            "antiphon_store_limit_bytes", "Bytes that the store may have in use", registry=self.registry
        )
        self.store_level: Gauge = library.Gauge(
            "antiphon_store_level", "0 roomy, 1 filling, 2 tight, 3 full: no new runs", registry=self.registry
        )
        self.second_attempts: Gauge = library.Gauge(
            "antiphon_second_attempts", "Second attempts that hedges have made", registry=self.registry
        )
        self.second_attempts_used: Gauge = library.Gauge(
            "antiphon_second_attempts_used", "Those of them whose outcome was used", registry=self.registry
        )
        self.second_attempts_withheld: Gauge = library.Gauge(
            "antiphon_second_attempts_withheld",
            "Times that none was made because the share of the hedge was used up",
            registry=self.registry,
        )
        self.results_kept: Gauge = library.Gauge(
            "antiphon_results_kept",
            "Results that are kept to be used again",
            registry=self.registry,
        )
        self.results_reused: Gauge = library.Gauge(
            "antiphon_results_reused", "Tasks that ended with a result that was kept", registry=self.registry
        )
        self.tasks_waiting: Gauge = library.Gauge(
            "antiphon_tasks_waiting", "Tasks that wait for a slot of an agent", registry=self.registry
        )
        self.tasks_limited: Gauge = library.Gauge(
            "antiphon_tasks_limited", "Tasks that a limit of policy holds up", registry=self.registry
        )
        self.tasks_asking: Gauge = library.Gauge(
            "antiphon_tasks_waiting_for_person",
            "Tasks that are ESCALATED or QUARANTINED, until somebody says how they go on",
            registry=self.registry,
        )
        self.runs_aside: Gauge = library.Gauge(
            "antiphon_runs_set_aside",
            "Runs that stand still, since one of their family ended turns of its shard or cannot be rebuilt: a bug",
            registry=self.registry,
        )
        self.runs_waiting: Gauge = library.Gauge(
            "antiphon_runs_waiting", "New runs that wait for their shard, as it has more to do", registry=self.registry
        )
        self.breakers_open: Gauge = library.Gauge(
            "antiphon_breakers_open", "Instances whose breaker is open or half open", registry=self.registry
        )
        self.breaker_openings: Counter = library.Counter(
            "antiphon_breaker_openings", "Times that the breaker of an instance opened", registry=self.registry
        )
        self.calls_limit: Gauge = library.Gauge(
            "antiphon_calls_limit", "Unary calls that the server takes at once for now", registry=self.registry
        )
        self._runs: Counter = library.Counter(
            "antiphon_runs", "Runs that ended, by state", ["state"], registry=self.registry
        )
        # `labels` takes a lock and builds a key: 2 µs. Methods, codes and states are few and known.
        self._call: Callable[[str, str], Counter] = lru_cache(1024)(self._calls.labels)
        self._run: Callable[[str], Counter] = lru_cache(64)(self._runs.labels)

    def count_call(self, method: str, code: str) -> None:
        """A call ended with this status code."""
        self._call(method, code).inc()

    def count_run(self, state: str) -> None:
        """A run ended in this state."""
        self._run(state).inc()
