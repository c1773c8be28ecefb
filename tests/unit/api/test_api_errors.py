"""The registry of errors, as statuses and as items of streams."""

from __future__ import annotations

from datetime import timedelta
from string import Formatter
from typing import Any

import grpc
import pytest
from antiphon.options.v1 import options_pb2
from antiphon.v1 import error_pb2
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_orchestrator.api.errors import DOMAIN, REGISTRY, ApiError, Violation, refusal
from antiphon_orchestrator.store import StoreFull, StoreUnavailable
from google.rpc import error_details_pb2

REASONS = list(REGISTRY)


def made(reason: ErrorReason.ValueType, **more: Any) -> ApiError:
    return ApiError(reason, **{key: f"<{key}>" for key in REGISTRY[reason].keys}, **more)


def details(error: ApiError) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for detail in error.to_status().details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


def test_every_reason_but_the_zero_is_in_the_registry() -> None:
    assert set(REGISTRY) == {value.number for value in ErrorReason.DESCRIPTOR.values if value.number}
    assert all(spec.code is not grpc.StatusCode.UNKNOWN for spec in REGISTRY.values())


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: REGISTRY[reason].name)
def test_a_status_says_reason_variables_and_when_to_retry(reason: ErrorReason.ValueType) -> None:
    spec, error = REGISTRY[reason], made(reason)
    status, found = error.to_status(), details(error)
    info = found["ErrorInfo"]
    assert (status.code, info.reason, info.domain) == (spec.code.value[0], spec.name, DOMAIN)
    assert dict(info.metadata) == {key: f"<{key}>" for key in spec.keys}
    assert ("RetryInfo" in found) == (spec.remedy == options_pb2.REMEDY_RETRY)
    assert {name for _, name, _, _ in Formatter().parse(spec.message) if name} <= spec.keys
    assert all(f"<{key}>" in status.message for key in spec.keys if f"{{{key}}}" in spec.message)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: REGISTRY[reason].name)
def test_an_item_of_a_stream_says_the_same(reason: ErrorReason.ValueType) -> None:
    error = made(reason)
    item, status = error.to_error(), error.to_status()
    assert (item.reason, item.message, dict(item.metadata)) == (reason, status.message, error.metadata)
    assert item.HasField("retry_delay") == (error.retry_after is not None)


def test_missing_or_surplus_variables_are_a_bug() -> None:
    with pytest.raises(TypeError, match="RUN_NOT_FOUND needs"):
        ApiError(error_pb2.ERROR_REASON_RUN_NOT_FOUND)
    with pytest.raises(TypeError, match="RUN_NOT_FOUND needs"):
        ApiError(error_pb2.ERROR_REASON_RUN_NOT_FOUND, run_id="r", other="x")
    with pytest.raises(TypeError, match="not to retry"):
        made(error_pb2.ERROR_REASON_RUN_NOT_FOUND, retry_after=timedelta(seconds=1))


def test_those_refused_together_do_not_come_back_together() -> None:
    delays = {made(error_pb2.ERROR_REASON_OVERLOADED).retry_after for _ in range(20)}
    assert len(delays) > 1
    assert all(delay and timedelta(seconds=0.75) <= delay <= timedelta(seconds=1.25) for delay in delays)


def test_a_status_stays_within_what_clients_accept_as_metadata() -> None:
    many = [Violation(f"graph.tasks[{index}].when", "é" * 1000) for index in range(10_000)]
    error = ApiError(error_pb2.ERROR_REASON_GRAPH_INVALID, violations=many, graph="g" * 10_000, count=10_000)
    assert len(error.to_status().SerializeToString()) * 4 / 3 < 7000
    last = error.violations[-1]
    assert last.message == f"and {10_000 - (len(error.violations) - 1)} more"


def test_what_is_a_refusal_and_what_is_a_bug() -> None:
    refused = made(error_pb2.ERROR_REASON_RUN_NOT_FOUND)
    assert refusal(refused) is refused
    assert refusal(ExceptionGroup("a", [ValueError(), ExceptionGroup("b", [refused])])) is refused
    for store_error, reason in (
        (StoreFull("full"), error_pb2.ERROR_REASON_STORE_FULL),
        (StoreUnavailable("gone"), error_pb2.ERROR_REASON_STORE_UNAVAILABLE),
    ):
        translated = refusal(store_error)
        assert translated is not None and translated.reason == reason
    assert refusal(ValueError("a bug")) is None
