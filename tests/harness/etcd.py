"""Real etcd clusters of one or three members, with or without TLS, on ports of the system's choice.

    with Etcd.start(nodes=3, tls=True) as etcd:
        store = EtcdStore(etcd.address("prefix"))

Members are numbered from 0 and are processes of ours alone: Debian's service is never used. Data lies in a folder that
goes with the cluster.
"""

from __future__ import annotations

import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from antiphon.etcd.v3 import rpc_pb2
from antiphon_orchestrator.store.etcd import EtcdAddress, TlsFiles

from .etcd_binary import binary
from .etcd_tls import Pki
from .network import Network
from .ports import HOST, free_ports
from .process import Process
from .waiting import LIMIT

_PAUSE = 0.02
_ANSWER = 5.0
"""Seconds a member has to say how it is: a handshake takes one on a machine that has much to do."""


class Etcd:
    """A cluster. Make it with `start`; use it as a context, or `close` it."""

    def __init__(
        self,
        folder: Path,
        program: str,
        nodes: int,
        pki: Pki | None,
        arguments: tuple[str, ...],
        network: Network | None,
    ) -> None:
        self._folder = folder
        self._program = program
        self._pki = pki
        self._arguments = arguments
        ports = free_ports(2 * nodes)
        self.endpoints = tuple(f"{HOST}:{port}" for port in ports[:nodes])
        self._peers = tuple(f"{HOST}:{port}" for port in ports[nodes:])
        self.members = [Process(f"etcd-{n}", folder) for n in range(nodes)]
        self._dialled, self._peers_dialled = self.endpoints, self._peers
        if network is not None:
            network.know(*self.members)
            self._dialled, self._peers_dialled = (
                tuple(network.forward(f"etcd-{n}", address) for n, address in enumerate(addresses))
                for addresses in (self.endpoints, self._peers)
            )

    @classmethod
    def start(
        cls,
        nodes: int = 1,
        *,
        tls: bool = True,
        version: str = "current",
        fsync: bool = False,
        quota: int | None = None,
        arguments: tuple[str, ...] = (),
        network: Network | None = None,
    ) -> Etcd:
        """A cluster that answers. `version`: `current`, or `debian` for the oldest that is supported. `fsync`: whether
        what it acknowledges must outlive a crash of the machine; 3.4 always does. With a `network` members dial each
        other through it, and so do those who use `url`. Raises EtcdMissing."""
        program = binary(version)
        folder = Path(tempfile.mkdtemp(prefix="antiphon-etcd-"))
        given = list(arguments)
        if nodes == 1:
            # An election of one takes no time; leases may then be as short as a second.
            given += ["--heartbeat-interval=20", "--election-timeout=200"]
        elif network is not None:
            # Elections are for those that the network is cut for, and not for a machine that has much else to do.
            given += ["--heartbeat-interval=300", "--election-timeout=3000"]
        if quota is not None:
            given.append(f"--quota-backend-bytes={quota}")
        if not fsync and version != "debian":
            given.append("--unsafe-no-fsync")
        cluster = cls(folder, program, nodes, Pki(folder / "tls", HOST) if tls else None, tuple(given), network)
        try:
            for n in range(nodes):
                cluster._spawn(n)
            for n in range(nodes):
                cluster.wait_for(n)
        except BaseException:
            cluster.close()
            raise
        return cluster

    def files(self, user: str) -> TlsFiles:
        """The files of a client whose certificate names this user; the cluster must have TLS."""
        assert self._pki is not None
        return self._pki.client(user)

    @property
    def tls(self) -> TlsFiles | None:
        """The files for a client whose certificate names the user `antiphon`; None for a cluster without TLS."""
        return self.files("antiphon") if self._pki is not None else None

    def address(self, prefix: str = "antiphon", *, only: int | None = None) -> EtcdAddress:
        """Of all members, or of one, with everything below `prefix`."""
        endpoints = self.endpoints if only is None else (self.endpoints[only],)
        return EtcdAddress(endpoints, prefix.encode() + b"/", self.tls)

    def channel(self, n: int, user: str = "antiphon") -> grpc.Channel:
        """A connection to one member, for what the product does not do."""
        if self._pki is None:
            return grpc.insecure_channel(self.endpoints[n])
        files = self.files(user)
        assert files.certificate is not None and files.private_key is not None
        pem = (files.ca.read_bytes(), files.private_key.read_bytes(), files.certificate.read_bytes())
        return grpc.secure_channel(self.endpoints[n], grpc.ssl_channel_credentials(*pem))

    def url(self, prefix: str = "antiphon") -> str:
        """As the setting `store` has it."""
        return f"etcd://{','.join(self._dialled)}/{prefix}"

    def leader(self) -> int:
        """Which member leads, by what the running ones say; waits until one does."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            for n in range(len(self.members)):
                status = self._status(n)
                if status is not None and status.leader == status.header.member_id:
                    return n
            time.sleep(_PAUSE)
        raise AssertionError("no member of the cluster leads")

    def revision(self) -> int:
        """Where the store stands."""
        status = self._status(0)
        assert status is not None
        return status.header.revision

    def kill(self, n: int) -> None:
        """Ends a member as a crash would."""
        self.members[n].kill9()

    def stop(self, n: int) -> None:
        """Stalls a member: its connections stay, and it answers nothing."""
        self.members[n].stall()

    def cont(self, n: int) -> None:
        """Lets a stalled member go on."""
        self.members[n].send(signal.SIGCONT)

    def fill_disk(self, n: int) -> None:
        """From now on a member cannot write another byte: a limit on the size of its files, since a file system of its
        own is only for root to have. It ends at its next write, as with a full disk; its next life has room again."""
        resource.prlimit(self.members[n].pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def restart(self, n: int, *, wait: bool = True) -> None:
        """Starts a member anew on its data, killing it first if it runs; returns when it answers."""
        self.members[n].kill9()
        self._spawn(n)
        if wait:
            self.wait_for(n)

    def wait_for(self, n: int) -> None:
        """Returns when a member answers and knows a leader."""
        end = time.monotonic() + LIMIT
        while True:
            status = self._status(n)
            if status is not None and status.leader:
                return
            if not self.members[n].alive or time.monotonic() > end:
                raise AssertionError(f"etcd does not answer\n{self.members[n].said()[-4000:]}")
            time.sleep(_PAUSE)

    def close(self) -> None:
        """Ends every member and removes what it had."""
        for member in self.members:
            member.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Etcd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, n: int) -> None:
        scheme = "https" if self._pki is not None else "http"
        client, peer = f"{scheme}://{self.endpoints[n]}", f"{scheme}://{self._peers[n]}"
        command = [
            self._program,
            f"--name=m{n}",
            f"--data-dir={self._folder / f'data-{n}'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={scheme}://{self._peers_dialled[n]}",
            "--initial-cluster="
            + ",".join(f"m{i}={scheme}://{address}" for i, address in enumerate(self._peers_dialled)),
            "--log-level=warn",
            *self._arguments,
        ]
        if self._pki is not None:
            command += self._pki.server_flags()
        self.members[n].spawn(command, {})

    def _status(self, n: int) -> rpc_pb2.StatusResponse | None:
        """What a member says of itself, or None."""
        with self.channel(n) as channel:
            ask = channel.unary_unary(
                "/etcdserverpb.Maintenance/Status",
                request_serializer=rpc_pb2.StatusRequest.SerializeToString,
                response_deserializer=rpc_pb2.StatusResponse.FromString,
            )
            try:
                status: rpc_pb2.StatusResponse = ask(rpc_pb2.StatusRequest(), timeout=_ANSWER)
                return status
            except grpc.RpcError:
                return None


StartEtcd = Callable[..., Etcd]
"""`Etcd.start`, with an end that somebody else sees to."""
