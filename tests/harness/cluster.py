"""Several orchestrators on one etcd, with one archive and one folder of payloads between them."""

from __future__ import annotations

import secrets
from typing import Any, Self

from antiphon import Client
from antiphon.v1 import cluster_service_pb2, cluster_service_pb2_grpc
from antiphon_certs import ORCHESTRATOR_DNS_NAME, Kind
from antiphon_orchestrator.cluster.assignment import layout
from grpc import aio, ssl_channel_credentials

from .authority import NAMESPACE
from .etcd import Etcd
from .mesh import Mesh
from .network import Network
from .orchestrator import OrchestratorProcess
from .ports import free_ports
from .sidecar import SidecarProcess
from .waiting import eventually

SHARDS = 24
"""Few enough to start quickly, enough for every replica to have some."""


class Cluster(Mesh):
    """A mesh whose `orchestrator` is the first of `replicas`. Use it with `with`.

    With a `network`, that of the etcd, everybody dials a replica through it.
    """

    def __init__(self, etcd: Etcd, replicas: int = 3, *settings: str, network: Network | None = None) -> None:
        self._network = network
        self._store = ("--store", etcd.url(secrets.token_hex(4)), *_tls(etcd))
        super().__init__("--shards", str(SHARDS), *self._store, *settings)
        self._shared = self.folder / "shared"
        (self._shared / "payloads").mkdir(parents=True, mode=0o700)
        self._settings = self.orchestrator.settings
        self.replicas: list[OrchestratorProcess] = []
        for _ in range(replicas):
            self.add()
        self.orchestrator = self.replicas[0]

    def add(self) -> OrchestratorProcess:
        """One more replica, not started."""
        number = len(self.replicas)
        data = self.folder / f"data-{number}"
        data.mkdir(mode=0o700)
        for name in ("archive.db", "payloads"):
            (data / name).symlink_to(self._shared / name)
        replica = OrchestratorProcess(self.folder, self.ca.folder, data=data, settings=self._settings)
        replica.name, replica.log = f"orchestrator-{number}", self.folder / f"orchestrator-{number}.log"
        if self._network is not None:
            # Other ports on another address of this machine, as where ports are published.
            self._network.know(replica)
            published = free_ports(2)
            host = f"127.0.1.{number + 1}"
            for target, port in zip((replica.listen, replica.join_listen), published, strict=True):
                self._network.forward(replica.name, target, host, port)
            advertised = (f"{host}:{port}" for port in published)
            for setting, address in zip(("--advertise", "--join-advertise"), advertised, strict=True):
                replica.settings += (setting, address)
        self.replicas.append(replica)
        return replica

    def sidecar(self, *arguments: Any, start: bool = True, **settings: Any) -> SidecarProcess:
        sidecar = super().sidecar(*arguments, start=False, **settings)
        if self._network is not None:
            self._network.know(sidecar)
        if start:
            sidecar.start()
        return sidecar

    def __enter__(self) -> Self:
        try:
            for replica in self.replicas:
                replica.start()
        except BaseException:
            self.show()
            self.close()
            raise
        return self

    def close(self) -> None:
        for replica in self.replicas:
            replica.close()
        super().close()

    def show(self) -> None:
        for process in (*self.replicas, *self.sidecars):
            process.show()

    @property
    def addresses(self) -> list[str]:
        return [replica.address for replica in self.replicas if replica.alive]

    def client(
        self, name: str = "alice", *, kind: Kind = Kind.CLIENT, namespace: str = NAMESPACE, **options: Any
    ) -> Client:
        """A client that knows every replica which lives, or those of `address`."""
        credentials = self.ca.client(name, kind=kind, namespace=namespace)
        if "address" in options:
            return Client.connect(credentials=credentials, **options)
        return Client.connect(",".join(self.addresses), credentials=credentials, **options)

    async def status(self, address: str = "") -> cluster_service_pb2.GetClusterResponse:
        """What a replica says of the cluster."""
        key, chain, bundle = self.ca.issue(Kind.OPERATOR, "olga")
        credentials = ssl_channel_credentials(bundle, key, chain)
        options = [("grpc.ssl_target_name_override", ORCHESTRATOR_DNS_NAME)]
        async with aio.secure_channel(address or self.addresses[0], credentials, options) as channel:
            stub = cluster_service_pb2_grpc.ClusterServiceStub(channel)
            return await stub.GetCluster(cluster_service_pb2.GetClusterRequest(), timeout=30)

    async def settled(self, replicas: int, address: str = "") -> dict[str, list[int]]:
        """The shards of each live replica by its address, once there are so many and each has what falls to it."""

        async def look() -> dict[str, list[int]]:
            status = await self.status(address)
            owners: dict[str, list[int]] = {replica.address: [] for replica in status.replicas}
            by_id = {replica.replica_id: replica.address for replica in status.replicas}
            falls_to = layout(SHARDS, frozenset(by_id))
            for shard in status.shards:
                if not falls_to or shard.successor_id or shard.replica_id != falls_to[shard.shard]:
                    return {}
                owners[by_id[shard.replica_id]].append(shard.shard)
            whole = len(owners) == replicas and sum(map(len, owners.values())) == SHARDS
            return owners if whole else {}

        found: dict[str, list[int]] = await eventually(look)
        return found

    def owner(self, shards: dict[str, list[int]], run_id: str) -> OrchestratorProcess:
        """The replica that has a run."""
        number = int(run_id[1:5], 16)
        address = next(address for address, owned in shards.items() if number in owned)
        return next(replica for replica in self.replicas if replica.address == address)


def _tls(etcd: Etcd) -> tuple[str, ...]:
    files = etcd.tls
    if files is None:
        return ()
    assert files.certificate is not None and files.private_key is not None
    ca, certificate, key = str(files.ca), str(files.certificate), str(files.private_key)
    return ("--store-ca", ca, "--store-cert", certificate, "--store-key", key)
