"""What every part of the client stands on: the connection, calls with deadlines and repetition, pages, payloads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from typing import Protocol, TypeVar

import grpc

from antiphon.v1.payload_pb2 import Payload

from . import _calls, _payloads
from ._connection import Connection, Generation

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class _PageRequest(Protocol):
    page_token: str


class _Page(Protocol):
    next_page_token: str


PageRequest = TypeVar("PageRequest", bound=_PageRequest)
Page = TypeVar("Page", bound=_Page)


class ClientBase:
    """A connection with the patience to use it; `timeout` is the deadline of a unary call."""

    def __init__(self, connection: Connection, timeout: timedelta, patience: timedelta) -> None:
        self._connection = connection
        self._timeout = timeout
        self._patience = patience

    # Payloads

    async def upload_payload(self, data: bytes, media_type: str = "") -> Payload:
        """Keep a value of any size and return what to send in its place; empty media type means JSON."""
        return await _payloads.upload(self._connection, data, media_type)

    async def download_payload(self, payload: Payload | str) -> bytes:
        """The bytes of a payload, inline or kept by reference, or of a digest. Raises `PayloadNotFound`."""
        if isinstance(payload, Payload) and not payload.HasField("blob"):
            return payload.inline
        digest = payload if isinstance(payload, str) else payload.blob.digest
        return await _payloads.download(self._connection, digest, self._patience)

    # How

    async def _ask(
        self,
        method: Callable[[Generation], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]],
        request: Request,
        limit: timedelta | None = None,
        *,
        repeatable: bool = True,
    ) -> Answer:
        trace = _calls.metadata()

        async def send(to: Generation, left: float) -> Answer:
            return await method(to)(request, timeout=left, metadata=trace)

        return await _calls.call(self._connection, send, limit or self._timeout, repeatable=repeatable)

    async def _pages(
        self,
        method: Callable[[Generation], grpc.aio.UnaryUnaryMultiCallable[PageRequest, Page]],
        request: PageRequest,
        items: Callable[[Page], Iterable[Item]],
    ) -> AsyncIterator[Item]:
        while True:
            page = await self._ask(method, request)
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
