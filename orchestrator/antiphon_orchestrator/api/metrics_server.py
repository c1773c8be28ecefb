"""Where Prometheus fetches the metrics: HTTPS that asks for a certificate of our authority, of any kind.

`prometheus_client` answers, each connection in a thread of its own from the handshake on, so that one which says
nothing holds up nobody; connections are few and short. Nothing here can change anything, and off is the default.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any

from antiphon_certs import Clock, Credential
from prometheus_client import MetricsHandler

from antiphon_orchestrator import telemetry

from .certificate import LiveCertificate
from .server import AddressNotFree

HANDSHAKE = 2.0
"""Seconds until a connection has shown its certificate."""

ANSWER = 10.0
"""Seconds in which it then has its answer: as long as Prometheus waits, unless it is told otherwise."""

CONNECTIONS = 64
"""At once; what comes beyond is closed unread."""

_LOOK_AGAIN = timedelta(seconds=30)
_POLL = 0.1


class MetricsServer:
    """Use: `async with MetricsServer(…) as server`, and `server.run()` in the task group, which follows the
    certificate."""

    def __init__(
        self, address: str, port: int, metrics: telemetry.Metrics, certificate: LiveCertificate, clock: Clock
    ) -> None:
        self._address = address
        self._port = port
        self._metrics = metrics
        self._certificate = certificate
        self._clock = clock
        self.port = 0

    async def __aenter__(self) -> MetricsServer:
        """Listens. Raises `AddressNotFree`."""
        self._shown = self._certificate.credential
        handler = MetricsHandler.factory(self._metrics.registry)
        context = _context(self._shown)
        try:
            self._server = _Server(self._address, self._port, handler, context)
        except OSError as error:
            where = f"{self._address}:{self._port}"
            raise AddressNotFree("telemetry.metrics_port", where, error.strerror or str(error)) from error
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(_POLL,), daemon=True).start()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stops listening and ends what is open."""
        await asyncio.to_thread(self._server.shutdown)  # waits for a look of the thread that accepts
        self._server.server_close()
        self._server.end(time.monotonic() + ANSWER)

    async def run(self) -> None:
        """Shows the newest certificate to whoever comes next; cancel to stop."""
        while True:
            await self._clock.sleep(_LOOK_AGAIN)
            credential = self._certificate.credential
            if credential is not self._shown:
                self._server.context = _context(credential)
                self._shown = credential


class _Server(ThreadingTCPServer):
    """Each connection is ended when its time is over, whatever its thread waits for: nothing else need have a limit."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, address: str, port: int, handler: Any, context: ssl.SSLContext) -> None:
        self.address_family, _, _, _, at = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.context = context
        self._until: dict[Any, float] = {}
        super().__init__(at[:2], handler)  # type: ignore[arg-type]  # the stubs forget the two kinds of address

    def end(self, moment: float) -> None:
        """Ends connections that may be open until then at most (monotonic seconds)."""
        for connection, until in self._until.copy().items():
            if until <= moment:
                with suppress(OSError):  # its thread has ended it just now
                    # Not that of TLS, which would say goodbye to who may not listen.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def service_actions(self) -> None:
        self.end(time.monotonic())

    def get_request(self) -> tuple[Any, Any]:
        connection, peer = super().get_request()
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if len(self._until) >= CONNECTIONS:
            return False
        self._until[request] = time.monotonic() + HANDSHAKE
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError):  # it has no certificate of ours, or no patience
            request.do_handshake()
            self._until[request] = time.monotonic() + ANSWER
            super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._until.pop(request, None)
        super().shutdown_request(request)


def _context(credential: Credential) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credential.bundle_pem.decode())
    with tempfile.TemporaryDirectory() as folder:  # mode 0700, and gone as soon as it is read
        file = Path(folder, "credential.pem")
        file.write_bytes(credential.key_pem + credential.chain_pem)
        context.load_cert_chain(file)
    return context
