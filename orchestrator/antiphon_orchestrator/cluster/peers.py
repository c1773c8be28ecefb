"""Calls to other replicas, in the name of whoever made the call here.

Requests and answers are passed on as bytes. The original caller travels as metadata (mesh.v1.ForwardedCall), which the
other side believes because our certificate is that of an orchestrator; deadline and trace travel as with any call. A
call that was passed on is never passed on again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Credential
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from .. import telemetry
from ..api.call import FORWARDED, Caller
from ..api.errors import ApiError
from ..api.interceptor import Refusal
from .assignment import Member

log = telemetry.logger("cluster")

_MIB = 1 << 20
_DETAILS = "grpc-status-details-bin"
_OPTIONS = (
    ("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME),
    ("grpc.max_receive_message_length", 5 * _MIB),
    ("grpc.max_send_message_length", 5 * _MIB),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # One that is back on its address is found at once.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

_PASSING = frozenset({"SHARD_MOVED", "NOT_SERVING"})

ANSWER = 5.0
"""Seconds in which a replica that is asked for its part of an answer has to give it."""

_CLEAR = 30.0
"""Seconds between two looks at channels that nobody needs; calls on one that is retired have as long to end."""


class Relayed(Refusal):
    """The refusal of another replica, to be passed on as it is. `reason`: of the registry, empty without one."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details() or "")
        self.code = error.code()
        trailers: dict[str, Any] = dict(iter(error.trailing_metadata() or ()))  # type: ignore[arg-type]
        details = trailers.get(_DETAILS)
        self.details = details if isinstance(details, bytes) else None
        self.reason = _reason(self.details)

    @property
    def passing(self) -> bool:
        """Whether another replica, or the same one in a moment, may well answer: it is not there, or not the owner."""
        broken = self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and self.details is None
        return broken or self.reason in _PASSING


def _reason(details: bytes | None) -> str:
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(details or b"")
        return info.reason if any(any_.Unpack(info) for any_ in status.details) else ""
    except DecodeError:
        return ""


@dataclass(slots=True)
class _Line:
    """A channel, and the certificate it was made with: a new one needs a new channel."""

    credential: Credential
    channel: grpc.aio.Channel


class Peers:
    """Channels to the other replicas, made when they are first needed. `run` clears up; `close` ends all calls."""

    def __init__(self, credential: Callable[[], Credential], others: Callable[[], Sequence[Member]]) -> None:
        self._credential = credential
        self._others = others
        self._lines: dict[str, _Line] = {}
        self._retired: list[grpc.aio.Channel] = []
        self._silent: set[str] = set()
        """Addresses at which nobody was reached when somebody was last called there."""

    async def unary(self, address: str, path: str, request: bytes, who: Caller, left: float | None) -> bytes:
        """The answer to one call within the seconds that are left. Raises Relayed."""
        call = self._channel(address).unary_unary(path, None, None)
        try:
            answer: bytes = await call(request, timeout=left, metadata=_metadata(who))
        except grpc.aio.AioRpcError as error:
            self._note(address, error)
            raise Relayed(error) from error
        self._silent.discard(address)
        return answer

    def stream(self, address: str, path: str, request: bytes, who: Caller) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        """A stream that is asked for once; raises grpc's own errors."""
        call: grpc.aio.UnaryStreamCall[bytes, bytes] = self._channel(address).unary_stream(path, None, None)(
            request, metadata=_metadata(who)
        )
        return call

    def both_ways(self, address: str, path: str, who: Caller) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        """A stream of messages both ways; raises grpc's own errors."""
        call: grpc.aio.StreamStreamCall[bytes, bytes] = self._channel(address).stream_stream(path, None, None)(
            metadata=_metadata(who)  # type: ignore[call-arg]  # the stubs demand an iterator
        )
        return call

    async def everyone(self, path: str, request: bytes, who: Caller) -> list[bytes]:
        """The answers of all other replicas, each for its own part. Raises ApiError when one does not answer."""
        parts = await asyncio.gather(*(self.part(member, path, request, who) for member in self._others()))
        return [answer for answer, _ in parts]

    async def part(self, member: Member, path: str, request: bytes, who: Caller) -> tuple[bytes, Sequence[int]]:
        """The answer of one replica for its own part, with the shards that it says it speaks for, if it says so.

        Raises ApiError (REPLICA_UNAVAILABLE).
        """
        call = self._channel(member.address).unary_unary(path, None, None)(
            request, timeout=ANSWER, metadata=_metadata(who)
        )
        try:
            answer: bytes = await call
            covered = _covered(await call.trailing_metadata())
        except (grpc.aio.AioRpcError, DecodeError) as error:
            if isinstance(error, grpc.aio.AioRpcError):
                self._note(member.address, error)
            raise ApiError(ErrorReason.ERROR_REASON_REPLICA_UNAVAILABLE, replica=member.replica_id) from error
        self._silent.discard(member.address)
        return answer, covered

    async def whoever(self, path: str, request: bytes, who: Caller) -> dict[str, bytes]:
        """The answers of those other replicas that do answer, by their ids."""
        members = list(self._others())
        found = await asyncio.gather(
            *(self.part(member, path, request, who) for member in members), return_exceptions=True
        )
        answers: dict[str, bytes] = {}
        for member, part in zip(members, found, strict=True):
            if not isinstance(part, BaseException):
                answers[member.replica_id] = part[0]
            elif not isinstance(part, ApiError):
                raise part
        return answers

    async def run(self) -> None:
        """Closes what nobody needs, until cancelled."""
        while True:
            await asyncio.sleep(_CLEAR)
            retired, self._retired = self._retired, []
            for channel in retired:
                await channel.close(None)
            there = {member.address for member in self._others()}
            self._silent &= there
            for address in self._lines.keys() - there:
                self._retired.append(self._lines.pop(address).channel)

    async def close(self) -> None:
        """Ends every call and channel."""
        channels = [*self._retired, *(line.channel for line in self._lines.values())]
        self._retired.clear()
        self._lines.clear()
        for channel in channels:
            await channel.close(None)

    def _note(self, address: str, error: grpc.aio.AioRpcError) -> None:
        """Tells, once until it answers, of a replica that counts as there and is not reached at its address."""
        if Relayed(error).details is not None or error.code() is not grpc.StatusCode.UNAVAILABLE:
            return
        there = [member.replica_id for member in self._others() if member.address == address]
        if there and address not in self._silent:
            self._silent.add(address)
            log.warning("replica_unreachable", replica_id=there[0], address=address, cause=error.details())

    def _channel(self, address: str) -> grpc.aio.Channel:
        credential = self._credential()
        line = self._lines.get(address)
        if line is None or line.credential is not credential:
            if line is not None:
                self._retired.append(line.channel)
            secrets = grpc.ssl_channel_credentials(credential.bundle_pem, credential.key_pem, credential.chain_pem)
            line = self._lines[address] = _Line(credential, grpc.aio.secure_channel(address, secrets, _OPTIONS))
        return line.channel


def _covered(trailers: Iterable[tuple[str, str | bytes]]) -> Sequence[int]:
    for key, value in trailers:
        if key == FORWARDED and isinstance(value, bytes):
            return mesh.ForwardedAnswer.FromString(value).shards
    return ()


def _metadata(who: Caller) -> tuple[tuple[str, str | bytes], ...]:
    forwarded = mesh.ForwardedCall(caller=who.principal).SerializeToString()
    return (("traceparent", who.traceparent), (FORWARDED, forwarded))
