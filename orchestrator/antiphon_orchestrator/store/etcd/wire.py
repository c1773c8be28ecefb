"""Calls to an etcd cluster: channels, deadlines, failover, and what each refusal means for the port.

A line is a purpose (commits, watches, leases) with a channel of its own to each endpoint, so that a slow answer of one
kind holds up no other, and one current endpoint. A call that finds its endpoint wanting moves the line to the next one;
calls that others have under way there are left alone. gRPC's own choice among addresses is not used: it takes a member
that accepts connections and answers nothing for a good one.

etcd's methods are called by path with messages of our own package (see protos/antiphon/etcd/v3/kv.proto).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from ..port import Compacted, InvalidTxn, LeaseNotFound, StoreError, StoreFull, StoreRefused, StoreUnavailable
from .address import EtcdAddress

CALL_SECONDS = 4.0
"""Deadline of one call: longer than an election takes, shorter than callers have patience."""

READ_SECONDS = 10.0
"""In which what may be done twice is tried at one endpoint after the other."""

MOST_RECEIVED = 64 * 1024 * 1024
"""Bytes of one answer."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MOST_RECEIVED),
    # A watch has no deadline: pings tell a member that hangs. etcd closes connections that are pinged more often than
    # every 5 s, and gRPC stops pinging a quiet connection unless it is told not to.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
    # Else lines would share connections, and one that hangs would hang all of them.
    ("grpc.use_local_subchannel_pool", 1),
)
_METADATA = (("hasleader", "true"),)
"""A member that has lost the others refuses, and ends streams, instead of saying nothing for ever."""

_FIRST_WAIT = 0.05
_LONGEST_WAIT = 1.0

_DEFINITE = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.ALREADY_EXISTS,
    }
)
_USERS_CHANGED = ("revision of auth store is old", "invalid auth token")
"""What etcd says when its users, roles or permissions changed while a request was under way; nothing was applied."""

_CLOSED = "the store is closed"
_EOF: Any = vars(grpc.aio)["EOF"]  # its type stubs lack it

Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")


class AnswerTooLarge(StoreError):
    """An answer has more than MOST_RECEIVED bytes: ask for less."""


class Stream(Generic[Answer]):
    """A stream of requests and answers with one endpoint."""

    def __init__(self, target: str, call: Any) -> None:
        self._target = target
        self._call = call

    async def write(self, request: Message, seconds: float) -> None:
        """Raises StoreUnavailable when it takes longer, or is broken."""
        async with self._deadline(seconds):
            await self._call.write(request)

    async def read(self, seconds: float | None = None) -> Answer:
        """The next answer. Raises StoreUnavailable when it takes longer, or the stream has ended."""
        async with self._deadline(seconds):
            answer = await self._call.read()
        if answer is _EOF:
            raise StoreUnavailable(f"etcd at {self._target} has ended the stream")
        return cast(Answer, answer)

    @asynccontextmanager
    async def _deadline(self, seconds: float | None) -> AsyncGenerator[None, None]:
        try:
            with _understood(self._target):
                async with asyncio.timeout(seconds):
                    yield
        except TimeoutError:
            raise StoreUnavailable(f"etcd at {self._target} says nothing") from None


class Endpoint:
    """One endpoint for one purpose."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.target = target
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._streams: set[Any] = set()

    async def call(self, path: str, request: Message, answer: type[Answer], seconds: float = CALL_SECONDS) -> Answer:
        """One call. Raises what `meaning` makes of a refusal, and AnswerTooLarge."""
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = self._channel.unary_unary(
                f"/etcdserverpb.{path}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
        with _understood(self.target):
            return cast(Answer, await method(request, timeout=seconds, metadata=_METADATA))

    @asynccontextmanager
    async def stream(self, path: str, answer: type[Answer]) -> AsyncGenerator[Stream[Answer], None]:
        """A stream, which ends with the context."""
        method: Any = self._channel.stream_stream(
            f"/etcdserverpb.{path}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        with _understood(self.target):
            call = method(metadata=_METADATA)
        self._streams.add(call)
        try:
            yield Stream(self.target, call)
        finally:
            self._streams.discard(call)
            call.cancel()

    async def close(self) -> None:
        """Ends the streams too, which the closing of a channel may leave hanging."""
        for call in self._streams:
            call.cancel()
        await self._channel.close(None)


class Line:
    """All endpoints for one purpose. It dials when it is first used; `close` ends what is under way."""

    def __init__(self, address: EtcdAddress, credentials: grpc.ChannelCredentials | None) -> None:
        self._targets = address.endpoints
        self._credentials = credentials
        self._dialled: dict[str, Endpoint] = {}
        self._current = 0
        self.closed = False

    @property
    def endpoints(self) -> list[Endpoint]:
        """All of them."""
        return [self._endpoint(target) for target in self._targets]

    def current(self) -> Endpoint:
        """The one in use. Raises StoreUnavailable when the line is closed."""
        if self.closed:
            raise StoreUnavailable(_CLOSED)
        return self._endpoint(self._targets[self._current])

    def leave(self, endpoint: Endpoint) -> None:
        """Goes to the next endpoint, unless another caller has left this one already."""
        if endpoint.target == self._targets[self._current]:
            self._current = (self._current + 1) % len(self._targets)

    async def once(self, path: str, request: Message, answer: type[Answer]) -> Answer:
        """One call at the current endpoint. After StoreUnavailable the next one goes to another."""
        endpoint = self.current()
        try:
            return await endpoint.call(path, request, answer)
        except StoreUnavailable:
            self.leave(endpoint)
            raise

    async def again(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Tries what may be done twice until `READ_SECONDS` are over, and then raises StoreUnavailable."""
        clock = asyncio.get_running_loop().time
        end = clock() + READ_SECONDS
        wait = _FIRST_WAIT
        while True:
            try:
                return await attempt()
            except StoreUnavailable:
                if self.closed or clock() + wait >= end:
                    raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(wait * 2, _LONGEST_WAIT)

    async def close(self) -> None:
        """Closes every channel."""
        self.closed = True
        await asyncio.gather(*(endpoint.close() for endpoint in self._dialled.values()))

    def _endpoint(self, target: str) -> Endpoint:
        if target not in self._dialled:
            self._dialled[target] = Endpoint(target, self._credentials)
        return self._dialled[target]


def credentials(address: EtcdAddress) -> grpc.ChannelCredentials | None:
    """What the files hold, or None for plain text. Raises StoreRefused when one cannot be read, or holds no PEM."""
    tls = address.tls
    if tls is None:
        return None
    try:
        return grpc.ssl_channel_credentials(
            _pem(tls.ca),
            _pem(tls.private_key) if tls.private_key is not None else None,
            _pem(tls.certificate) if tls.certificate is not None else None,
        )
    except OSError as error:
        raise StoreRefused(f"the file {error.filename} for the store's TLS cannot be read: {error.strerror}") from error


def _pem(path: Path) -> bytes:
    pem = path.read_bytes()
    if b"-----BEGIN " not in pem:  # of an empty one gRPC ends the process
        raise StoreRefused(f"the file {path} for the store's TLS holds no PEM")
    return pem


def meaning(code: grpc.StatusCode, said: str, target: str) -> StoreError:
    """What a refusal by etcd, or by gRPC on the way, means for the port (etcd: api/v3rpc/rpctypes/error.go).

    Whatever is not surely definite is unclear, and sent again.
    """
    if "database space exceeded" in said:
        # A member may refuse what the others commit, so it is not definite.
        return StoreFull(f"etcd at {target} has reached its quota; docs/store.md says how to make room")
    if "request is too large" in said:
        return InvalidTxn("etcd takes no request of this size; give it --max-request-bytes=1572864 or more")
    if "lease not found" in said:
        return LeaseNotFound("the lease does not exist or has expired")
    if "has been compacted" in said:
        return Compacted(0)
    if any(text in said for text in _USERS_CHANGED):
        return StoreUnavailable(f"etcd at {target}: {said}")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED) or (
        "user name is empty" in said or "permission denied" in said
    ):
        return StoreRefused(
            f"etcd at {target} demands a user that may do this ({said}): give store_cert and store_key a certificate "
            "whose common name is an etcd user with a role that reads and writes all of our prefix"
        )
    if code in _DEFINITE:
        return InvalidTxn(f"etcd at {target} refuses the request: {said or code.name}")
    return StoreUnavailable(f"etcd at {target}: {said or code.name}")


@contextmanager
def _understood(target: str) -> Iterator[None]:
    """Raises gRPC's errors as the port's."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        said = error.details() or ""
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in said:
            raise AnswerTooLarge(said) from error
        raise meaning(error.code(), said, target) from error
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:  # closed, or broken before
        raise StoreUnavailable(f"the connection to etcd at {target} is closed") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not the caller was cancelled but the call, by the closing of its channel.
        raise StoreUnavailable(_CLOSED) from error
