"""The composition root: the only file that knows every part and joins them; one task group.

Start: open the store, load records, listen, say that we are there, take the shards that fall to us. Stop: hand them
over to other replicas where there are any, announce it to sidecars, refuse new streams, let calls under way end, close
the store last.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING

from antiphon.mesh.v1 import mesh_service_pb2_grpc
from antiphon.v1 import (
    audit_service_pb2_grpc,
    cluster_service_pb2_grpc,
    context_service_pb2_grpc,
    graph_service_pb2_grpc,
    identity_service_pb2_grpc,
    payload_service_pb2_grpc,
    policy_service_pb2_grpc,
    registry_service_pb2_grpc,
    run_service_pb2_grpc,
)
from antiphon_certs import ExternalFiles, Identity, Kind, SystemClock, make_private_folder

from . import telemetry
from .admission import SchemaSet, Values
from .api.audit_service import AuditService
from .api.authority import LiveAuthority
from .api.certificate import IssuedHere, LiveCertificate
from .api.cluster_service import ClusterService
from .api.context_service import ContextService
from .api.graph_service import GraphService
from .api.identity_service import Endpoints, IdentityService
from .api.image import Image
from .api.mesh_service import MeshService
from .api.pace import Pace
from .api.payload_service import PayloadService
from .api.policy_service import PolicyService
from .api.registry_service import RegistryService
from .api.run_service import RunService
from .api.server import ApiServer, Parts, Register
from .archive import Archive, archive_at
from .audit import AuditLog, Fact
from .audit.moving import AuditMover
from .blobs import Blobs, ObjectBlobs
from .cluster.common import Common
from .cluster.gathering import Gathering
from .cluster.membership import LEASE, Membership
from .cluster.peers import Peers
from .cluster.routing import Routing
from .cluster.steward import Steward
from .config import Config, ConfigError
from .context import SharedContext
from .data_folder import held
from .mesh.calls import Calls
from .mesh.context import ContextDesk
from .mesh.sessions import REATTACH_GRACE, MeshSettings, Sessions
from .mesh.tokens import AttemptTokens
from .placement.breaker import OPEN
from .placement.fleet import Fleet, Instance
from .placement.pacing import Pacing, divide
from .policy import CedarPolicies, PolicyBundle, dev_profile, load_folder
from .policy_book import FOLDER, PROFILE, PolicyBook
from .registry.registry import Registry
from .revocations import Revocations
from .runs.archived import ArchivedRuns
from .runs.catalog import Catalog
from .runs.collection import PayloadCollector
from .runs.listing import RunListing
from .runs.reads import ContextReads
from .runs.retention import Retention
from .runs.room import StoreRoom
from .runs.sub_runs import SubRuns
from .runs.submit import Submissions
from .shards.archiver import Archiver
from .shards.clock import now
from .shards.host import Host
from .shards.log import shard_count
from .shards.remembering import Remembering
from .store import SqliteStore, Store, StoreError
from .store.etcd import EtcdStore
from .tracing import Tracing

if TYPE_CHECKING:
    from .api.metrics_server import MetricsServer

log = telemetry.logger("placement")
_cluster_log = telemetry.logger("cluster")

CLUSTER_SHARDS = 16
"""Of a store that several replicas share, unless it is told otherwise. Each has its price (DECISIONS.md, D108)."""

LEAVING = 10.0
"""Seconds in which other replicas have to take what this one hands over when it ends."""


class Orchestrator:
    """One replica, made of its settings alone; `run` does everything and ends when it is cancelled.

    `ready` is set once it serves; `addresses` then holds those by which others reach it, ports of the system's choice
    included, and `shards` the runs. Tests of users may turn `now` (microseconds since 1970, by which runs and sidecars
    are timed; not certificates and leases), and need not wait for as long as others until a sidecar that is away is
    given up.
    """

    def __init__(
        self, config: Config, *, now: Callable[[], int] = now, reattach_grace: timedelta = REATTACH_GRACE
    ) -> None:
        self.config = config
        self._now = now
        self._reattach_grace = reattach_grace
        self.shards: Host
        self.ready = asyncio.Event()
        self._cut_off = False
        self.addresses = ("", "")

    @property
    def join_port(self) -> int:
        """The port of the join listener on this machine, once it serves."""
        return self._bound.join.port

    async def run(self) -> None:
        config = self.config
        try:
            make_private_folder(config.data)
        except OSError as error:
            unfit = f"{config.data} cannot be used as a folder: {error.strerror}"
            raise ConfigError([f"data: {unfit}; give another one"]) from error
        async with (
            self._store() as store,
            archive_at(config.archive_url, config.archive_password_file) as archive,
            ObjectBlobs(config.payloads_url) as blobs,
        ):
            with held(config.data):
                # From the first put on: in a cluster at its quota every put waits for the room that this makes.
                keeping = asyncio.create_task(store.run(), name="store")
                try:
                    await self._serve(store, keeping, archive, blobs)
                finally:
                    keeping.cancel()
                    await asyncio.wait((keeping,))

    def _store(self) -> contextlib.AbstractAsyncContextManager[Store]:
        """In the cluster that is configured, or in a file."""
        limit = self.config.store_max_bytes
        if (address := self.config.etcd) is not None:
            return EtcdStore(address, max_bytes=limit)
        return SqliteStore(self.config.data / "store.db", max_bytes=limit)

    async def _serve(self, store: Store, keeping: asyncio.Task[None], archive: Archive, blobs: Blobs) -> None:
        config = self.config
        now = self._now
        metrics = telemetry.Metrics(fetched=config.telemetry.metrics_port is not None)
        clock = SystemClock()
        replica_id = secrets.token_hex(8)
        # A folder that another authority's files replace may be absent; then nobody can join here.
        external = config.certificate
        authority = None if external and not config.authority.exists() else LiveAuthority(config.authority, clock)
        certificate = self._certificate(authority, replica_id, clock, metrics)
        common = Common(store, config.trusting, lambda: certificate.credential, archive, blobs)
        if store.shared:
            await common.begin()
        policy = CedarPolicies(now=now)
        book = PolicyBook(store, policy, now)
        await book.begin(*self._seed())
        values = Values()
        schemas = SchemaSet(values)
        fleet = Fleet(policy, schemas, now, config.schedule)
        pacing = Pacing(fleet, now)
        audit = AuditLog(store, replica_id, now)
        registry = Registry(store, fleet, schemas, now, config.agent_retention)
        catalog = Catalog(store, values)
        archiver = Archiver(archive)
        tokens = await AttemptTokens.load(store)
        archived = ArchivedRuns(archive, catalog)
        image = Image.load()
        calls = Calls(catalog, archived, tokens, image.broken, now)
        context = SharedContext(store, policy, audit, blobs, config.context, clock)
        desk = ContextDesk(context, tokens, archived)
        reads = ContextReads(context, clock, now)
        sub_runs = SubRuns(catalog, fleet, policy, audit, schemas, clock, now)
        settings = MeshSettings(replica_id, reattach_grace=self._reattach_grace)
        sessions = Sessions(settings, fleet, registry, policy, audit, tokens, calls, desk, now)
        shards = await shard_count(store, config.shards, 1 if config.etcd is None else CLUSTER_SHARDS)
        host = self.shards = Host(
            store,
            fleet,
            sessions,
            archiver,
            reads,
            sub_runs,
            catalog.plan_of,
            replica_id=replica_id,
            shard_count=shards,
            inbox_limit=config.inbox_limit,
            metrics=metrics,
            now=now,
        )
        sessions.bind(host)
        fleet.broke = lambda instance: _breaker_changed(instance, registry, pacing, metrics)
        metrics.tasks_waiting.set_function(lambda: fleet.waiting)
        metrics.tasks_limited.set_function(lambda: fleet.limits.waiting)
        metrics.tasks_asking.set_function(host.asking)
        metrics.runs_aside.set_function(host.aside)
        metrics.runs_waiting.set_function(lambda: sum(shard.backlog.size for shard in host.shards))
        metrics.breakers_open.set_function(lambda: fleet.broken)

        def policy_changed(epoch: int) -> None:
            sessions.policy_changed(epoch)
            fleet.policy_changed()

        book.changed = policy_changed
        mover = AuditMover(store, archive, lambda: [audit, *host.audit], config.audit_retention, clock)
        metrics.archive_waiting.set_function(lambda: archiver.lag)
        metrics.audit_waiting.set_function(lambda: mover.waiting)
        metrics.archive_available.set_function(lambda: archiver.available and mover.available)
        metrics.second_attempts.set_function(lambda: fleet.hedging.made)
        metrics.second_attempts_used.set_function(lambda: fleet.hedging.used)
        metrics.second_attempts_withheld.set_function(lambda: fleet.hedging.withheld)
        metrics.results_kept.set_function(lambda: len(fleet.results))
        metrics.results_reused.set_function(lambda: fleet.results.hits)
        reads.answer = sub_runs.answer = host.put
        membership = Membership(store, replica_id, version("antiphon-server"), now())
        # Read when they are fetched, which threads answer: true of a stuck loop as well, whose lease ends.
        metrics.serving.set_function(lambda: self.ready.is_set() and not membership.cut_off)
        most = store.max_bytes or config.store_max_bytes
        room = StoreRoom(store, config.data, most, metrics, host.keep_short, host.promised)
        submissions = Submissions(catalog, fleet, policy, audit, schemas, blobs, host, room, now)
        peers = Peers(lambda: certificate.credential, lambda: membership.others)
        routing = Routing(host, membership, peers)

        def cluster_changed() -> None:
            topology = _topology(membership)
            sessions.replicas_changed(topology)
            divide(fleet.limits, [replica for replica, _ in topology], replica_id)
            routing.look()
            if self.ready.is_set():
                self._look_whether_cut_off(membership, server)

        steward = Steward(host, membership, cluster_changed)
        revocations = Revocations(store, clock)

        async def read_again() -> None:
            catalog.forget()
            await revocations.load()
            await book.look()
            await registry.load()

        membership.read_again = read_again
        tracing = None
        if config.telemetry.tracing:
            tracing = Tracing(image, config.telemetry.tracing_endpoint)
        pace = Pace()
        host.others = pace.let_in
        parts = Parts(
            image,
            certificate,
            policy,
            audit,
            metrics,
            certificate.credential.identity.trust_domain,
            revocations.check,
            config.development,
            clock,
            pace,
            tracing.interceptors if tracing is not None else (),
            routing,
        )
        gathering = Gathering(host, membership, peers, routing)
        listing = RunListing(host, archive)
        runs = RunService(
            host, submissions, archived, listing, fleet, routing, peers, gathering, blobs, pace, image.check_item
        )
        payloads = PayloadService(blobs, limit=config.payload_limit)
        graphs = GraphService(store, clock, audit, lambda namespace: lambda *asked: fleet.offered(namespace, *asked))
        policies = PolicyService(book, policy, fleet, audit, peers)
        audits = AuditService(
            store, archive, host.write_audit, archived, clock, lambda: certificate.credential, gathering
        )
        cluster = ClusterService(membership, peers, store, host, sessions, archiver)
        services: list[Register] = [
            lambda s: run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, s),
            lambda s: graph_service_pb2_grpc.add_GraphServiceServicer_to_server(graphs, s),
            lambda s: registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(
                RegistryService(registry, fleet, audit, peers, membership), s
            ),
            lambda s: context_service_pb2_grpc.add_ContextServiceServicer_to_server(ContextService(context), s),
            lambda s: payload_service_pb2_grpc.add_PayloadServiceServicer_to_server(payloads, s),
            lambda s: policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(policies, s),
            lambda s: audit_service_pb2_grpc.add_AuditServiceServicer_to_server(audits, s),
            lambda s: cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, s),
            lambda s: mesh_service_pb2_grpc.add_MeshServiceServicer_to_server(MeshService(sessions), s),
        ]
        if authority is not None:
            authority.changed = certificate.look
            identities = IdentityService(
                lambda: authority.current,
                store,
                policy,
                clock,
                lambda: self._all(membership),
                audit,
                revocations,
                config.recovery_window,
            )
            services.append(lambda s: identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(identities, s))
        server = ApiServer(
            parts,
            address=config.listen,
            join_address=config.join_listen,
            services=services,
            options=config.api,
            join_options=config.join,
        )
        metrics.calls_limit.set_function(lambda: server.mutual_tls.gate.limit)
        await registry.load()
        await revocations.load()
        await context.load()
        await audit.load()
        audit.note(_policies_loaded(certificate.credential.identity, policy), now())
        await server.start()
        self._bound = server
        # It outlasts the group: calls that are under way when the others end wait for their records.
        writing = asyncio.create_task(audit.run(), name="audit")
        try:
            async with self._metrics_server(metrics, certificate, clock) as shown, asyncio.TaskGroup() as group:
                if shown is not None:
                    group.create_task(shown.run(), name="metrics")
                group.create_task(_while_running(keeping), name="store")
                group.create_task(server.run(), name="api")
                group.create_task(catalog.run(), name="catalog")
                group.create_task(_while_running(writing), name="audit")
                group.create_task(book.run(), name="policies")
                group.create_task(revocations.run(), name="revocations")
                if authority is not None:
                    group.create_task(authority.run(), name="authority")
                await room.look()
                group.create_task(room.run(), name="room")
                group.create_task(registry.run(), name="registry")
                group.create_task(archiver.run(), name="archiver")
                group.create_task(mover.run(), name="audit records to the archive")
                group.create_task(Remembering(archive, host, clock).run(), name="request ids from the archive")
                address, join_address = self._endpoints()
                await membership.join(address, join_address if authority is not None else "")
                group.create_task(membership.run(), name="membership")
                if store.shared:
                    group.create_task(common.run(), name="what replicas have in common")
                group.create_task(peers.run(), name="peers")
                group.create_task(steward.run(), name="shards")
                await steward.begun.wait()
                group.create_task(sessions.run(), name="sessions")
                group.create_task(pacing.run(), name="pacing")
                group.create_task(calls.run(), name="calls")
                group.create_task(context.run(), name="context")
                group.create_task(desk.run(), name="context requests")
                group.create_task(reads.run(), name="context for expressions")
                group.create_task(sub_runs.run(), name="graphs of sub-runs")
                collector = PayloadCollector(store, archive, blobs, config.payload_grace, clock, metrics)
                group.create_task(collector.run(), name="payload collection")
                if config.archive_retention is not None:
                    retention = Retention(archive, config.archive_retention, clock)
                    group.create_task(retention.run(), name="retention")
                server.set_serving(True)
                self.addresses = address, join_address
                self.ready.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    routing.stopping = True
                    if membership.others:
                        with contextlib.suppress(TimeoutError, StoreError):
                            async with asyncio.timeout(LEAVING):
                                await membership.leave()
                                await steward.left()
        finally:
            sessions.drain()
            await peers.close()
            await server.stop()
            writing.cancel()
            await asyncio.wait((writing,))
            await audit.close()
            await membership.gone()
            if tracing is not None:
                tracing.close()

    def _look_whether_cut_off(self, membership: Membership, server: ApiServer) -> None:
        """Health says whether this replica, which serves, is cut off from the store; each change is told once."""
        if membership.cut_off is self._cut_off:
            return
        self._cut_off = not self._cut_off
        server.set_serving(not self._cut_off)
        if self._cut_off:
            cause = f"the store has not renewed our lease for {LEASE} s; calls are refused until it does"
            _cluster_log.error("not_serving", cause=cause)
        else:
            _cluster_log.info("serving", cause="the store renews our lease again")

    def _metrics_server(
        self, metrics: telemetry.Metrics, certificate: LiveCertificate, clock: SystemClock
    ) -> contextlib.AbstractAsyncContextManager[MetricsServer | None]:
        """Where metrics are fetched, if anywhere."""
        config = self.config.telemetry
        if config.metrics_port is None:
            return contextlib.nullcontext()
        from .api.metrics_server import MetricsServer  # its library takes 2 MB

        return MetricsServer(config.metrics_host, config.metrics_port, metrics, certificate, clock)

    def _certificate(
        self, authority: LiveAuthority | None, replica_id: str, clock: SystemClock, metrics: telemetry.Metrics
    ) -> LiveCertificate:
        """Ours: issued here, or the files that another authority keeps fresh."""
        config = self.config
        if config.certificate is not None and config.private_key is not None and config.trust_bundle is not None:
            files = ExternalFiles(config.private_key, config.certificate, config.trust_bundle)
            return LiveCertificate(files, None, clock, metrics)
        assert authority is not None
        identity = Identity(authority.current.trust_domain, "system", Kind.ORCHESTRATOR, replica_id)
        source = IssuedHere(lambda: authority.current, identity, config.certificate_hosts, clock)
        return LiveCertificate(source, source.renew, clock, metrics)

    def _seed(self) -> tuple[PolicyBundle | None, str]:
        """The policies for a store that has none, and whence they come."""
        if self.config.policy_folder is not None:
            return load_folder(self.config.policy_folder), FOLDER
        return (dev_profile(), PROFILE) if self.config.policy_profile == "dev" else (None, "")

    def _all(self, membership: Membership) -> Endpoints:
        """Where who joins may turn: here first, and to every other replica, too."""
        address, join_address = self._endpoints()
        others = membership.others
        return Endpoints(
            (address, *(other.address for other in others)),
            (join_address, *(other.join_address for other in others if other.join_address)),
        )

    def _endpoints(self) -> tuple[str, str]:
        """Both listeners, as others reach them."""
        config, bound = self.config, self._bound
        return (
            _reached(config.advertised, bound.mutual_tls.port),
            _reached(config.join_advertised, bound.join.port),
        )


async def _while_running(task: asyncio.Task[None]) -> None:
    """Ends as the task does, and leaves it alone when cancelled."""
    await asyncio.shield(task)


def _reached(advertised: str, bound: int) -> str:
    """The advertised address; the bound port stands in for port 0, which the system has chosen."""
    host, _, port = advertised.rpartition(":")
    return advertised if int(port) else f"{host}:{bound}"


def _topology(membership: Membership) -> tuple[tuple[str, str], ...]:
    """Where sidecars are to attach: every replica that is not about to end."""
    staying = (member for member in membership.members.values() if not member.leaving)
    return tuple(sorted((member.replica_id, member.address) for member in staying))


def _breaker_changed(instance: Instance, registry: Registry, pacing: Pacing, metrics: telemetry.Metrics) -> None:
    """Tells operators, whoever watches agents, and the one who looks at the time."""
    pacing.wake()
    registry.changed(instance.namespace, instance.agent)
    breaker = instance.breaker
    if breaker is not None and breaker.state == OPEN:
        metrics.breaker_openings.inc()
        log.warning("breaker_open", agent=instance.agent, namespace=instance.namespace, cause=breaker.reason)


def _policies_loaded(who: Identity, policy: CedarPolicies) -> Fact:
    resource = f"Policy::{who.namespace}/{policy.epoch}"
    details = {"digest": policy.digest}
    return Fact("load_policies", who.namespace, who.uri, resource, policy_epoch=policy.epoch, details=details)
