"""Requests to shared context from what a user says, for clients and for tasks; both spell scopes and values alike."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any

from antiphon.v1 import context_pb2, context_service_pb2
from antiphon.v1.payload_pb2 import Payload

from . import _json
from ._context import sendable, value_of
from ._schema import codec

NAMESPACE = "namespace"

Upload = Callable[[bytes], Awaitable[Payload]]


def scope_of(text: str) -> context_pb2.ContextScope:
    """`namespace`, `run:ID` or `graph:NAME`; a task may leave id and name out. Raises `ValueError`."""
    kind, _, name = text.partition(":")
    if kind == "run":
        return context_pb2.ContextScope(run_id=name)
    if kind == "graph":
        return context_pb2.ContextScope(graph=name)
    if text != NAMESPACE:
        raise ValueError(f"{text!r} is not a scope; write namespace, run:ID or graph:NAME")
    return context_pb2.ContextScope()


def scope_text(scope: context_pb2.ContextScope) -> str:
    """The same, spelled."""
    kind = scope.WhichOneof("kind")
    if kind is None:
        return NAMESPACE
    return f"run:{scope.run_id}" if kind == "run_id" else f"graph:{scope.graph}"


def entry_value(entry: context_pb2.Entry, returns: Any = Any) -> Any:
    """The value of an entry: plain JSON, or what `returns` describes.

    Raises `ValueError` for a value that is not inline JSON (see `Client.download_payload`) or does not fit.
    """
    return codec(returns).decode(value_of(entry.value))


async def put_request(
    upload: Upload | None,
    limit: int,
    key: str,
    value: Any,
    *,
    scope: str,
    ttl: timedelta | None,
    expected_revision: int | None,
    labels: Iterable[str],
    claim: context_pb2.Claim | None,
    request_id: str | None,
) -> context_service_pb2.PutEntryRequest:
    """An entry to write; a value of more than `limit` bytes goes through `upload`. Raises `ValueError`, `TypeError`."""
    request = context_service_pb2.PutEntryRequest(
        request_id=request_id or uuid.uuid4().hex,
        scope=scope_of(scope),
        key=key,
        expected_revision=expected_revision,
        claim=claim.claim if claim is not None else None,
    )
    if isinstance(value, Payload):
        request.value.CopyFrom(sendable(value))
    else:
        data = _json.dumps(value)
        if len(data) <= limit or upload is None:
            request.value.inline = data
        else:
            request.value.CopyFrom(await upload(data))
    if (size := len(request.value.inline)) > limit:
        raise ValueError(
            f"the value has {size} bytes, more than {limit}; upload it with Client.upload_payload and put the "
            "antiphon.Payload that it answers"
        )
    for label in labels:
        name, _, said = label.partition("=")
        request.value.labels.add(key=name, value=said)
    if ttl is not None:
        request.ttl.FromTimedelta(ttl)
    return request


def delete_request(
    key: str,
    *,
    scope: str,
    expected_revision: int | None,
    claim: context_pb2.Claim | None,
    request_id: str | None,
) -> context_service_pb2.DeleteEntryRequest:
    """An entry to remove. Raises `ValueError`."""
    return context_service_pb2.DeleteEntryRequest(
        request_id=request_id or uuid.uuid4().hex,
        scope=scope_of(scope),
        key=key,
        expected_revision=expected_revision,
        claim=claim.claim if claim is not None else None,
    )
