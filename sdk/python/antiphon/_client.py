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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, Unpack

import grpc

from antiphon.v1 import (
    audit_pb2,
    audit_service_pb2,
    context_pb2,
    context_service_pb2,
    graph_pb2,
    graph_service_pb2,
    identity_service_pb2,
    policy_pb2,
    policy_service_pb2,
    registry_pb2,
    registry_service_pb2,
    run_pb2,
    run_service_pb2,
)
from antiphon.v1.payload_pb2 import Payload

from . import _calls, _entries, _payloads
from ._connection import Connection, Generation, Renew
from ._context import value_of
from ._credentials import Credentials, load_profile
from ._errors import error_of, from_rpc_error
from ._failures import RunFailed
from ._holding import Holding
from ._reasons import DeadlineExceeded
from ._schema import codec
from ._submission import SubmitOptions, submission
from ._submitter import Submitter
from ._trace import traceparent

if TYPE_CHECKING:
    from ._graph import Graph

_WAIT_STEP = 300.0

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class _PageRequest(Protocol):
    page_token: str


class _Page(Protocol):
    next_page_token: str


PageRequest = TypeVar("PageRequest", bound=_PageRequest)
Page = TypeVar("Page", bound=_Page)


class Client:
    """A connection to the orchestrators of one identity; make it with `connect`, use it with `async with`."""

    def __init__(self, connection: Connection, timeout: timedelta, patience: timedelta) -> None:
        self._connection = connection
        self._timeout = timeout
        self._patience = patience

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

        By a profile (`ANTIPHON_PROFILE` or `default` when not named), or by `address` (host:port, or several) and
        `credentials`; one of them overrides the profile's. Changed certificate files are noticed within seconds.
        `renew` is awaited before the first call and then every ten seconds, for whoever can renew: it decides whether a
        renewal is due (antiphon_certs.is_due) and writes the files. `timeout` is the deadline of each unary call, tries
        included; `patience` how long a stream is dialled again before its error is raised. Raises `SetupError`.
        """
        addresses = (address,) if isinstance(address, str) else tuple(address or ())
        if not addresses or credentials is None:
            found = load_profile(profile)
            addresses, credentials = addresses or found.addresses, credentials or found.credentials
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
        unless there is a `timeout`. `SubmitOptions` has the rest. Raises `GraphNotFound`, `GraphInvalid`,
        `InputInvalid`, `RequestIdReused`, or another `AntiphonError`.
        """
        request = await submission(self.upload_payload, graph, input, options, traceparent())
        if not request.wait:
            return (await self._ask(lambda to: to.runs.SubmitRun, request, timeout)).run
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                return await self._submit_and_wait(request)
        except TimeoutError:
            raise error_of("DEADLINE_EXCEEDED", f"the run has not ended within {timeout}") from None

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
        page_size: int = 0,
    ) -> AsyncIterator[run_pb2.Run]:
        """Runs, live and archived, newest first, without payloads; pages are fetched as needed."""
        request = run_service_pb2.ListRunsRequest(states=states, graph_name=graph, labels=labels, page_size=page_size)
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
        self, run_id: str, cursor: int = 0, *, include_progress: bool = False
    ) -> AsyncIterator[run_pb2.RunEvent]:
        """Events of a run after `cursor` (the `event_seq` last seen), in order, without gap or repeat, to its end.

        Goes on by itself after a broken stream. Raises `RunNotFound`, `CursorInvalid`.
        """
        async with aclosing(self._watch(run_id, cursor, include_progress)) as messages:
            async for message in messages:
                for event in message.events:
                    yield event

    async def wait(
        self,
        run_id: str,
        *,
        timeout: timedelta | None = None,  # noqa: ASYNC109  what a caller waits at most
    ) -> run_pb2.Run:
        """The run as it ended, succeeded or not. Raises `RunNotFound`; `DeadlineExceeded` after `timeout`."""
        try:
            async with (
                asyncio.timeout(None if timeout is None else timeout.total_seconds()),
                aclosing(self._watch(run_id, 0, False)) as messages,
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

    # Policies

    async def check_policy(
        self,
        action: str,
        resource: str = "",
        *,
        principal: str = "",
        resource_kind: str = "",
        facts: Mapping[str, str | Iterable[str]] | None = None,
    ) -> policy_pb2.DecisionRecord:
        """What would be decided in the caller's namespace, and why; nothing is remembered of it.

        `principal` is a SPIFFE id, the caller's own by default. A fact that is not given is the least there is.
        """
        request = policy_service_pb2.CheckRequest(
            principal=principal, action=action, resource_kind=resource_kind, resource_id=resource
        )
        for name, value in (facts or {}).items():
            request.facts.add(name=name, values=[value] if isinstance(value, str) else list(value))
        return (await self._ask(lambda to: to.policies.Check, request)).decision

    def list_policies(self, *, page_size: int = 0) -> AsyncIterator[policy_pb2.PolicySet]:
        """The kept sets of policies without their files, the newest first."""
        request = policy_service_pb2.ListPoliciesRequest(page_size=page_size)
        return self._pages(lambda to: to.policies.ListPolicies, request, lambda page: page.policies)

    async def get_policy(self, epoch: int = 0) -> policy_pb2.PolicySet:
        """A set of policies with its files, by default the one in force. Raises `PolicyEpochNotFound`."""
        request = policy_service_pb2.GetPolicyRequest(epoch=epoch)
        return (await self._ask(lambda to: to.policies.GetPolicy, request)).policy

    async def activate_policies(
        self, files: Mapping[str, str], *, expected_epoch: int, request_id: str | None = None
    ) -> policy_pb2.PolicySet:
        """Put a whole set in force: texts by file name. For operators.

        Raises `PolicyInvalid` with every mistake, `PolicyEpochChanged`, `PolicyLocksOut`.
        """
        request = policy_service_pb2.ActivatePoliciesRequest(
            request_id=request_id or uuid.uuid4().hex, expected_epoch=expected_epoch
        )
        for name, text in files.items():
            request.files.add(name=name, text=text)
        return (await self._ask(lambda to: to.policies.ActivatePolicies, request)).policy

    async def roll_back_policies(
        self, epoch: int, *, expected_epoch: int, request_id: str | None = None
    ) -> policy_pb2.PolicySet:
        """Put the content of an earlier epoch in force again, as a new one. For operators. Raises as above."""
        request = policy_service_pb2.RollBackRequest(
            request_id=request_id or uuid.uuid4().hex, epoch=epoch, expected_epoch=expected_epoch
        )
        return (await self._ask(lambda to: to.policies.RollBack, request)).policy

    def list_decisions(
        self,
        *,
        principal: str = "",
        action: str = "",
        allowed: bool | None = None,
        decision_id: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[policy_pb2.DecisionRecord]:
        """Recent decisions about the caller's namespace, the newest first, those that fit all filters."""
        outcomes = {
            None: policy_service_pb2.DECISION_OUTCOME_UNSPECIFIED,
            True: policy_service_pb2.DECISION_OUTCOME_ALLOW,
            False: policy_service_pb2.DECISION_OUTCOME_DENY,
        }
        request = policy_service_pb2.ListDecisionsRequest(
            principal=principal,
            action=action,
            outcome=outcomes[allowed],
            decision_id=decision_id,
            page_size=page_size,
        )
        return self._pages(lambda to: to.policies.ListDecisions, request, lambda page: page.decisions)

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

    # Shared context

    async def get_entry(self, key: str, *, scope: str = "namespace") -> context_pb2.Entry:
        """An entry of shared context; `entry_value` gives its value. Raises `EntryNotFound`.

        `scope` is `namespace`, `run:ID` or `graph:NAME`, here and below.
        """
        request = context_service_pb2.GetEntryRequest(scope=_entries.scope_of(scope), key=key)
        return (await self._ask(lambda to: to.context.GetEntry, request)).entry

    async def put_entry(
        self,
        key: str,
        value: Any,
        *,
        scope: str = "namespace",
        ttl: timedelta | None = None,
        expected_revision: int | None = None,
        labels: Iterable[str] = (),
        claim: context_pb2.Claim | None = None,
        request_id: str | None = None,
    ) -> context_service_pb2.PutEntryResponse:
        """Write an entry whole: anything JSON can hold, or a `Payload`; a large one is uploaded first.

        `ttl`: how long it is there; for ever by default. `expected_revision`: the one it must have, 0 for none there;
        any by default. `labels`: such as "pii" or "region=eu". `claim`: one that must still be ours. Raises
        `EntryConflict`, `ContextQuotaExceeded`, `ClaimLost`.
        """
        request = await _entries.put_request(
            self.upload_payload,
            key,
            value,
            scope=scope,
            ttl=ttl,
            expected_revision=expected_revision,
            labels=labels,
            claim=claim,
            request_id=request_id,
        )
        return await self._ask(lambda to: to.context.PutEntry, request)

    async def delete_entry(
        self,
        key: str,
        *,
        scope: str = "namespace",
        expected_revision: int | None = None,
        claim: context_pb2.Claim | None = None,
        request_id: str | None = None,
    ) -> int:
        """Remove an entry: the revision of the removal, 0 when there was none. Raises `EntryConflict`, `ClaimLost`."""
        request = _entries.delete_request(
            key, scope=scope, expected_revision=expected_revision, claim=claim, request_id=request_id
        )
        return (await self._ask(lambda to: to.context.DeleteEntry, request)).revision

    def list_entries(
        self, prefix: str = "", *, scope: str = "namespace", page_size: int = 0
    ) -> AsyncIterator[context_pb2.Entry]:
        """Entries whose keys begin with `prefix`, in an order that does not change; pages are fetched as needed."""
        request = context_service_pb2.ListEntriesRequest(
            scope=_entries.scope_of(scope), prefix=prefix, page_size=page_size
        )
        return self._pages(lambda to: to.context.ListEntries, request, lambda page: page.entries)

    async def snapshot_entries(
        self, prefix: str = "", *, scope: str = "namespace"
    ) -> tuple[list[context_pb2.Entry], int]:
        """All entries whose keys begin with `prefix`, and the revision to watch from so that nothing is missed."""
        request = context_service_pb2.ListEntriesRequest(scope=_entries.scope_of(scope), prefix=prefix, page_size=500)
        entries: list[context_pb2.Entry] = []
        while True:
            page = await self._ask(lambda to: to.context.ListEntries, request)
            entries.extend(page.entries)
            if not page.next_page_token:
                return entries, page.revision + 1
            request.page_token = page.next_page_token

    async def watch_entries(
        self, prefix: str = "", *, scope: str = "namespace", from_revision: int = 0
    ) -> AsyncIterator[context_pb2.EntryEvent]:
        """Changes of entries whose keys begin with `prefix`, without end, gap or repeat; from now on by default.

        To have what is there and everything after it, begin with `snapshot_entries`. Goes on by itself after a broken
        stream. Raises `HistoryCompacted` when too much has happened meanwhile: take another snapshot.
        """
        request = context_service_pb2.WatchEntriesRequest(
            scope=_entries.scope_of(scope), prefix=prefix, from_revision=from_revision
        )

        async def open_stream(to: Generation) -> AsyncIterator[context_service_pb2.WatchEntriesResponse]:
            stream = to.context.WatchEntries(request, metadata=_calls.metadata())
            try:
                async for message in stream:
                    request.from_revision = message.revision + 1
                    yield message
            finally:
                stream.cancel()

        async with aclosing(_calls.resume(self._connection, open_stream, self._patience)) as messages:
            async for message in messages:
                for event in message.events:
                    yield event

    async def lineage(self, key: str, *, scope: str = "namespace") -> context_service_pb2.GetLineageResponse:
        """What an entry was made from, nearest first, as far as that is still there. Raises `EntryNotFound`."""
        request = context_service_pb2.GetLineageRequest(scope=_entries.scope_of(scope), key=key)
        return await self._ask(lambda to: to.context.GetLineage, request)

    def claim(
        self,
        name: str,
        *,
        scope: str = "namespace",
        ttl: timedelta = timedelta(seconds=30),
        wait: timedelta = timedelta(0),
    ) -> Holding:
        """Hold a claim while a block runs; by convention its name is the key, or the prefix, that it protects.

        async with client.claim("plan") as claim:
            await client.put_entry("plan", plan, claim=claim)

        It is renewed meanwhile; without us it ends after `ttl`, 1 s to an hour. Raises `ClaimHeld` when somebody else
        has it after `wait`, and `ClaimLost` in the block's place when it is lost.
        """
        return Holding(_ClientClaims(self), name, scope, ttl, wait)

    async def acquire_claim(self, request: context_service_pb2.AcquireClaimRequest) -> context_pb2.Claim:
        """Take a claim without keeping it alive; `claim` does both. Raises `ClaimHeld`."""
        return (await self._ask(lambda to: to.context.AcquireClaim, request)).claim

    async def renew_claim(self, request: context_service_pb2.RenewClaimRequest) -> context_pb2.Claim:
        """Begin a claim's time anew. Raises `ClaimLost`."""
        return (await self._ask(lambda to: to.context.RenewClaim, request)).claim

    async def release_claim(self, request: context_service_pb2.ReleaseClaimRequest) -> None:
        """Give a claim up; one that is not ours any more is left alone."""
        await self._ask(lambda to: to.context.ReleaseClaim, request)

    # Audit

    def list_audit_records(
        self,
        chain: str,
        *,
        newest_first: bool = False,
        complete: bool = False,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        principal: str = "",
        action: str = "",
        outcome: audit_pb2.AuditOutcome.ValueType = audit_pb2.AUDIT_OUTCOME_UNSPECIFIED,
        namespace: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[audit_pb2.AuditRecord]:
        """Records of one chain in its order, or from the newest back; `get_audit_checkpoint` names the chains.

        `complete` gives what does not match, or may not be read, as hidden records, so that `verify_audit` can look at
        the whole. For operators. Raises `AuditChainNotFound`.
        """
        request = audit_service_pb2.ListRecordsRequest(
            chain=chain,
            newest_first=newest_first,
            complete=complete,
            principal=principal,
            action=action,
            outcome=outcome,
            namespace=namespace,
            page_size=page_size,
        )
        if start_time is not None:
            request.start_time.FromDatetime(start_time)
        if end_time is not None:
            request.end_time.FromDatetime(end_time)
        return self._pages(lambda to: to.audit.ListRecords, request, lambda page: page.records)

    async def get_audit_checkpoint(self) -> audit_pb2.AuditCheckpoint:
        """Where every audit chain stands, signed by the orchestrator. For operators."""
        request = audit_service_pb2.GetCheckpointRequest()
        return (await self._ask(lambda to: to.audit.GetCheckpoint, request)).checkpoint

    async def get_audit_proof(self, chain: str, seq: int, upto_seq: int = 0) -> audit_service_pb2.GetProofResponse:
        """What leads from a record to the hash at `upto_seq`, or at the end of its chain. For operators.

        Raises `AuditChainNotFound`, `AuditRecordNotFound`.
        """
        request = audit_service_pb2.GetProofRequest(chain=chain, seq=seq, upto_seq=upto_seq)
        return await self._ask(lambda to: to.audit.GetProof, request)

    async def digest_runs(self, runs: Iterable[audit_pb2.RunDigest]) -> Sequence[audit_pb2.RunDigest]:
        """The digests of parts of runs as their histories stand in the archive now; at most 100. For operators."""
        request = audit_service_pb2.DigestRunsRequest(runs=runs)
        return (await self._ask(lambda to: to.audit.DigestRuns, request)).runs

    # Payloads

    async def upload_payload(self, data: bytes, media_type: str = "") -> Payload:
        """Keep a value of any size and return what to send in its place; empty media type means JSON."""
        return await _payloads.upload(self._connection, data, media_type)

    async def download_payload(self, payload: Payload | str) -> bytes:
        """The bytes of a payload, inline or kept by reference, or of a digest. Raises `PayloadNotFound`."""
        if isinstance(payload, Payload) and not payload.HasField("blob"):
            return payload.inline
        digest = payload if isinstance(payload, str) else payload.blob.digest
        return await _payloads.download(self._connection, digest, self._patience)

    # How

    async def _ask(
        self,
        method: Callable[[Generation], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]],
        request: Request,
        limit: timedelta | None = None,
        *,
        repeatable: bool = True,
    ) -> Answer:
        trace = _calls.metadata()

        async def send(to: Generation, left: float) -> Answer:
            return await method(to)(request, timeout=left, metadata=trace)

        return await _calls.call(self._connection, send, limit or self._timeout, repeatable=repeatable)

    async def _pages(
        self,
        method: Callable[[Generation], grpc.aio.UnaryUnaryMultiCallable[PageRequest, Page]],
        request: PageRequest,
        items: Callable[[Page], Iterable[Item]],
    ) -> AsyncIterator[Item]:
        while True:
            page = await self._ask(method, request)
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

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
        self, run_id: str, cursor: int, include_progress: bool
    ) -> AsyncGenerator[run_service_pb2.WatchRunResponse, None]:
        request = run_service_pb2.WatchRunRequest(run_id=run_id, cursor=cursor, include_progress=include_progress)

        async def open_stream(to: Generation) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
            stream = to.runs.WatchRun(request, metadata=_calls.metadata())
            try:
                async for message in stream:
                    # Progress has no place in the history, hence no number.
                    request.cursor = max((event.event_seq for event in message.events), default=0) or request.cursor
                    yield message
            finally:
                stream.cancel()

        return _calls.resume(self._connection, open_stream, self._patience)


class _ClientClaims:
    """The claims of a client, for `Holding`."""

    def __init__(self, client: Client) -> None:
        self.acquire = client.acquire_claim
        self.renew = client.renew_claim
        self.release = client.release_claim


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
