"""One orchestrator replica as a process of the simulated world: the real parts, joined as app.py joins them.

What is not the product's own is a model: store, archive, network, clock. Left out is what a run does not pass through
(policies that change, payloads outside, metrics, certificates).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
from antiphon.mesh.v1 import mesh_service_pb2, mesh_service_pb2_grpc
from antiphon.v1 import run_service_pb2_grpc
from antiphon_certs import Grants, Identity
from antiphon_certs import Peer as Certified
from antiphon_orchestrator import telemetry
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.api.call import FORWARDED, Caller, set_caller
from antiphon_orchestrator.api.errors import ApiError, refusal
from antiphon_orchestrator.api.interceptor import RECHECK, Refusal
from antiphon_orchestrator.api.mesh_service import MeshService
from antiphon_orchestrator.api.pace import Pace
from antiphon_orchestrator.api.run_service import RunService
from antiphon_orchestrator.api.server import Methods
from antiphon_orchestrator.archive import Archive
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.blobs import ObjectBlobs
from antiphon_orchestrator.cluster.assignment import Member
from antiphon_orchestrator.cluster.gathering import Gathering
from antiphon_orchestrator.cluster.membership import Membership
from antiphon_orchestrator.cluster.peers import Peers
from antiphon_orchestrator.cluster.routing import Routing
from antiphon_orchestrator.cluster.steward import Steward
from antiphon_orchestrator.context import SharedContext
from antiphon_orchestrator.context.rules import Quota
from antiphon_orchestrator.mesh.calls import Calls
from antiphon_orchestrator.mesh.context import ContextDesk
from antiphon_orchestrator.mesh.sessions import MeshSettings, Sessions
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.placement.candidates import Need, Permit
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.placement.pacing import Pacing, divide
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile, dev_profile
from antiphon_orchestrator.registry.registry import Registry
from antiphon_orchestrator.revocations import Revocations
from antiphon_orchestrator.runs.archived import ArchivedRuns
from antiphon_orchestrator.runs.catalog import Catalog
from antiphon_orchestrator.runs.listing import RunListing
from antiphon_orchestrator.runs.reads import ContextReads
from antiphon_orchestrator.runs.room import StoreRoom
from antiphon_orchestrator.runs.sub_runs import SubRuns
from antiphon_orchestrator.runs.submit import Submissions
from antiphon_orchestrator.shards.archiver import Archiver
from antiphon_orchestrator.shards.clock import SteadyClock
from antiphon_orchestrator.shards.host import Host
from antiphon_orchestrator.shards.log import shard_count
from antiphon_orchestrator.shards.remembering import Remembering
from antiphon_orchestrator.store import Store, StoreError

from tests.simulation.cluster.agents import MOST_SCARCE, SCARCE
from tests.simulation.cluster.history import History
from tests.simulation.cluster.loop import Process
from tests.simulation.cluster.network import Channel, Network, Peer, ServerCall, error
from tests.simulation.cluster.outside import OUTSIDE

LEAVING = 10.0
_LIMITS = PolicyFile(
    "limits.cedar",
    f"""
    @id("simulated.limit") @obligation("limit") @concurrent("{MOST_SCARCE}")
    permit (principal, action == Action::"dispatch", resource) when {{ resource.name == "{SCARCE}" }};
    """,
)
POLICY = CedarPolicies(PolicyBundle.of(1, [*dev_profile().files, _LIMITS]))
"""Shared by all worlds: what is remembered in it is what was asked, not what came of it."""
METRICS = telemetry.Metrics()
_DETAILS = "grpc-status-details-bin"
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class SimulatedClock:
    """Implements certs.Clock by the loop that runs."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now() / 1e6, UTC)

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())


class SimulatedPeers(Peers):
    """Calls to other replicas over the simulated network."""

    def __init__(self, network: Network, who: Peer, others: Callable[[], list[Member]]) -> None:
        super().__init__(lambda: cast(Any, None), others)
        self._network = network
        self._who = who
        self._channels: dict[str, Channel] = {}

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.setdefault(address, Channel(self._network, self._who, address))
        return cast(grpc.aio.Channel, channel)


class Replica:
    """`run` is the process. `failed` takes what no refusal says, which is a fault of the product."""

    def __init__(
        self,
        replica_id: str,
        address: str,
        process: Process,
        network: Network,
        store: Store,
        archive: Archive,
        who: Peer,
        shards: int,
        history: History,
        failed: Callable[[BaseException], None],
    ) -> None:
        self.replica_id = replica_id
        self.process = process
        self.host: Host | None = None
        self.fleet: Fleet | None = None
        self.sessions: Sessions | None = None
        self.revocations: Revocations | None = None
        self._address = address
        self._network = network
        self._store = store
        self._archive = archive
        self._who = who
        self._shards = shards
        self._history = history
        self._failed = failed
        self._part = MOST_SCARCE
        self._routing: Routing | None = None
        self._methods = Methods()
        self._open: dict[ServerCall, asyncio.Task[Any]] = {}
        self._over: dict[ServerCall, ApiError] = {}

    async def run(self) -> None:
        """Until cancelled, which makes it leave as an operator's stop does."""
        store, archive, replica_id = self._store, self._archive, self.replica_id
        values = Values()
        schemas = SchemaSet(values)
        now = SteadyClock(OUTSIDE.time_ns, OUTSIDE.monotonic_ns)
        fleet = self.fleet = Fleet(POLICY, schemas, now)
        pacing = Pacing(fleet, now)
        fleet.broke = lambda instance: pacing.wake()
        take = fleet.limits.take

        def take_and_show(permit: Permit, need: Need, agent: str) -> None:
            take(permit, need, agent)
            self._taken(need)

        fleet.limits.take = take_and_show  # type: ignore[method-assign]
        audit = AuditLog(store, replica_id, now)
        registry = Registry(store, fleet, schemas, now, timedelta(days=30))
        catalog = Catalog(store, values)
        archiver = Archiver(archive)
        tokens = await AttemptTokens.load(store)
        archived = ArchivedRuns(archive, catalog)
        calls = Calls(catalog, archived, tokens, lambda message: (), now)
        clock = SimulatedClock(now)
        revocations = self.revocations = Revocations(store, clock)
        blobs = ObjectBlobs("file:///nowhere")
        context = SharedContext(store, POLICY, audit, blobs, Quota(), clock)
        desk = ContextDesk(context, tokens, archived)
        reads = ContextReads(context, clock, now)
        sub_runs = SubRuns(catalog, fleet, POLICY, audit, schemas, clock, now)
        sessions = self.sessions = Sessions(
            MeshSettings(replica_id), fleet, registry, POLICY, audit, tokens, calls, desk, now
        )
        host = self.host = Host(
            store, fleet, sessions, archiver, reads, sub_runs, catalog.plan_of, replica_id=replica_id,
            shard_count=await shard_count(store, self._shards), inbox_limit=1000, metrics=METRICS, now=now,
        )  # fmt: skip
        sessions.bind(host)
        reads.answer = sub_runs.answer = host.put
        membership = Membership(store, replica_id, "0", now())
        room = StoreRoom(store, Path("/"), 1 << 30, METRICS, host.keep_short, host.promised)
        submissions = Submissions(catalog, fleet, POLICY, audit, schemas, blobs, host, room, now)
        peers = SimulatedPeers(self._network, self._who, lambda: membership.others)
        routing = self._routing = Routing(host, membership, peers)

        def cluster_changed() -> None:
            staying = (member for member in membership.members.values() if not member.leaving)
            topology = tuple(sorted((member.replica_id, member.address) for member in staying))
            sessions.replicas_changed(topology)
            there = [replica for replica, _ in topology]
            if replica_id in there:
                self._part = max(1, len(range(there.index(replica_id), MOST_SCARCE, len(there))))
            divide(fleet.limits, there, replica_id)
            routing.look()

        async def read_again() -> None:
            catalog.forget()
            await revocations.load()
            await registry.load()

        membership.read_again = read_again
        steward = Steward(host, membership, cluster_changed)
        gathering = Gathering(host, membership, peers, routing)
        listing = RunListing(host, archive)
        runs = RunService(
            host, submissions, archived, listing, fleet, routing, peers, gathering, blobs,
            Pace(OUTSIDE.monotonic), lambda item: None,
        )  # fmt: skip
        self._methods.add(lambda s: run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, s))
        self._methods.add(lambda s: mesh_service_pb2_grpc.add_MeshServiceServicer_to_server(MeshService(sessions), s))
        await registry.load()
        await context.load()
        await audit.load()
        await revocations.load()
        self._network.listen(self._address, self.process, self._serve)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(catalog.run(), name="catalog")
                group.create_task(audit.run(), name="audit")
                group.create_task(revocations.run(), name="revocations")
                group.create_task(self._look_after(clock), name="open calls")
                group.create_task(registry.run(), name="registry")
                group.create_task(archiver.run(), name="archiver")
                group.create_task(Remembering(archive, host, clock).run(), name="request ids from the archive")
                await membership.join(self._address, "")
                group.create_task(membership.run(), name="membership")
                group.create_task(steward.run(), name="shards")
                await steward.begun.wait()
                group.create_task(sessions.run(), name="sessions")
                group.create_task(pacing.run(), name="pacing")
                group.create_task(calls.run(), name="calls")
                group.create_task(context.run(), name="context")
                group.create_task(desk.run(), name="context requests")
                group.create_task(reads.run(), name="context for expressions")
                group.create_task(sub_runs.run(), name="graphs of sub-runs")
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
            self._network.close(self._address, self.process)
            await audit.close()
            await membership.gone()

    def _taken(self, need: Need) -> None:
        """An attempt is about to be out that a policy limits: how many are, is counted in what the shards know."""
        assert self.host is not None
        if need.capability.partition("@")[0] != SCARCE:
            return
        out = [
            f"{entry.run.run_id}/{task.plan.id}/{task.member}"
            for shard in self.host.shards
            for entry in shard.runs.values()
            for task in entry.run.all_tasks()
            if task.live is not None and task.plan.capability.startswith(SCARCE)
        ]
        said = f"{self.replica_id} lets one more of {SCARCE} out, of which it may have {self._part}, beside {out}"
        self._history.require(len(out) < self._part, said)

    def refuses(self, serial: int) -> bool:
        """Whether a sidecar with such a certificate would be refused."""
        try:
            self._check("spiffe://antiphon.internal/ns/demo/sidecar/any", serial)
        except ApiError:
            return True
        return False

    def _check(self, principal: str, serial: int) -> None:
        assert self.revocations is not None
        far = datetime.max.replace(tzinfo=UTC)
        self.revocations.check(Certified(Identity.parse(principal), Grants(), far, serial, far))

    async def _look_after(self, clock: SimulatedClock) -> None:
        """As api.interceptor ends what is open and whose certificate is revoked by now, or that needs the store."""
        while True:
            await clock.sleep(RECHECK)
            for call, task in tuple(self._open.items()):
                try:
                    self._check(call.peer.principal, call.peer.serial)
                    if self._routing is not None:
                        self._routing.require_store(call.path)
                except ApiError as error:
                    self._over[call] = error
                    task.cancel()

    async def _serve(self, call: ServerCall) -> None:
        """As api.interceptor answers a call; but for what is revoked, certificate and rules are in order."""
        task = asyncio.current_task()
        assert task is not None
        self._open[call] = task
        try:
            if self._routing is not None:
                self._routing.require_store(call.path)
            self._check(call.peer.principal, call.peer.serial)
            await self._answer(call)
        except asyncio.CancelledError:
            if (over := self._over.pop(call, None)) is None:
                raise
            task.uncancel()
            call.end(self._refused(over))
        except Exception as exception:
            call.end(self._refused(exception))
        else:
            call.end(True)
        finally:
            del self._open[call]

    async def _answer(self, call: ServerCall) -> None:
        principal = call.peer.principal
        metadata = dict(call.metadata)
        forwarded = metadata.get(FORWARDED)
        if isinstance(forwarded, bytes):
            principal = mesh_service_pb2.ForwardedCall.FromString(forwarded).caller
        who = Caller(Identity.parse(principal), call.peer.grants, _TRACE, principal, forwarded is not None)
        set_caller(who)
        method = self._methods.handlers[call.path]
        if method.unary_unary is not None:
            call.answer(await self._unary(call, method, who))
        else:
            await self._stream(call, method, who)

    async def _unary(self, call: ServerCall, method: Any, who: Caller) -> bytes:
        routing, parse, request = self._routing, method.request_deserializer, await call.request()
        assert routing is not None
        message = parse(request)
        shard = routing.shard(call.path, message, who)
        if shard is None:
            answer = await routing.here(call.path, method.unary_unary(message, None))
        else:
            answer = await routing.unary(
                call.path, shard, request, who, lambda: method.unary_unary(parse(request), None), call.remaining
            )
        return answer if isinstance(answer, bytes) else method.response_serializer(answer)

    async def _stream(self, call: ServerCall, method: Any, who: Caller) -> None:
        routing = self._routing
        assert routing is not None
        if method.stream_stream is not None:

            async def parsed() -> Any:
                async for request in call.requests():
                    yield method.request_deserializer(request)

            answers = method.stream_stream(parsed(), None)
        else:
            request = await call.request()
            message = method.request_deserializer(request)
            shard = routing.shard(call.path, message, who)
            if shard is None:
                answers = method.unary_stream(message, None)
            else:
                answers = routing.stream(call.path, shard, request, who, lambda: method.unary_stream(message, None))
        async with contextlib.aclosing(answers) as responses:
            async for response in responses:
                call.answer(response if isinstance(response, bytes) else method.response_serializer(response))

    def _refused(self, exception: Exception) -> grpc.aio.AioRpcError:
        if isinstance(exception, Refusal):
            trailers = ((_DETAILS, exception.details),) if exception.details is not None else ()
            return error(exception.code, str(exception), trailers)
        refused = refusal(exception)
        if refused is None:
            self._failed(exception)
            return error(grpc.StatusCode.INTERNAL, repr(exception))
        details = refused.to_status().SerializeToString()
        return error(refused.spec.code, str(refused), ((_DETAILS, details),))
