"""What a task of a chain costs in the orchestrator alone: everything but gRPC, in this one process.

The real parts are put together (admission, shards with their store on disk, placement, policy, sessions, archive) and
driven by messages that were serialised and parsed as on a wire, but cross none. The CPU time of the stand-ins for
sidecar and submitter is measured apart and taken off. CPU time per task holds still on a busy machine, so this is the
number to watch while changing the hot path; `--profile core` shows where it goes.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.store.v1 import records_pb2
from antiphon.v1 import registry_pb2, run_service_pb2
from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.archive import SqlArchive
from antiphon_orchestrator.audit import AuditLog
from antiphon_orchestrator.blobs import FolderBlobs
from antiphon_orchestrator.engine.run import Run
from antiphon_orchestrator.engine.states import RunState
from antiphon_orchestrator.mesh.calls import Calls
from antiphon_orchestrator.mesh.sessions import Announcer, MeshSettings, Sessions
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies, dev_profile
from antiphon_orchestrator.registry.registry import Registry
from antiphon_orchestrator.runs import views
from antiphon_orchestrator.runs.archived import ArchivedRuns
from antiphon_orchestrator.runs.catalog import Catalog
from antiphon_orchestrator.runs.submit import Submissions
from antiphon_orchestrator.shards.archiver import Archiver
from antiphon_orchestrator.shards.host import Host, now
from antiphon_orchestrator.store import SqliteStore, keys
from antiphon_orchestrator.store.port import Put, Txn

from . import workload

SHARDS = 32
IN_FLIGHT = 512


@dataclass(slots=True)
class Cost:
    """Microseconds of CPU per task: all threads of the orchestrator's parts; of these, the event loop's."""

    total: float
    loop: float


@dataclass(slots=True)
class _Parts:
    host: Host
    sessions: Sessions
    submissions: Submissions


@asynccontextmanager
async def _orchestrator(folder: Path) -> AsyncIterator[_Parts]:
    async with (
        SqliteStore(folder / "store.db") as store,
        SqlArchive(f"sqlite:///{folder / 'archive.db'}") as archive,
        FolderBlobs(folder / "payloads") as blobs,
        asyncio.TaskGroup() as group,
    ):
        policy = CedarPolicies(dev_profile())
        values = Values()
        schemas = SchemaSet(values)
        fleet = Fleet(policy, schemas)
        audit = AuditLog(store, fleet, "bench", now)
        catalog = Catalog(store, values)
        archiver = Archiver(archive)
        tokens = await AttemptTokens.load(store)
        calls = Calls(catalog, ArchivedRuns(archive, catalog), tokens, now)
        settings = MeshSettings("bench", "127.0.0.1:1")
        sessions = Sessions(settings, fleet, Registry(store, fleet, schemas, now), policy, audit, tokens, calls, now)
        host = Host(
            store,
            fleet,
            sessions,
            archiver,
            catalog.plan_of,
            replica_id="bench",
            shard_count=SHARDS,
            inbox_limit=8192,
        )
        sessions.bind(host)
        graph = workload.chain()
        record = records_pb2.GraphRecord(graph=graph).SerializeToString()
        running = [group.create_task(part) for part in (store.run(), catalog.run(), audit.run())]
        await store.commit(Txn((), (Put(keys.graph(workload.NAMESPACE, graph.name, graph.version), record),)))
        submissions = Submissions(catalog, fleet, policy, audit, schemas, blobs, host, now)
        await host.recover()
        running.append(group.create_task(host.run()))
        sessions.adopt()
        yield _Parts(host, sessions, submissions)
        for task in running:
            task.cancel()


def _echo(message: mesh.AttachResponse) -> mesh.AttachRequest:
    answer = mesh.AttachRequest()
    for offer in message.offers:
        report = answer.reports.add(attempt_id=offer.assignment.attempt_id, shard=offer.shard, agent=offer.agent)
        report.output.CopyFrom(offer.assignment.input)
    for claim in message.claims:
        answer.inventories.add(shard=claim.shard, epoch=claim.epoch, last=True)
    return answer


class _Load:
    """Keeps IN_FLIGHT chains under way until `runs` have ended, and plays the sidecar. `apart` is its own CPU time."""

    def __init__(self, parts: _Parts, runs: int) -> None:
        self.parts = parts
        self.apart = 0.0
        self._left = runs
        self._open = 0
        self._wake = asyncio.Event()
        self._answers: list[Any] = []

    async def sidecar(self) -> None:
        sessions = self.parts.sessions
        who = Announcer("demo", "bench", workload.principal("sidecar"), lambda name: True, lambda name: True)
        hello = mesh.Hello(incarnation="a" * 16, generation=1, protocol_version=1)
        hello.agents.append(
            registry_pb2.AgentDescription(name="bench", concurrency=1000, capabilities=[workload.capability()])
        )
        hello.windows.add(agent="bench", generation=1, slots=2000)
        session = await sessions.open(who, hello)
        async for message in session.messages():
            raw = message.SerializeToString()
            begun = time.thread_time()
            answer = _echo(mesh.AttachResponse.FromString(raw)).SerializeToString()
            self.apart += time.thread_time() - begun
            await sessions.receive(session, who, mesh.AttachRequest.FromString(answer))

    async def submitter(self) -> None:
        graph = workload.chain()
        number = 0
        while self._left or self._open:
            count = min(IN_FLIGHT - self._open, self._left, 256)
            if count:
                begun = time.thread_time()
                batch = run_service_pb2.SubmitRunsRequest()
                for _ in range(count):
                    number += 1
                    batch.submissions.append(workload.submission(graph, f"{id(self)}-{number}"))
                raw = batch.SerializeToString()
                self.apart += time.thread_time() - begun
                for submission in run_service_pb2.SubmitRunsRequest.FromString(raw).submissions:
                    await self._submit(submission)
                self._left -= count
                self._open += count
            self._wake.clear()
            if not self._answers:
                await self._wake.wait()
            answers, self._answers = self._answers, []
            response = run_service_pb2.SubmitRunsResponse()
            for answer in answers:
                response.results.add(request_id="", run=answer)
            response.SerializeToString()
            self._open -= len(answers)
            # A stream that is being written gathers what ends meanwhile; so does this.
            await asyncio.sleep(0)

    async def _submit(self, submission: run_service_pb2.SubmitRunRequest) -> None:
        def sink(value: Any) -> None:
            assert isinstance(value, Run) and value.state is RunState.SUCCEEDED, value
            self._answers.append(views.run_message(value))
            self._wake.set()

        shard, item = await self.parts.submissions.prepare(submission, workload.principal("client"), "demo", "", sink)
        self.parts.host.put(shard, item)


async def measure(runs: int) -> Cost:
    """CPU time per task over `runs` chains."""
    with tempfile.TemporaryDirectory() as folder:
        async with _orchestrator(Path(folder)) as parts:
            warm = _Load(parts, 64)
            sidecar = asyncio.create_task(warm.sidecar())
            try:
                await warm.submitter()
                load = _Load(parts, runs)
                before = warm.apart
                process, loop = time.process_time(), time.thread_time()
                await load.submitter()
                apart = load.apart + warm.apart - before
                tasks = runs * workload.CHAIN
                return Cost(
                    (time.process_time() - process - apart) / tasks * 1e6,
                    (time.thread_time() - loop - apart) / tasks * 1e6,
                )
            finally:
                sidecar.cancel()
                await asyncio.wait((sidecar,))
