"""An existing HTTP service as an agent: JSON in, JSON out, over kept connections.

`http.client` in a few threads, because it is there, reads strictly and costs no memory that another client would. A
request is never sent twice: a kept connection that the service has closed is noticed before it is used, and any other
break is the attempt's failure, which the orchestrator retries under the same idempotency key. Redirects are not
followed: a credential in a header must not go where the configuration did not say.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import select
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from antiphon.v1 import agent_service_pb2, failure_pb2

from ..config import PLACE, AgentConfig, CapabilityConfig, HttpCall
from .base import ExecutionFailed, excerpt, json_input, kind_of, parsed, said

_TRANSIENT = frozenset((408, 425, 429))


class HttpAdapter:
    """The services that one agent's capabilities name."""

    def __init__(self, config: AgentConfig) -> None:
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix=f"http-{config.name}")
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = Lock()

    async def execute(self, capability: CapabilityConfig, assignment: agent_service_pb2.Assignment) -> bytes:
        """The service's answer, or the part of it that the configuration names."""
        call = capability.http
        assert call is not None, "the configuration gives every capability of this adapter a call"
        value = parsed_input(json_input(assignment))
        headers = {
            "Accept": "application/json",
            "Idempotency-Key": assignment.idempotency_key,
            "X-Antiphon-Attempt": assignment.attempt_id,
        }
        if assignment.traceparent:
            headers["traceparent"] = assignment.traceparent
        body: bytes | None = None
        if call.method != "GET" or call.body is not None:
            headers["Content-Type"] = "application/json"
            body = json_input(assignment) if call.body is None else render_body(call.body, value).encode()
        own = {name.lower() for name in call.headers}
        headers = {name: text for name, text in headers.items() if name.lower() not in own} | dict(call.headers)
        exchange = _Exchange(self, call, _split(render_url(call.url, value)), headers, body)
        try:
            status, answer = await asyncio.get_running_loop().run_in_executor(self._threads, exchange.run)
        except asyncio.CancelledError:
            exchange.abort()
            raise
        except OSError as error:
            raise ExecutionFailed(*_why(error, call)) from error
        except http.client.HTTPException as error:
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_TRANSIENT, f"{call.url} broke the connection or the protocol: {error!r}"
            ) from error
        return _output(call, status, answer)

    async def close(self) -> None:
        """Close idle connections; those at work end with their attempts."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def kill(self) -> None:
        """Connections end with the process."""

    def take(self, key: tuple[str, str]) -> http.client.HTTPConnection | None:
        """A kept connection that the service has not closed. Called by the threads."""
        with self._lock:
            connections = self._idle.get(key, [])
            while connections:
                connection = connections.pop()
                if connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                    return connection
                connection.close()  # readable while idle: closed, or out of step
        return None

    def keep(self, key: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next call; there are never more than threads. Called by the threads."""
        with self._lock:
            self._idle.setdefault(key, []).append(connection)


class _Exchange:
    """One request and its answer, in a thread; `abort` from the event loop ends it."""

    def __init__(
        self, adapter: HttpAdapter, call: HttpCall, url: SplitResult, headers: Mapping[str, str], body: bytes | None
    ) -> None:
        self._adapter = adapter
        self._call = call
        self._url = url
        self._headers = headers
        self._body = body
        self._lock = Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False

    def run(self) -> tuple[int, bytes]:
        """Status and body. Raises `OSError` and `http.client.HTTPException`."""
        call, url = self._call, self._url
        key = (url.scheme, url.netloc)
        connection = self._connection = self._adapter.take(key) or self._connect()
        try:
            if self._aborted:
                raise ConnectionAbortedError("cancelled")
            assert connection.sock is not None
            connection.sock.settimeout(call.read_timeout.total_seconds())
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request(call.method, target, self._body, dict(self._headers))
            response = connection.getresponse()
            body = response.read(call.max_response + 1)
            if response.length and len(body) <= call.max_response:
                raise http.client.IncompleteRead(body, response.length)
            if not response.isclosed() or response.will_close:
                connection.close()  # too large, or not to be kept
            else:
                with self._lock:
                    self._connection = None  # the next exchange's, which is not to be aborted with this one
                self._adapter.keep(key, connection)
            return response.status, body
        except BaseException:
            connection.close()
            raise

    def abort(self) -> None:
        """Break the connection, so that the thread stops waiting and the service can see it."""
        self._aborted = True
        with self._lock:
            sock = self._connection.sock if self._connection else None
            if sock is not None:
                with suppress(OSError):  # it is closed already
                    sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> http.client.HTTPConnection:
        timeout = self._call.connect_timeout.total_seconds()
        host, port = self._url.hostname or "", self._url.port
        connection: http.client.HTTPConnection
        if self._url.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.connect()
        return connection


def parsed_input(text: bytes) -> Any:
    """The input parsed. Raises `ExecutionFailed` when it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ExecutionFailed(failure_pb2.FAILURE_KIND_INVALID_INPUT, f"the input is not JSON: {error}") from None


def render_body(template: str, value: Any) -> str:
    """The template with each `${input…}` replaced by JSON. Raises `ExecutionFailed` when the input lacks it."""
    return PLACE.sub(lambda match: _json(_at(value, match[1])), template)


def render_url(template: str, value: Any) -> str:
    """The URL with each `${input…}` replaced by a percent-encoded text or number. Raises `ExecutionFailed`."""

    def part(match: re.Match[str]) -> str:
        found = _at(value, match[1])
        if not isinstance(found, str | int | float) or isinstance(found, bool):
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_INVALID_INPUT,
                f"{match[0]} in the URL must be a text or a number",
                field=_pointer(match[1]),
            )
        return quote(str(found), safe="", errors="replace")

    return PLACE.sub(part, template)


def _split(url: str) -> SplitResult:
    """The parts of a URL, whose port is a number. Raises `ExecutionFailed` when the input has made it none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  parsed only when it is asked for
    except ValueError:
        raise ExecutionFailed(
            failure_pb2.FAILURE_KIND_INVALID_INPUT, "the input makes no URL of the template"
        ) from None
    return parts


def _json(value: Any) -> str:
    """JSON in ASCII: a text may hold half a surrogate pair, which can be escaped and has no bytes."""
    return json.dumps(value, separators=(",", ":"))


def _at(value: Any, path: str) -> Any:
    for key in path.split(".")[1:]:
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_INVALID_INPUT, f"the input has no {path[1:]}", field=_pointer(path)
            )
    return value


def _pointer(path: str) -> str:
    return path.replace(".", "/")


def _output(call: HttpCall, status: int, answer: bytes) -> bytes:
    if not 200 <= status < 300:
        kind = call.errors.get(str(status)) or call.errors.get(f"{status // 100}xx")
        if kind is None:
            kind = "TRANSIENT" if status >= 500 or status in _TRANSIENT else "PERMANENT"
        raise ExecutionFailed(kind_of(kind), f"{call.method} {call.url} answered {status}", cause=excerpt(answer))
    if len(answer) > call.max_response:
        raise ExecutionFailed(
            failure_pb2.FAILURE_KIND_INVALID_OUTPUT, f"{call.url} answered more than {call.max_response} bytes"
        )
    answer = said(answer)
    value = parsed(answer)
    if not call.output:
        return answer
    for token in call.output.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise ExecutionFailed(
                failure_pb2.FAILURE_KIND_INVALID_OUTPUT,
                f"the answer of {call.url} has no {call.output}",
                cause=excerpt(answer),
            )
    return _json(value).encode()


def _why(error: OSError, call: HttpCall) -> tuple[failure_pb2.FailureKind.ValueType, str]:
    if isinstance(error, TimeoutError):
        return failure_pb2.FAILURE_KIND_TIMEOUT, f"{call.url} did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            failure_pb2.FAILURE_KIND_PERMANENT,
            f"the certificate of {call.url} is not trusted: {error.verify_message}",
        )
    how = "broke the connection" if isinstance(error, ConnectionResetError | BrokenPipeError) else "cannot be reached"
    return failure_pb2.FAILURE_KIND_TRANSIENT, f"{call.url} {how}: {error}"
