"""Getting and renewing this user's own certificate, over the network. Needs the server package (antiphon_certs).

A join goes to the token's own addresses and trusts the token's own root alone, so the secret never reaches a stranger.
A renewal is a new key every time. Both are safe to repeat, and are repeated when no answer came.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc

from .._errors import RetryableError, Unavailable, from_rpc_error
from ..command import INSTALL_SERVER
from ..v1.identity_service_pb2 import CertificateGrant, JoinRequest, RenewRequest
from ..v1.identity_service_pb2_grpc import IdentityServiceStub
from .options import profile_option
from .problems import Problem

if TYPE_CHECKING:
    from antiphon_certs import Credential, Identity, JoinToken, Profile

_EACH = 5.0
"""Seconds for one address, so that one that is silent leaves time for the next."""
_PATIENCE = 15.0
"""Seconds for all of them."""
_TRIES = 3


def require_certs() -> None:
    """Raise `Problem` unless the package that handles certificates is installed."""
    try:
        import antiphon_certs  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "antiphon_certs":
            raise
        raise Problem("certificates need the server package", INSTALL_SERVER) from None


async def join(token: JoinToken, profile_name: str | None) -> tuple[Profile, Credential]:
    """Spend the token, and keep what it gives as the profile.

    Raises `AntiphonError`, `CertsError`, `OSError`, and `Problem` when the profile is somebody else's.
    """
    from antiphon_certs import Profile, new_key_and_csr, profile_folder

    token.check_not_expired(datetime.now(UTC))
    _check_not_anothers(profile_name, token.identity)
    key_pem, csr_pem = new_key_and_csr(token.identity)
    request = JoinRequest(token_id=token.token_id, secret=token.secret.hex(), signing_request=csr_pem.decode())
    trust = grpc.ssl_channel_credentials(token.root_pem)
    granted = await _ask(token.join_addresses, trust, request)
    profile = Profile(
        profile_folder(profile_name),
        token.addresses,
        token.join_addresses,
        token.identity.trust_domain,
        token.identity.namespace,
    )
    credential = profile.credential.store(key_pem, granted.chain.encode(), granted.trust_bundle.encode())
    profile.save()  # last: a profile that can be read has a credential
    return profile, credential


def _check_not_anothers(profile_name: str | None, identity: Identity) -> None:
    """Raises `Problem` when the profile holds a certificate of another identity, whose key would be gone."""
    from antiphon_certs import CertificateFiles, CredentialError, profile_folder

    folder = profile_folder(profile_name)
    try:
        held = CertificateFiles(folder / "credential").load()
    except CredentialError:
        return  # there is none that anybody could use
    if held.identity != identity and held.not_after > datetime.now(UTC):
        raise Problem(
            f"the profile '{folder.name}' is {held.identity.uri}, and the token is for {identity.uri}",
            f"give the new one a profile of its own: --profile NAME; or remove {folder}",
        )


async def renew(profile: Profile, credential: Credential) -> Credential:
    """Replace the profile's certificate by a fresh one. Raises `AntiphonError`, `CertsError`, `OSError`."""
    from antiphon_certs import new_key_and_csr

    key_pem, csr_pem = new_key_and_csr(credential.identity)
    mutual = grpc.ssl_channel_credentials(credential.bundle_pem, credential.key_pem, credential.chain_pem)
    granted = await _ask(profile.addresses, mutual, RenewRequest(signing_request=csr_pem.decode()))
    return profile.credential.store(key_pem, granted.chain.encode(), granted.trust_bundle.encode())


async def renew_when_due(profile_name: str | None) -> None:
    """Keep the profile's certificate fresh: past half of its life it is renewed before it is used.

    A certificate that still holds is good enough when nobody can renew it within 15 s; one that does not is a `Problem`
    with its remedy. Without the server package the certificate is used as it is.
    """
    try:
        from antiphon_certs import CredentialError, Profile, is_due
    except ModuleNotFoundError:
        return
    profile = Profile.load(profile_name)
    again = f"antiphon certs join TOKEN{profile_option(profile.folder.name)}"
    try:
        credential = profile.credential.load()
    except CredentialError as error:
        raise Problem(f"profile '{profile.folder.name}': {error}", f"run: {again}") from error
    now = datetime.now(UTC)
    if credential.not_after <= now:
        raise Problem(
            f"the certificate of profile '{profile.folder.name}' expired at {credential.not_after:%Y-%m-%d %H:%M} UTC",
            f"get a new token from an operator, then run: {again}",
        )
    if is_due(credential, now, random.random()):
        try:
            await renew(profile, credential)
        except RetryableError:
            # The command's own call says so in a moment, or finds another way; nothing is lost by waiting.
            if credential.not_after - now < timedelta(seconds=_PATIENCE):
                raise


async def _ask(
    addresses: Sequence[str], trust: grpc.ChannelCredentials, request: JoinRequest | RenewRequest
) -> CertificateGrant:
    """The answer of the first orchestrator that gives one; the last error when none does in `_PATIENCE`."""
    from antiphon_certs import ORCHESTRATOR_DNS_NAME

    options = [("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME)]
    problem: Exception = Unavailable("no address to call")
    clock = asyncio.get_running_loop().time
    end = clock() + _PATIENCE
    for address in list(addresses) * _TRIES:
        timeout = min(_EACH, end - clock())
        if timeout <= 0:
            break
        async with grpc.aio.secure_channel(address, trust, options=options) as channel:
            service = IdentityServiceStub(channel)
            try:
                if isinstance(request, JoinRequest):
                    return (await service.Join(request, timeout=timeout)).certificate
                return (await service.Renew(request, timeout=timeout)).certificate
            except grpc.aio.AioRpcError as error:
                problem = from_rpc_error(error)
                if not isinstance(problem, RetryableError):
                    raise problem from error
    raise problem
