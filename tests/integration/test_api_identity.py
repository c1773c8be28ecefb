"""Joining with a token, renewing, and who may make tokens: over real TLS and a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.v1 import identity_service_pb2, identity_service_pb2_grpc
from antiphon_certs import Authority, Credential, JoinToken, Kind, new_key_and_csr
from antiphon_orchestrator.store import SqliteStore, keys
from api_harness import TIMEOUT, Running, details, reason_of, serving, status_of
from google.rpc import error_details_pb2

Stub: Any = identity_service_pb2_grpc.IdentityServiceStub


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
async def api(authority: Authority, store: SqliteStore) -> AsyncIterator[Running]:
    async with serving(authority, store=store) as running:
        yield running


async def create(api: Running, *, by: Credential | None = None, **fields: Any) -> JoinToken:
    request = identity_service_pb2.CreateTokenRequest(
        **{"kind": "sidecar", "name": "edge-1", "agents": ["a"], "capabilities": ["text.*"], **fields}
    )
    operator = by or api.credential(Kind.OPERATOR, "olga")
    return JoinToken.parse((await Stub(api.dial(operator)).CreateToken(request, timeout=TIMEOUT)).token)


async def join(api: Running, token: JoinToken, request: bytes, *, secret: bytes | None = None) -> Any:
    return await Stub(api.dial_join()).Join(
        identity_service_pb2.JoinRequest(
            token_id=token.token_id, secret=(secret or token.secret).hex(), signing_request=request.decode()
        ),
        timeout=TIMEOUT,
    )


async def refused(call: Any, reason: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == reason
    return caught.value


async def test_a_token_becomes_a_certificate_with_its_names_and_grants(api: Running) -> None:
    token = await create(api)
    assert token.addresses == (api.address,)
    assert token.join_addresses == (api.join_address,)
    assert token.root_pem == api.authority.root_pem
    key, request = new_key_and_csr(token.identity)
    grant = (await join(api, token, request)).certificate
    credential = Credential.from_pem(key, grant.chain.encode(), grant.trust_bundle.encode())
    assert grant.spiffe_id == credential.identity.uri == "spiffe://mesh.test/ns/team-a/sidecar/edge-1"
    assert credential.grants.allows_capability("text.summarize")
    assert not credential.grants.allows_agent("b")
    assert grant.expire_time.ToDatetime(UTC) == credential.not_after
    # It works at once: renewing is what a sidecar may do.
    fresh_key, fresh_request = new_key_and_csr(token.identity)
    renewal = identity_service_pb2.RenewRequest(signing_request=fresh_request.decode())
    renewed = (await Stub(api.dial(credential)).Renew(renewal, timeout=TIMEOUT)).certificate
    successor = Credential.from_pem(fresh_key, renewed.chain.encode(), renewed.trust_bundle.encode())
    assert (successor.identity, successor.grants) == (credential.identity, credential.grants)


async def test_a_token_works_once_but_its_answer_may_be_asked_for_again(api: Running) -> None:
    token = await create(api)
    _, request = new_key_and_csr(token.identity)
    first = await join(api, token, request)
    again = await join(api, token, request)
    assert again.certificate.spiffe_id == first.certificate.spiffe_id
    _, other = new_key_and_csr(token.identity)
    error = await refused(join(api, token, other), "TOKEN_NOT_ACCEPTED")
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "used before" in (error.details() or "")


async def test_of_many_bearers_at_once_one_joins(api: Running) -> None:
    token = await create(api)
    answers = await asyncio.gather(
        *(join(api, token, new_key_and_csr(token.identity)[1]) for _ in range(8)), return_exceptions=True
    )
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1


async def test_a_bad_signing_request_does_not_use_the_token_up(api: Running) -> None:
    token = await create(api)
    await refused(join(api, token, b"nonsense"), "SIGNING_REQUEST_INVALID")
    await join(api, token, new_key_and_csr(token.identity)[1])


async def test_wrong_secret_unknown_id_and_expiry_are_refused(api: Running) -> None:
    token = await create(api, lifetime=timedelta(minutes=5))
    _, request = new_key_and_csr(token.identity)
    await refused(join(api, token, request, secret=b"x" * 32), "TOKEN_NOT_ACCEPTED")
    odd = identity_service_pb2.JoinRequest(token_id=token.token_id, secret="zz", signing_request=request.decode())
    await refused(Stub(api.dial_join()).Join(odd, timeout=TIMEOUT), "TOKEN_NOT_ACCEPTED")
    unknown = identity_service_pb2.JoinRequest(token_id="none", secret="00", signing_request=request.decode())
    await refused(Stub(api.dial_join()).Join(unknown, timeout=TIMEOUT), "TOKEN_NOT_ACCEPTED")
    api.clock.advance(timedelta(minutes=6))
    error = await refused(join(api, token, request), "TOKEN_NOT_ACCEPTED")
    assert "expired" in (error.details() or "")


async def test_the_secret_is_not_in_the_store(api: Running, store: SqliteStore) -> None:
    token = await create(api)
    value = (await store.range(keys.token(token.token_id))).kvs[0].value
    assert token.secret.hex().encode() not in value
    assert token.secret not in value


async def test_expired_tokens_are_forgotten_when_new_ones_are_made(api: Running, store: SqliteStore) -> None:
    old = [await create(api, lifetime=timedelta(minutes=1)) for _ in range(3)]
    api.clock.advance(timedelta(minutes=2))
    await create(api)
    assert not any([(await store.range(keys.token(token.token_id))).kvs for token in old])


async def test_only_operators_make_tokens_and_only_for_their_own_namespace(api: Running) -> None:
    client = api.credential(Kind.CLIENT)
    await refused(create(api, by=client), "ACCESS_DENIED")
    await refused(create(api, namespace="team-b"), "POLICY_DENIED")
    system = api.credential(Kind.OPERATOR, "root", "system")
    token = await create(api, by=system, namespace="team-b")
    assert token.identity.namespace == "team-b"


async def test_patterns_of_a_token_are_checked_and_belong_to_sidecars(api: Running) -> None:
    error = await refused(create(api, capabilities=["text.*", "a b"]), "REQUEST_INVALID")
    violations = details(status_of(error), error_details_pb2.BadRequest)[0].field_violations
    assert [violation.field for violation in violations] == ["capabilities[1]"]
    await refused(create(api, kind="client"), "REQUEST_INVALID")
    token = await create(api, kind="client", name="bob", agents=[], capabilities=[])
    assert token.identity.kind is Kind.CLIENT


async def test_the_trust_bundle_is_public_on_the_join_listener_only(api: Running) -> None:
    request = identity_service_pb2.GetTrustBundleRequest()
    answer = await Stub(api.dial_join()).GetTrustBundle(request, timeout=TIMEOUT)
    assert answer.trust_bundle.encode() == api.authority.bundle_pem
    assert answer.digest == api.authority.root_fingerprint
    await refused(Stub(api.dial()).GetTrustBundle(request, timeout=TIMEOUT), "ACCESS_DENIED")


async def test_renewing_needs_the_mutual_tls_listener(api: Running) -> None:
    _, request = new_key_and_csr(api.credential().identity)
    renewal = identity_service_pb2.RenewRequest(signing_request=request.decode())
    await refused(Stub(api.dial_join()).Renew(renewal, timeout=TIMEOUT), "CERTIFICATE_REQUIRED")
    grant = (await Stub(api.dial()).Renew(renewal, timeout=TIMEOUT)).certificate
    assert grant.expire_time.ToDatetime(UTC) > datetime.now(UTC)
