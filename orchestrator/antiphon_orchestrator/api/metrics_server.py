"""Where Prometheus fetches the metrics: HTTPS that asks for a certificate of our authority, of any kind.

`prometheus_client` serves it from a thread of its own. Nothing here can change anything, and off is the default.
"""

from __future__ import annotations

import ssl
import tempfile
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from antiphon_certs import Clock
from prometheus_client import start_http_server

from antiphon_orchestrator import telemetry

from .certificate import LiveCertificate

_LOOK_AGAIN = timedelta(seconds=30)


class MetricsServer:
    """Use: `with MetricsServer(…) as server`, and `server.run()` in the task group, which follows the certificate."""

    def __init__(
        self, address: str, port: int, metrics: telemetry.Metrics, certificate: LiveCertificate, clock: Clock
    ) -> None:
        self._address = address
        self._port = port
        self._metrics = metrics
        self._certificate = certificate
        self._clock = clock
        self.port = 0

    def __enter__(self) -> MetricsServer:
        """Listens. Raises `OSError` when the address is not free."""
        credential = self._certificate.credential
        with tempfile.TemporaryDirectory() as folder:  # mode 0700, and gone as soon as it is read
            key, chain, bundle = (Path(folder, name) for name in ("key.pem", "chain.pem", "bundle.pem"))
            key.write_bytes(credential.key_pem)
            chain.write_bytes(credential.chain_pem)
            bundle.write_bytes(credential.bundle_pem)
            self._server, self._thread = start_http_server(
                self._port,
                self._address,
                self._metrics.registry,
                certfile=str(chain),
                keyfile=str(key),
                client_cafile=str(bundle),
                client_auth_required=True,
            )
        self._shown = credential
        self.port = self._server.server_port
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stops listening and waits for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    async def run(self) -> None:
        """Shows the newest certificate to whoever comes next; cancel to stop."""
        while True:
            await self._clock.sleep(_LOOK_AGAIN)
            credential = self._certificate.credential
            if credential is self._shown:
                continue
            socket = self._server.socket
            assert isinstance(socket, ssl.SSLSocket)
            with tempfile.NamedTemporaryFile() as file:  # mode 0600
                file.write(credential.key_pem + credential.chain_pem)
                file.flush()
                socket.context.load_cert_chain(file.name)
            # A root that is dropped is trusted here until the restart: the library has no way to take one away.
            socket.context.load_verify_locations(cadata=credential.bundle_pem.decode())
            self._shown = credential
