"""What is wrong with the answers to a case: pure, so that it can be judged itself. No complaint means that all is well.

Besides what the case expects, every refusal must keep the rules of the registry: a known reason with its code, exactly
its metadata, RetryInfo exactly when the remedy is to retry, and universal or declared by the method. INTERNAL is always
a complaint: it means a bug.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2, status_pb2

from tests.contract.cases import Case, Expected
from tests.contract.contract import Contract, Method, is_own

DOMAIN = "antiphon.v1"
OK, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 4, 8, 14

_LONGEST_PATH = 300  # a status must fit the metadata that clients accept, so the servers cut longer ones
_ITEM = re.compile(r"^\w+\[0\]\.")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*-----END CERTIFICATE-----\s*", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What came of a call. `code` is 0 for OK, and for a stream that was still open when it was left.

    details    google.rpc.Status as it came in the trailers; None without one
    responses  the messages, serialised, in order
    """

    code: int
    message: str
    details: bytes | None
    responses: tuple[bytes, ...]


@dataclass(frozen=True)
class Refusal:
    """An error, from a status or from an item of a stream."""

    code: int | None
    reason: str
    domain: str
    metadata: Mapping[str, str]
    fields: tuple[str, ...]
    retry: bool


def complaints(contract: Contract, case: Case, answers: list[Answer]) -> list[str]:
    """Everything that is wrong, one line each."""
    found = [wrong for answer in answers for wrong in wrong_with_refusals(contract, case.method, answer)]
    return found + list(_CHECKS[case.expected](contract, case, answers))


def wrong_with_refusals(contract: Contract, method: Method, answer: Answer) -> list[str]:
    """What is wrong with the refusals in an answer, whatever was asked: one line each."""
    return [
        f"{refusal.reason or 'no reason'}: {wrong}"
        for refusal in refusals(contract, method, answer)
        for wrong in _wrong_with(contract, method, refusal)
    ]


def refusals(contract: Contract, method: Method, answer: Answer) -> list[Refusal]:
    """Every error in an answer."""
    found = [_of_status(answer)] if answer.details is not None else []
    for data in answer.responses:
        found += _items(contract, contract.message(method.response, data))
    return found


def _of_status(answer: Answer) -> Refusal:
    assert answer.details is not None
    status = status_pb2.Status.FromString(answer.details)
    infos: list[Any] = []
    fields: list[str] = []
    retry = False
    for detail in status.details:
        info, bad, again = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            infos.append(info)
        elif detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
        elif detail.Unpack(again):
            retry = again.retry_delay.ToNanoseconds() > 0
    if len(infos) != 1:
        return Refusal(answer.code, "", "", {}, tuple(fields), retry)
    code = answer.code if answer.code == status.code else None
    return Refusal(code, infos[0].reason, infos[0].domain, dict(infos[0].metadata), tuple(fields), retry)


def _items(contract: Contract, message: Any) -> Iterator[Refusal]:
    if message.DESCRIPTOR.full_name == contract.error.full_name:
        name = contract.reason_of(message.reason)
        code = contract.reasons[name].code if name else None
        fields = tuple(violation.field for violation in message.violations)
        yield Refusal(code, name, DOMAIN, dict(message.metadata), fields, message.HasField("retry_delay"))
        return
    for field, value in message.ListFields():
        if is_own(field.message_type):
            for inner in value if field.is_repeated else (value,):
                yield from _items(contract, inner)


def _wrong_with(contract: Contract, method: Method, refusal: Refusal) -> Iterator[str]:
    spec = contract.reasons.get(refusal.reason)
    if spec is None:
        yield "the status does not have exactly one known reason"
        return
    if refusal.domain != DOMAIN:
        yield f"the domain is {refusal.domain}"
    if refusal.code != spec.code:
        yield f"the code is {refusal.code}, declared is {spec.code}"
    if set(refusal.metadata) != spec.keys:
        yield f"the metadata is {sorted(refusal.metadata)}, declared is {sorted(spec.keys)}"
    if refusal.retry != spec.retry:
        yield "RetryInfo is missing" if spec.retry else "RetryInfo is there, and the remedy is not to retry"
    if not spec.universal and refusal.reason not in method.errors:
        yield "it is neither universal nor declared by the method"
    if refusal.reason == "INTERNAL":
        yield "an internal error is a bug"


# What each expectation demands


def _accepted(contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    for call, answer in zip(case.calls, answers, strict=True):
        if not _acceptable(contract, case.method, answer):
            yield f"a valid request of {call.identity} was refused: {_told(contract, case.method, answer)}"


def _served(contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    yield from _accepted(contract, case, answers)
    if all("POLICY_DENIED" in _reasons(contract, case.method, answer) for answer in answers):
        yield "policy lets nobody call it, so nothing was tried"


def _refused(contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    for answer in answers:
        found = refusals(contract, case.method, answer)
        if not any(refusal.reason == case.reason for refusal in found):
            yield f"{case.reason} was expected: {_told(contract, case.method, answer)}"
        elif case.path:
            fields = {field for refusal in found for field in refusal.fields}
            # What answers an item names the field in it.
            path = case.path if answer.details is not None else _ITEM.sub("", case.path)
            if fields != {path[:_LONGEST_PATH]}:
                yield f"the violations name {sorted(fields)} instead of {path}"


def _tolerated(contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    if any(True for _ in _accepted(contract, case, answers)):
        yield from _refused(contract, case, answers)


def _unreached(contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    for answer in answers:
        if answer.code != UNAVAILABLE or answer.details is not None:
            yield f"there was a connection: {_told(contract, case.method, answer)}"


def _coded(code: int, contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    for answer in answers:
        if answer.code != code:
            yield f"code {code} was expected: {_told(contract, case.method, answer)}"


def _equal(contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    yield from _accepted(contract, case, answers)
    if len({alike(contract, case.method, answer) for answer in answers}) != 1:
        yield "the same request had different answers"


def _different(contract: Contract, case: Case, answers: list[Answer]) -> Iterator[str]:
    first, second, fresh = answers
    if _succeeded(contract, case.method, first) and _succeeded(contract, case.method, fresh):
        yield from _refused(contract, case, [second])


_CHECKS = {
    Expected.ACCEPTED: _accepted,
    Expected.SERVED: _served,
    Expected.REFUSED: _refused,
    Expected.TOLERATED: _tolerated,
    Expected.UNREACHED: _unreached,
    Expected.LATE: partial(_coded, DEADLINE_EXCEEDED),
    Expected.TOO_LARGE: partial(_coded, RESOURCE_EXHAUSTED),
    Expected.EQUAL: _equal,
    Expected.DIFFERENT: _different,
}


def shows_a_difference(contract: Contract, case: Case, answers: list[Answer]) -> bool:
    """Whether a case of reuse could be told at all: both requests are good ones when they have ids of their own."""
    return _succeeded(contract, case.method, answers[0]) and _succeeded(contract, case.method, answers[2])


def alike(contract: Contract, method: Method, answer: Answer) -> tuple[Any, ...]:
    """An answer, without what a repetition by its nature makes anew: times, signatures, and certificates.

    A certificate that is issued again has another number and time; who it names, and for which key, is the same.
    """
    return (
        answer.code,
        *sorted(_reasons(contract, method, answer)),
        *(_settled(contract.message(method.response, data)) for data in answer.responses),
    )


def _settled(message: Any) -> str:
    _settle(message)
    return f"{message.DESCRIPTOR.name} {message.SerializeToString(deterministic=True).hex()}"


def _settle(message: Any) -> None:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated and _PEM.fullmatch(value):
            setattr(message, field.name, _certified(value))
        elif is_own(field.message_type):
            for inner in value if field.is_repeated else (value,):
                _settle(inner)
        elif field.name == "signature" or (field.message_type is not None and field.message_type.name == "Timestamp"):
            message.ClearField(field.name)


def _certified(pem: str) -> str:
    leaf = x509.load_pem_x509_certificates(pem.encode())[0]
    key = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return f"{sorted(names.get_values_for_type(x509.UniformResourceIdentifier))} {key}"


def _acceptable(contract: Contract, method: Method, answer: Answer) -> bool:
    if answer.code != OK and answer.details is None:
        return False
    # Of the universal reasons only policy's is about what is asked; the others are about how, or the server's state.
    return _reasons(contract, method, answer) <= {*method.errors, "POLICY_DENIED"}


def _succeeded(contract: Contract, method: Method, answer: Answer) -> bool:
    return answer.code == OK and not _reasons(contract, method, answer)


def _reasons(contract: Contract, method: Method, answer: Answer) -> set[str]:
    return {refusal.reason for refusal in refusals(contract, method, answer)}


def _told(contract: Contract, method: Method, answer: Answer) -> str:
    if answer.code == OK and not refusals(contract, method, answer):
        return "it was accepted"
    fields = sorted({field for refusal in refusals(contract, method, answer) for field in refusal.fields})
    return f"code {answer.code}, {sorted(_reasons(contract, method, answer))} {fields} {answer.message[:300]!r}"
