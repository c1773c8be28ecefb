"""A client of the orchestrators: submits runs, follows them, reads and changes what there is.

    async with Client.connect() as client:
        run = await client.submit("review@1", {"folder": "…"}, wait=True)
        print(output_of(run))

Records are the protobuf messages of `antiphon.v1` as they are (`Run`, `Task`, `Agent`, …): one definition, documented
in the contracts, with fields of newer servers kept. Only payloads are turned into Python values, where `output_of` is
asked. Every unary call has a deadline and is repeated as `_calls` says; every error is an `AntiphonError`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc

from antiphon.v1 import (
    cluster_service_pb2,
    graph_pb2,
    graph_service_pb2,
    identity_service_pb2,
    registry_pb2,
    registry_service_pb2,
    run_pb2,
    run_service_pb2,
    verify_pb2,
)

from . import _calls
from ._client_audit import AuditCalls
from ._client_context import ContextCalls
from ._client_identity import IdentityCalls
from ._client_policies import PolicyCalls
from ._client_steering import SteeringCalls
from ._connection import Connection, Generation, Renew
from ._context import value_of
from ._credentials import Credentials, check_addresses, load_profile
from ._errors import AntiphonError, error_of, from_rpc_error
from ._failures import RunFailed
from ._reasons import DeadlineExceeded
from ._schema import codec
from ._submission import SubmitOptions, submission
from ._submitter import Submitter
from ._trace import traceparent

if TYPE_CHECKING:
    from ._graph import Graph

_WAIT_STEP = 300.0
_ASIDE = timedelta(seconds=1)  # that whoever stops waiting is kept, at most, to learn which run goes on


class Client(AuditCalls, ContextCalls, IdentityCalls, PolicyCalls, SteeringCalls):
    """A connection to the orchestrators of one identity; make it with `connect`, use it with `async with`."""

    @classmethod
    def connect(
        cls,
        profile: str | None = None,
        *,
        address: str | Sequence[str] | None = None,
        credentials: Credentials | None = None,
        renew: Renew | None = None,
        timeout: timedelta = timedelta(seconds=10),
        patience: timedelta = timedelta(minutes=2),
    ) -> Self:
        """A client that connects in `async with`.

        By a profile (`ANTIPHON_PROFILE` or `default` when not named), or by `address` (host:port) and `credentials`;
        one of them overrides the profile's. Several addresses, in a list or with commas, are replicas of one cluster,
        of which any will do; `Client.connect("a:7443,b:7443")` calls them with the default profile's certificate.
        Changed certificate files are noticed within seconds.
        `renew` is awaited before the first call and then every ten seconds, for whoever can renew: it decides whether a
        renewal is due (antiphon_certs.is_due) and writes the files. `timeout` is the deadline of each unary call, tries
        included; `patience` how long a stream is dialled again before its error is raised. Raises `SetupError`.
        """
        if profile is not None and ":" in profile:  # which no name of a profile holds
            profile, address = None, address or profile
        several = address.split(",") if isinstance(address, str) else address or ()
        addresses = tuple(one.strip() for one in several if one.strip())
        if not addresses or credentials is None:
            found = load_profile(profile)
            addresses, credentials = addresses or found.addresses, credentials or found.credentials
        check_addresses(addresses)
        return cls(Connection(addresses, credentials, renew), timeout, patience)

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    # Runs

    async def submit(
        self,
        graph: str | Graph | graph_pb2.Graph,
        input: Any = None,
        *,
        timeout: timedelta | None = None,  # noqa: ASYNC109  of the whole, tries included
        **options: Unpack[SubmitOptions],
    ) -> run_pb2.Run:
        """Submit a run of a registered graph ("NAME" or "NAME@VERSION") or of the graph given, and return the run.

        `input` is anything JSON can hold, a dataclass, or a `Payload`; a large one is uploaded first. With `wait=True`
        the answer is the run as it ended, whether it succeeded or not (`output_of` tells), after as long as it takes
        unless there is a `timeout`: the run goes on then, and the `DeadlineExceeded`, which comes within a second,
        names it in its `metadata` as run_id where it is known. `SubmitOptions` has the rest. Raises `GraphNotFound`,
        `GraphInvalid`, `InputInvalid`, `RequestIdReused`, or another `AntiphonError`.
        """
        request = await submission(self.upload_payload, graph, input, options, traceparent())
        if not request.wait:
            return (await self._ask(lambda to: to.runs.SubmitRun, request, timeout)).run
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                return await self._submit_and_wait(request)
        except TimeoutError:
            raise await self._late(request, timeout) from None

    def submitter(self, in_flight: int = 1000) -> Submitter:
        """For many runs: one stream, with at most `in_flight` submissions that have no answer.

        async with client.submitter() as submitter:
            answers = [await submitter.submit("review", one, wait=True) for one in inputs]
            runs = await asyncio.gather(*answers)
        """
        return Submitter(self._connection, self.upload_payload, in_flight, self._patience)

    async def get_run(self, run_id: str) -> run_pb2.Run:
        """A run with its totals. Raises `RunNotFound`."""
        request = run_service_pb2.GetRunRequest(run_id=run_id)
        return (await self._ask(lambda to: to.runs.GetRun, request)).run

    def list_runs(
        self,
        *,
        states: Iterable[run_pb2.RunState.ValueType] = (),
        graph: str = "",
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
        failure: str = "",
        waiting_for_person: bool = False,
        waiting_for_signal: bool = False,
        page_size: int = 0,
    ) -> AsyncIterator[run_pb2.Run]:
        """Runs, live and archived, newest first, without payloads; pages are fetched as needed.

        `graph`: NAME, or NAME@VERSION for one version. `parent`: id of the run, or of the attempt, that called for
        them. `failure`: a part of their failure's message.
        `waiting_for_person`: only those in which a task is ESCALATED or QUARANTINED; `waiting_for_signal`: only those
        in which one waits for a signal, which `awaited_signals` of the run names; with both, those that wait for
        either.
        """
        request = run_service_pb2.ListRunsRequest(
            states=states,
            graph_name=graph,
            labels=labels,
            parent=parent,
            failure_text=failure,
            waiting_for_person=waiting_for_person,
            waiting_for_signal=waiting_for_signal,
            page_size=page_size,
        )
        if created_after is not None:
            request.created_after.FromDatetime(created_after)
        if created_before is not None:
            request.created_before.FromDatetime(created_before)
        return self._pages(lambda to: to.runs.ListRuns, request, lambda page: page.runs)

    def list_tasks(
        self,
        run_id: str,
        *,
        states: Iterable[run_pb2.TaskState.ValueType] = (),
        include_payloads: bool = False,
        page_size: int = 0,
    ) -> AsyncIterator[run_pb2.Task]:
        """Tasks of a run in the order of its graph, members of a for_each after their task. Raises `RunNotFound`."""
        request = run_service_pb2.ListTasksRequest(
            run_id=run_id, states=states, include_payloads=include_payloads, page_size=page_size
        )
        return self._pages(lambda to: to.runs.ListTasks, request, lambda page: page.tasks)

    async def get_task(self, run_id: str, task_id: str, member: int = 0) -> run_pb2.Task:
        """A task with its payloads; `member` counts a for_each from 1, 0 is the task itself. Raises `TaskNotFound`."""
        request = run_service_pb2.GetTaskRequest(run_id=run_id, key=_key(task_id, member))
        return (await self._ask(lambda to: to.runs.GetTask, request)).task

    def list_attempts(
        self, run_id: str, task_id: str, member: int = 0, *, page_size: int = 0
    ) -> AsyncIterator[run_pb2.Attempt]:
        """Attempts of a task, oldest first. Raises `TaskNotFound`."""
        request = run_service_pb2.ListAttemptsRequest(run_id=run_id, key=_key(task_id, member), page_size=page_size)
        return self._pages(lambda to: to.runs.ListAttempts, request, lambda page: page.attempts)

    async def watch(
        self, run_id: str, cursor: int = 0, *, include_progress: bool = False, include_partials: bool = False
    ) -> AsyncIterator[run_pb2.RunEvent]:
        """Events of a run after `cursor` (the `event_seq` last seen), in order, without gap or repeat, to its end.

        With `include_progress` also what handlers say of their progress, with `include_partials` the pieces of output
        they emit (`event.partial`). Neither has an `event_seq`, and who reads too slowly loses some, but no events.
        Goes on by itself after a broken stream. Raises `RunNotFound`, `CursorInvalid`, and `RunSetAside` once it has
        told what there is of a run that does not go on.
        """
        async with aclosing(self._watch(run_id, cursor, include_progress, include_partials)) as messages:
            async for message in messages:
                for event in message.events:
                    yield event

    async def wait(
        self,
        run_id: str,
        *,
        timeout: timedelta | None = None,  # noqa: ASYNC109  what a caller waits at most
    ) -> run_pb2.Run:
        """The run as it ended, succeeded or not. Raises `RunNotFound`, `RunSetAside`; `DeadlineExceeded` after
        `timeout`."""
        try:
            async with (
                asyncio.timeout(None if timeout is None else timeout.total_seconds()),
                aclosing(self._watch(run_id, 0)) as messages,
            ):
                async for message in messages:
                    if message.HasField("run"):
                        return message.run
        except TimeoutError:
            raise error_of("DEADLINE_EXCEEDED", f"run {run_id} has not ended within {timeout}") from None
        return await self.get_run(run_id)

    async def cancel(self, run_id: str, reason: str = "") -> run_pb2.Run:
        """Ask a run to end; one that has ended stays as it is. Raises `RunNotFound`."""
        request = run_service_pb2.CancelRunRequest(run_id=run_id, reason=reason)
        return (await self._ask(lambda to: to.runs.CancelRun, request)).run

    async def explain(self, run_id: str, task_id: str, member: int = 0) -> run_service_pb2.ExplainTaskResponse:
        """How a task came to be where it is: dependencies, attempts, placements, policy. Raises `TaskNotFound`."""
        request = run_service_pb2.ExplainTaskRequest(run_id=run_id, key=_key(task_id, member))
        return await self._ask(lambda to: to.runs.ExplainTask, request)

    # Graphs

    async def register_graph(
        self, graph: Graph | graph_pb2.Graph, *, request_id: str | None = None
    ) -> graph_service_pb2.RegisterGraphResponse:
        """Keep a graph under its name and version. Raises `GraphInvalid` with every mistake, `GraphVersionExists`."""
        request = graph_service_pb2.RegisterGraphRequest(request_id=request_id or uuid.uuid4().hex, graph=_proto(graph))
        return await self._ask(lambda to: to.graphs.RegisterGraph, request)

    async def validate_graph(self, graph: Graph | graph_pb2.Graph) -> graph_service_pb2.ValidateGraphResponse:
        """Every mistake and warning of a graph; mistakes are an answer here, not an error."""
        request = graph_service_pb2.ValidateGraphRequest(graph=_proto(graph))
        return await self._ask(lambda to: to.graphs.ValidateGraph, request)

    async def get_graph(self, name: str, version: str = "") -> graph_service_pb2.RegisteredGraph:
        """A registered version, the highest by default. Raises `GraphNotFound`."""
        request = graph_service_pb2.GetGraphRequest(name=name, version=version)
        return (await self._ask(lambda to: to.graphs.GetGraph, request)).graph

    def list_graphs(self, name: str = "", *, page_size: int = 0) -> AsyncIterator[graph_service_pb2.RegisteredGraph]:
        """Registered versions in order of name, then version; of one name or of all."""
        request = graph_service_pb2.ListGraphsRequest(name=name, page_size=page_size)
        return self._pages(lambda to: to.graphs.ListGraphs, request, lambda page: page.graphs)

    # Agents

    def list_agents(self, *, page_size: int = 0) -> AsyncIterator[registry_pb2.Agent]:
        """Agents in order of name."""
        request = registry_service_pb2.ListAgentsRequest(page_size=page_size)
        return self._pages(lambda to: to.registry.ListAgents, request, lambda page: page.agents)

    async def get_agent(self, name: str) -> registry_pb2.Agent:
        """An agent with its live instances. Raises `AgentNotFound`."""
        request = registry_service_pb2.GetAgentRequest(name=name)
        return (await self._ask(lambda to: to.registry.GetAgent, request)).agent

    async def watch_agents(self) -> AsyncIterator[registry_pb2.Agent]:
        """All agents, then each as it changes, without end; after a broken stream all of them again."""

        def open_stream(to: Generation) -> AsyncIterator[registry_service_pb2.WatchAgentsResponse]:
            request = registry_service_pb2.WatchAgentsRequest()
            return aiter(to.registry.WatchAgents(request, metadata=_calls.metadata()))

        async with aclosing(_calls.resume(self._connection, open_stream, self._patience)) as messages:
            async for message in messages:
                for agent in message.agents:
                    yield agent

    def list_capabilities(self, *, page_size: int = 0) -> AsyncIterator[registry_service_pb2.OfferedCapability]:
        """What is offered now, with the agents behind each version."""
        request = registry_service_pb2.ListCapabilitiesRequest(page_size=page_size)
        return self._pages(lambda to: to.registry.ListCapabilities, request, lambda page: page.capabilities)

    async def drain_agent(self, name: str) -> registry_pb2.Agent:
        """Let an agent finish what it has, and give it no more. For operators. Raises `AgentNotFound`."""
        request = registry_service_pb2.DrainAgentRequest(name=name)
        return (await self._ask(lambda to: to.registry.DrainAgent, request)).agent

    async def suspend_agent(self, name: str) -> registry_pb2.Agent:
        """Give an agent no work until it is resumed. For operators. Raises `AgentNotFound`."""
        request = registry_service_pb2.SuspendAgentRequest(name=name)
        return (await self._ask(lambda to: to.registry.SuspendAgent, request)).agent

    async def resume_agent(self, name: str) -> registry_pb2.Agent:
        """Give work again to an agent that was drained or suspended. For operators. Raises `AgentNotFound`."""
        request = registry_service_pb2.ResumeAgentRequest(name=name)
        return (await self._ask(lambda to: to.registry.ResumeAgent, request)).agent

    async def put_verify_report(self, report: verify_pb2.VerifyReport) -> None:
        """Vouch for an agent with the report of `antiphon verify`: policy finds it verified when it registers.

        Raises `VerifyReportNotAccepted` unless every case was played and passed.
        """
        request = registry_service_pb2.PutVerifyReportRequest(report=report)
        await self._ask(lambda to: to.registry.PutVerifyReport, request)

    # The cluster

    async def get_cluster(self) -> cluster_service_pb2.GetClusterResponse:
        """The orchestrator replicas that are there, and who owns which shard."""
        return await self._ask(lambda to: to.cluster.GetCluster, cluster_service_pb2.GetClusterRequest())

    # Identity

    async def create_token(
        self,
        kind: str,
        name: str,
        *,
        namespace: str = "",
        agents: Iterable[str] = (),
        capabilities: Iterable[str] = (),
        lifetime: timedelta | None = None,
    ) -> identity_service_pb2.CreateTokenResponse:
        """A join token for a sidecar, client or operator; its secret is in the answer and nowhere else. For operators.

        Not repeated when the answer is lost: a second call is a second token.
        """
        request = identity_service_pb2.CreateTokenRequest(
            kind=kind, name=name, namespace=namespace, agents=agents, capabilities=capabilities
        )
        if lifetime is not None:
            request.lifetime.FromTimedelta(lifetime)
        return await self._ask(lambda to: to.identity.CreateToken, request, repeatable=False)

    # How

    async def _late(self, request: run_service_pb2.SubmitRunRequest, limit: timedelta | None) -> AntiphonError:
        """The error of a caller that waits no longer, with the run that goes on: the same request id is one run."""
        request.wait = False
        try:
            run_id = (await self._ask(lambda to: to.runs.SubmitRun, request, _ASIDE)).run.run_id
        except AntiphonError:  # nobody knows whether it was committed
            return error_of("DEADLINE_EXCEEDED", f"the run has not ended within {limit}")
        text = f"run {run_id} has not ended within {limit}"
        return error_of("DEADLINE_EXCEEDED", text, metadata={"run_id": run_id})

    async def _submit_and_wait(self, request: run_service_pb2.SubmitRunRequest) -> run_pb2.Run:
        """In steps, each a call with a deadline of its own: the same request id is the same run, however often."""
        tries = _calls.Tries(self._connection, self._patience)
        trace = _calls.metadata()
        while True:
            async with self._connection.use() as generation:
                try:
                    return (await generation.runs.SubmitRun(request, timeout=_WAIT_STEP, metadata=trace)).run
                except grpc.aio.AioRpcError as broken:
                    error = from_rpc_error(broken)
            if isinstance(error, DeadlineExceeded):
                tries.heard()  # the server is there, and the run goes on
            else:
                await tries.after(error, generation)

    def _watch(
        self, run_id: str, cursor: int, include_progress: bool = False, include_partials: bool = False
    ) -> AsyncGenerator[run_service_pb2.WatchRunResponse, None]:
        request = run_service_pb2.WatchRunRequest(
            run_id=run_id, cursor=cursor, include_progress=include_progress, include_partials=include_partials
        )

        async def open_stream(to: Generation) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
            stream = to.runs.WatchRun(request, metadata=_calls.metadata())
            try:
                async for message in stream:
                    # Progress and pieces have no place in the history, hence no number.
                    request.cursor = max((event.event_seq for event in message.events), default=0) or request.cursor
                    yield message
            finally:
                stream.cancel()

        return _calls.resume(self._connection, open_stream, self._patience)


def output_of(run: run_pb2.Run, returns: Any = Any) -> Any:
    """What a run answered: plain JSON, or what `returns` describes.

    Raises `RunFailed` for a run that did not succeed, `ValueError` for an output that is not inline JSON (see
    `Client.download_payload`) or does not fit `returns`.
    """
    if run.state != run_pb2.RUN_STATE_SUCCEEDED:
        state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
        reason = f": {run.failure.message}" if run.failure.message else ""
        raise RunFailed(f"run {run.run_id} is {state}{reason}", run.failure)
    return codec(returns).decode(value_of(run.output))


def _key(task_id: str, member: int) -> run_pb2.TaskKey:
    return run_pb2.TaskKey(task_id=task_id, member=member)


def _proto(graph: Graph | graph_pb2.Graph) -> graph_pb2.Graph:
    return graph if isinstance(graph, graph_pb2.Graph) else graph.to_proto()
