"""ClusterService: see protos/antiphon/v1/cluster_service.proto."""

from __future__ import annotations

from typing import Any

import grpc
from antiphon.v1 import cluster_service_pb2 as api
from antiphon.v1 import cluster_service_pb2_grpc

from ..cluster.membership import Membership
from ..cluster.peers import Peers
from ..mesh.sessions import Sessions
from ..shards.archiver import Archiver
from ..shards.host import Host
from ..store.port import Store
from .call import caller

Context = grpc.aio.ServicerContext[Any, Any]

_PATH = "/antiphon.v1.ClusterService/GetCluster"


class ClusterService(cluster_service_pb2_grpc.ClusterServiceServicer):
    """A call that another replica passes on is answered with this one alone."""

    def __init__(
        self, membership: Membership, peers: Peers, store: Store, host: Host, sessions: Sessions, archiver: Archiver
    ) -> None:
        self._membership = membership
        self._peers = peers
        self._store = store
        self._host = host
        self._sessions = sessions
        self._archiver = archiver

    async def GetCluster(self, request: api.GetClusterRequest, context: Context) -> api.GetClusterResponse:
        who, me = caller(), self._membership.replica_id
        response = api.GetClusterResponse()
        if who.forwarded:
            response.replicas.add(replica_id=me, load=self._load())
            return response
        loads = {me: self._load()}
        for raw in (await self._peers.whoever(_PATH, request.SerializeToString(), who)).values():
            for replica in api.GetClusterResponse.FromString(raw).replicas:
                loads[replica.replica_id] = replica.load
        members = self._membership.members.values()
        for member in sorted(members, key=lambda member: (member.start_time, member.replica_id)):
            replica = response.replicas.add(
                replica_id=member.replica_id,
                address=member.address,
                version=member.version,
                leaving=member.leaving,
                load=loads.get(member.replica_id),
            )
            replica.start_time.FromMicroseconds(member.start_time)
        for shard, owner in sorted(self._membership.owners.items()):
            response.shards.add(
                shard=shard, replica_id=owner.replica_id, epoch=owner.epoch, successor_id=owner.successor_id
            )
        response.store_size = await self._store.size()
        return response

    def _load(self) -> api.ReplicaLoad:
        shards = self._host.shards
        return api.ReplicaLoad(
            sidecar_count=self._sessions.count,
            run_count=sum(len(shard.runs) for shard in shards),
            inbox_size=sum(len(shard.inbox) for shard in shards),
            archive_lag=self._archiver.lag,
        )
