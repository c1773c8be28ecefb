"""The orchestrator's own certificate: issued by the authority it holds, fresh at every handshake.

Nothing of it is on disk: the key lives and dies with the process. Where another authority issues (files that change),
`LiveCertificate` follows those files instead, with no `renew`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc
from antiphon_certs import (
    Authority,
    Clock,
    Credential,
    CredentialError,
    CredentialReason,
    Identity,
    InvalidRequest,
    Renew,
    RenewalError,
    Source,
    new_key_and_csr,
    run_rotation,
)

from antiphon_orchestrator import telemetry


class IssuedHere:
    """A credential source over our own authority: `load` answers the newest, `renew` issues the next.

    `authority` answers the one of now: when it is another than that of the newest, `load` issues, too.
    """

    def __init__(
        self, authority: Callable[[], Authority], identity: Identity, hosts: Sequence[str], clock: Clock
    ) -> None:
        """`hosts`: further names and addresses that clients may dial. Raises `InvalidRequest`."""
        self._authority = authority
        self._issuer = authority()
        self._identity = identity
        self._hosts = tuple(hosts)
        self._clock = clock
        self._credential = self._issue()

    def load(self) -> Credential:
        """The newest credential. Raises `CredentialError`."""
        if self._authority() is not self._issuer:
            try:
                self._credential = self._issue()
            except InvalidRequest as error:
                raise CredentialError(CredentialReason.MISSING, str(error)) from error
        return self._credential

    async def renew(self, _current: Credential) -> None:
        """Issue the next one, with a new key. Raises `RenewalError`."""
        try:
            self._credential = self._issue()
        except InvalidRequest as error:
            raise RenewalError(str(error)) from error

    def _issue(self) -> Credential:
        key, request = new_key_and_csr(self._identity)
        issuer = self._authority()
        chain = issuer.issue(request, self._identity, hosts=self._hosts, now=self._clock.now())
        self._issuer = issuer
        return Credential.from_pem(key, chain, issuer.bundle_pem)


class LiveCertificate:
    """The server's certificate as of now, for every handshake; `run` keeps it fresh."""

    def __init__(self, source: Source, renew: Renew | None, clock: Clock, metrics: telemetry.Metrics) -> None:
        """Raises `CredentialError` when `source` has nothing to start with."""
        self._source = source
        self._renew = renew
        self._clock = clock
        self._metrics = metrics
        self._log = telemetry.logger("certificate")
        self.credential = source.load()
        self._metrics.certificate_expiry.set(self.credential.not_after.timestamp())

    async def run(self) -> None:
        """Follows the source and renews; cancel to stop."""
        await run_rotation(self._source, self._renew, self._clock, changed=self._changed, delayed=self._delayed)

    def look(self) -> None:
        """Looks at the source at once, for whoever knows that it has changed."""
        try:
            self._changed(self._source.load())
        except CredentialError as error:
            self._delayed(error)

    def server_credentials(self, *, client_certificates: bool) -> grpc.ServerCredentials:
        """Credentials that follow this certificate. gRPC asks from threads of its own, once a handshake."""
        known: list[Credential] = [self.credential]

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # None means: as before. A fresh configuration at each handshake would parse the PEM texts again.
            credential = self.credential
            if credential is known[0]:
                return None
            known[0] = credential
            return _configuration(credential, client_certificates)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.credential, client_certificates),
            fetch,  # type: ignore[arg-type]  # the stubs forget that None means "as before"
            require_client_authentication=client_certificates,
        )

    def _changed(self, credential: Credential) -> None:
        if credential == self.credential:
            return
        self.credential = credential
        self._metrics.certificate_expiry.set(credential.not_after.timestamp())
        self._log.info("certificate_changed", fingerprint=credential.fingerprint, expire_time=credential.not_after)

    def _delayed(self, error: Exception) -> None:
        self._log.warning("certificate_not_renewed", cause=str(error), expire_time=self.credential.not_after)


def _configuration(credential: Credential, client_certificates: bool) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(credential.key_pem, credential.chain_pem)], credential.bundle_pem if client_certificates else None
    )
