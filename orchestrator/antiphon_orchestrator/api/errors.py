"""Refusals: from a reason of the registry to the one status, or stream item, that says it.

The registry is the enum `antiphon.v1.ErrorReason`: each value carries its gRPC code, remedy, metadata keys and message
as an option, and nothing of it is repeated here. Invariants: every status has exactly one ErrorInfo; RetryInfo is there
exactly when the remedy is RETRY; a status fits the 8 KiB of metadata that clients accept by default; an exception that
is no refusal becomes INTERNAL and shows its trace id only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import NamedTuple

import grpc
from antiphon.options.v1 import options_pb2
from antiphon.v1 import error_pb2
from antiphon.v1.error_pb2 import ErrorReason
from google.rpc import error_details_pb2, status_pb2

from antiphon_orchestrator.store.port import StoreFull, StoreUnavailable

DOMAIN = "antiphon.v1"
_PREFIX = "ERROR_REASON_"
_RETRY_AFTER = timedelta(seconds=1)
_JITTER = 0.25
_VALUE_LENGTH = 512
_VIOLATION_LENGTH = 300
# Trailers travel as base64 beside other metadata, and stock clients refuse more than 8 KiB of it.
_VIOLATIONS_LENGTH = 3072
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Violation(NamedTuple):
    """A field at fault, such as `tasks[3].when`, and what is wrong with it."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the registry. `name` is the reason without its prefix, as it travels."""

    name: str
    code: grpc.StatusCode
    remedy: options_pb2.Remedy.ValueType
    keys: frozenset[str]
    message: str
    universal: bool


def _registry() -> Mapping[ErrorReason.ValueType, Spec]:
    specs = {}
    for value in ErrorReason.DESCRIPTOR.values[1:]:
        row = value.GetOptions().Extensions[options_pb2.error]
        specs[ErrorReason.ValueType(value.number)] = Spec(
            value.name.removeprefix(_PREFIX),
            _CODES[row.code],
            row.remedy,
            frozenset(row.metadata),
            row.message,
            row.universal,
        )
    return MappingProxyType(specs)


REGISTRY: Mapping[ErrorReason.ValueType, Spec] = _registry()


class ApiError(Exception):
    """A refused call or item. `metadata` must name exactly the keys of the reason's row; anything else is a bug.

    `violations` are cut to what a status can carry. `retry_after` is for reasons whose remedy is RETRY; without it the
    caller is told to wait a second, more or less.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        *,
        violations: Sequence[Violation] = (),
        retry_after: timedelta | None = None,
        **metadata: str | int,
    ) -> None:
        spec = REGISTRY[reason]
        if metadata.keys() != spec.keys:
            raise TypeError(f"{spec.name} needs the metadata {sorted(spec.keys)}, not {sorted(metadata)}")
        retries = spec.remedy == options_pb2.REMEDY_RETRY
        if retry_after is not None and not retries:
            raise TypeError(f"the remedy of {spec.name} is not to retry")
        self.reason = reason
        self.spec = spec
        self.metadata = {key: str(value)[:_VALUE_LENGTH] for key, value in metadata.items()}
        self.violations = tuple(_fitting(violations))
        self.retry_after = _spread(_RETRY_AFTER if retry_after is None else retry_after) if retries else None
        super().__init__(spec.message.format_map(self.metadata))

    def to_status(self) -> status_pb2.Status:
        """The google.rpc.Status of a refused call."""
        status = status_pb2.Status(code=self.spec.code.value[0], message=str(self))
        info = error_details_pb2.ErrorInfo(reason=self.spec.name, domain=DOMAIN, metadata=self.metadata)
        status.details.add().Pack(info)
        if self.violations:
            request = error_details_pb2.BadRequest()
            for violation in self.violations:
                request.field_violations.add(field=violation.field, description=violation.message)
            status.details.add().Pack(request)
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromTimedelta(self.retry_after)
            status.details.add().Pack(retry)
        return status

    def to_error(self) -> error_pb2.Error:
        """The same content as an item of a stream."""
        error = error_pb2.Error(reason=self.reason, message=str(self), metadata=self.metadata)
        for violation in self.violations:
            error.violations.add(field=violation.field, message=violation.message)
        if self.retry_after is not None:
            error.retry_delay.FromTimedelta(self.retry_after)
        return error


def request_invalid(violations: Sequence[Violation]) -> ApiError:
    """A request that breaks rules of the contract; `violations` is not empty."""
    return ApiError(ErrorReason.ERROR_REASON_REQUEST_INVALID, violations=violations, field=violations[0].field)


def refusal(error: BaseException) -> ApiError | None:
    """What an exception refuses, or None when it is a bug.

    Concurrent parts of a handler fail as a group; a refusal in it is the cause, the rest its consequences.
    """
    for leaf in _leaves(error):
        if isinstance(leaf, ApiError):
            return leaf
        if isinstance(leaf, StoreFull):
            # Its own text may name an address of etcd, which is nothing for callers.
            cause = "it has reached its limit, or its disk has; free space or raise the limit"
            return ApiError(ErrorReason.ERROR_REASON_STORE_FULL, cause=cause)
        if isinstance(leaf, StoreUnavailable):
            return ApiError(ErrorReason.ERROR_REASON_STORE_UNAVAILABLE)
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _fitting(violations: Sequence[Violation]) -> Iterator[Violation]:
    left = _VIOLATIONS_LENGTH
    for index, (field, message) in enumerate(violations):
        violation = Violation(field[:_VIOLATION_LENGTH], message[:_VIOLATION_LENGTH])
        left -= len(violation.field.encode()) + len(violation.message.encode()) + 8
        if left < 0:
            yield Violation("", f"and {len(violations) - index} more")
            return
        yield violation


def _spread(delay: timedelta) -> timedelta:
    """The delay, up to a quarter less or more, so that callers refused together do not come back together."""
    return delay * random.uniform(1 - _JITTER, 1 + _JITTER)
