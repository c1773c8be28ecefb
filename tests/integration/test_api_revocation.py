"""Revoking certificates and giving expired ones anew: over real TLS, a real store and a clock that is turned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.v1 import identity_service_pb2 as api
from antiphon.v1 import identity_service_pb2_grpc, run_service_pb2, run_service_pb2_grpc
from antiphon_certs import (
    LONGEST_RECOVERY,
    Authority,
    Credential,
    Grants,
    Identity,
    JoinToken,
    Kind,
    new_key_and_csr,
    prove,
)
from antiphon_orchestrator.api.interceptor import RECHECK
from antiphon_orchestrator.store import SqliteStore
from api_harness import DOMAIN, RECOVERY_WINDOW, TIMEOUT, Running, details, reason_of, serving, status_of
from google.rpc import error_details_pb2

from tests.harness import eventually

Stub: Any = identity_service_pb2_grpc.IdentityServiceStub
Runs: Any = run_service_pb2_grpc.RunServiceStub


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that has been there for a while, so that it may have signed what has expired long since."""
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", DOMAIN, now=datetime.now(UTC) - timedelta(days=30))


@pytest.fixture
async def running(authority: Authority, tmp_path: Path) -> AsyncIterator[Running]:
    async with SqliteStore(tmp_path / "store.db") as store, serving(authority, store=store) as running:
        yield running


async def revoke(running: Running, *, by: Credential | None = None, **fields: Any) -> None:
    who = by or running.credential(Kind.OPERATOR, "olga")
    request = api.RevokeCertificatesRequest(**{"cause": "its disk was stolen", **fields})
    await Stub(running.dial(who)).RevokeCertificates(request, timeout=TIMEOUT)


def named(kind: str, name: str) -> api.IdentityName:
    return api.IdentityName(kind=kind, name=name)


async def refused(call: Any, reason: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == reason
    return caught.value


async def token_for(running: Running, name: str, kind: str = "client") -> JoinToken:
    request = api.CreateTokenRequest(kind=kind, name=name)
    operator = running.dial(running.credential(Kind.OPERATOR, "olga"))
    return JoinToken.parse((await Stub(operator).CreateToken(request, timeout=TIMEOUT)).token)


async def joined(running: Running, token: JoinToken) -> Credential:
    key, request = new_key_and_csr(token.identity)
    asked = api.JoinRequest(token_id=token.token_id, secret=token.secret.hex(), signing_request=request.decode())
    grant = (await Stub(running.dial_join()).Join(asked, timeout=TIMEOUT)).certificate
    return Credential.from_pem(key, grant.chain.encode(), grant.trust_bundle.encode())


async def renewed(running: Running, channel: grpc.aio.Channel, who: Credential) -> Credential:
    key, request = new_key_and_csr(who.identity)
    answer = await Stub(channel).Renew(api.RenewRequest(signing_request=request.decode()), timeout=TIMEOUT)
    grant = answer.certificate
    return Credential.from_pem(key, grant.chain.encode(), grant.trust_bundle.encode())


async def test_a_revoked_identity_is_refused_on_live_connections_and_told_why(running: Running) -> None:
    alice, bob = running.dial(), running.dial(running.credential(name="bob"))
    stream = Runs(alice).WatchRun(run_service_pb2.WatchRunRequest(run_id="r1"))
    assert isinstance(await stream.read(), run_service_pb2.WatchRunResponse)
    await running.get_run(bob)
    await revoke(running, identity=named("client", "alice"))
    error = await refused(running.get_run(alice), "CERTIFICATE_REVOKED")
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    info = details(status_of(error), error_details_pb2.ErrorInfo)[0]
    assert info.metadata["cause"] == "its disk was stolen"
    assert info.metadata["identity"] == f"spiffe://{DOMAIN}/ns/team-a/client/alice"
    assert "antiphon certs token" in (error.details() or "")
    running.clock.advance(RECHECK)
    await refused(stream.read(), "CERTIFICATE_REVOKED")
    # Neither does it come back by renewing, or on a new connection, and nobody else is touched.
    await refused(renewed(running, alice, running.credential()), "CERTIFICATE_REVOKED")
    await refused(running.get_run(running.dial()), "CERTIFICATE_REVOKED")
    await running.get_run(bob)


async def test_a_serial_number_revokes_that_certificate_alone(running: Running) -> None:
    lost, kept = running.credential(), running.credential()
    await revoke(running, serial=lost.serial)
    await refused(running.get_run(running.dial(lost)), "CERTIFICATE_REVOKED")
    await running.get_run(running.dial(kept))
    # A serial number is one of a namespace: whoever operates another cannot revoke by it.
    stranger = running.credential(Kind.OPERATOR, "eve", "team-b")
    await revoke(running, by=stranger, serial=kept.serial)
    await running.get_run(running.dial(kept))


async def test_only_a_token_that_is_made_afterwards_brings_an_identity_back(running: Running) -> None:
    before = await token_for(running, "alice")
    await revoke(running, identity=named("client", "alice"))
    error = await refused(joined(running, before), "TOKEN_NOT_ACCEPTED")
    assert "revoked after it was made" in (error.details() or "")
    # At once, although a clock may be behind: it is dated after what is revoked, and so is what follows it.
    alice = await joined(running, await token_for(running, "alice"))
    channel = running.dial(alice)
    await running.get_run(channel)
    successor = await renewed(running, channel, alice)
    await running.get_run(running.dial(successor))
    # Revoked again, it is all of that as well.
    await revoke(running, identity=named("client", "alice"))
    for credential in (alice, successor):
        await refused(running.get_run(running.dial(credential)), "CERTIFICATE_REVOKED")


async def test_a_token_that_was_used_before_does_not_bring_an_identity_back(running: Running) -> None:
    token = await token_for(running, "alice")
    _, request = new_key_and_csr(token.identity)
    asked = api.JoinRequest(token_id=token.token_id, secret=token.secret.hex(), signing_request=request.decode())
    await Stub(running.dial_join()).Join(asked, timeout=TIMEOUT)
    await revoke(running, identity=named("client", "alice"))
    await refused(Stub(running.dial_join()).Join(asked, timeout=TIMEOUT), "TOKEN_NOT_ACCEPTED")


async def test_a_token_gives_no_more_once_a_certificate_that_it_gave_is_revoked(running: Running) -> None:
    token = await token_for(running, "alice")
    key, request = new_key_and_csr(token.identity)
    asked = api.JoinRequest(token_id=token.token_id, secret=token.secret.hex(), signing_request=request.decode())

    async def join() -> Credential:
        grant = (await Stub(running.dial_join()).Join(asked, timeout=TIMEOUT)).certificate
        return Credential.from_pem(key, grant.chain.encode(), grant.trust_bundle.encode())

    first, again = await join(), await join()  # as if the answer had been lost
    assert again.serial != first.serial
    await revoke(running, serial=again.serial)
    await running.get_run(running.dial(first))
    error = await refused(join(), "TOKEN_NOT_ACCEPTED")
    assert "that it gave was revoked" in (error.details() or "")


async def test_only_operators_revoke_and_only_in_their_own_namespace(running: Running) -> None:
    await refused(revoke(running, by=running.credential(), identity=named("client", "alice")), "ACCESS_DENIED")
    stranger = running.credential(Kind.OPERATOR, "eve", "team-b")
    other = revoke(running, by=stranger, namespace="team-a", identity=named("client", "alice"))
    await refused(other, "POLICY_DENIED")
    await revoke(running, by=stranger, identity=named("client", "alice"))  # of team-b
    await running.get_run(running.dial())
    root = running.credential(Kind.OPERATOR, "root", "system")
    await revoke(running, by=root, namespace="team-a", identity=named("client", "alice"))
    await refused(running.get_run(running.dial()), "CERTIFICATE_REVOKED")


async def test_revocations_are_listed_by_pages_until_nothing_is_left_of_them(running: Running) -> None:
    for name in ("a", "b", "c"):
        await revoke(running, identity=named("sidecar", name))
    await revoke(running, serial="abc")
    await revoke(running, by=running.credential(Kind.OPERATOR, "eve", "team-b"), serial="def")

    # One connection for all of it: whoever dials after days would have to believe that they have passed.
    stub = Stub(running.dial(running.credential(Kind.OPERATOR, "olga", ttl=timedelta(days=60))))

    async def listed() -> list[str]:
        request, found = api.ListRevocationsRequest(page_size=2), []
        while True:
            page = await stub.ListRevocations(request, timeout=TIMEOUT)
            assert len(page.revocations) <= 2
            found += [one.serial or one.identity.name for one in page.revocations]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    assert await listed() == ["a", "b", "c", "abc"]
    running.clock.advance(LONGEST_RECOVERY + timedelta(days=2))

    async def gone() -> bool:
        return not await listed()

    await eventually(gone)


def edge(running: Running, *, ago: timedelta, kind: Kind = Kind.SIDECAR) -> Credential:
    """A certificate that expired so long ago."""
    identity = Identity(DOMAIN, "team-a", kind, "edge")
    key, request = new_key_and_csr(identity)
    start = running.clock.now() - ago - timedelta(hours=1)
    grants = Grants(("a",), ("text.*",)) if kind is Kind.SIDECAR else Grants()
    return Credential.from_pem(
        key, running.authority.issue(request, identity, grants=grants, now=start), running.authority.bundle_pem
    )


async def recovered(running: Running, old: Credential, *, signed_by: Credential | None = None) -> Credential:
    key, request = new_key_and_csr(old.identity)
    asked = api.RecoverRequest(
        chain=old.chain_pem.decode(), signing_request=request.decode(), signature=prove(signed_by or old, request)
    )
    grant = (await Stub(running.dial_join()).Recover(asked, timeout=TIMEOUT)).certificate
    return Credential.from_pem(key, grant.chain.encode(), grant.trust_bundle.encode())


async def test_a_sidecar_that_was_away_for_days_is_back_by_its_key(running: Running) -> None:
    old = edge(running, ago=timedelta(days=3))
    back = await recovered(running, old)
    assert (back.identity, back.grants) == (old.identity, old.grants)
    assert back.not_after > datetime.now(UTC)
    await renewed(running, running.dial(back), back)


async def test_recovery_has_an_end_and_is_for_sidecars_and_holders_of_the_key(running: Running) -> None:
    day = timedelta(days=1)
    late = edge(running, ago=RECOVERY_WINDOW + timedelta(minutes=1))
    await refused(recovered(running, late), "RECOVERY_NOT_ACCEPTED")
    await refused(recovered(running, edge(running, ago=day, kind=Kind.CLIENT)), "RECOVERY_NOT_ACCEPTED")
    old, other = edge(running, ago=day), edge(running, ago=day)
    error = await refused(recovered(running, old, signed_by=other), "RECOVERY_NOT_ACCEPTED")
    assert "antiphon certs token" in (error.details() or "")


async def test_a_revoked_certificate_is_not_given_anew(running: Running) -> None:
    one, other = edge(running, ago=timedelta(days=1)), edge(running, ago=timedelta(days=1))
    await revoke(running, serial=one.serial)
    await refused(recovered(running, one), "CERTIFICATE_REVOKED")
    await recovered(running, other)
    await revoke(running, identity=named("sidecar", "edge"))
    await refused(recovered(running, other), "CERTIFICATE_REVOKED")
