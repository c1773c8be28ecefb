"""Who is calling and on whose trace, for the code below the API; set once a call has passed every check.

A call runs in a task of its own, so a context variable reaches the handler and whatever it starts, and nobody else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from antiphon_certs import Grants, Identity, Peer

FORWARDED = "antiphon-forwarded-bin"
"""Metadata of a call that a replica passes on: a mesh.v1.ForwardedCall."""

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Caller:
    """An identity whose certificate is in order, and the W3C traceparent of its call. `principal` is its SPIFFE id."""

    identity: Identity
    grants: Grants
    traceparent: str
    principal: str
    forwarded: bool = False
    """Whether another replica passed the call on, for what this one owns."""
    peer: Peer | None = None
    """What the certificate of the connection says."""

    @classmethod
    def of(cls, peer: Peer, traceparent: str, forwarded: bool = False) -> Caller:
        return cls(peer.identity, peer.grants, traceparent, peer.identity.uri, forwarded, peer)

    @property
    def namespace(self) -> str:
        """The tenant the caller belongs to, and the only one its call may touch."""
        return self.identity.namespace


_caller: ContextVar[Caller] = ContextVar("antiphon_caller")
_waits: ContextVar[Callable[[], None]] = ContextVar("antiphon_waits", default=lambda: None)


def caller() -> Caller:
    """The caller of the present call. Raises `LookupError` where there is none: outside a call, or on the listener
    without client certificates."""
    return _caller.get()


def set_caller(value: Caller) -> None:
    """For the interceptor."""
    _caller.set(value)


def set_waits(value: Callable[[], None]) -> None:
    """For the interceptor."""
    _waits.set(value)


def now_waiting() -> None:
    """The present call is about to wait for what is not the server's: it is not in hand any more, but is watched and
    counted as a stream is. Raises `ApiError` when its caller has too many: call it before anything is done.
    """
    _waits.get()()


def traceparent(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's traceparent, or a new one when it sent none, or one that is malformed.

    A new trace is marked as sampled: we record nothing unless told to, but an agent further on may want to.
    """
    for key, value in metadata:
        if key == "traceparent" and isinstance(value, str) and _TRACEPARENT.fullmatch(value):
            return value
    fresh = os.urandom(24).hex()
    return f"00-{fresh[:32]}-{fresh[32:]}-01"


def forwarded(metadata: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    """What a replica says of the call that it passes on, unchecked; None for a call that comes from its caller."""
    for key, value in metadata:
        if key == FORWARDED:
            return value if isinstance(value, bytes) else b""
    return None


def trace_id(traceparent: str) -> str:
    """The 32 hexadecimal digits that name the trace."""
    return traceparent[3:35]
