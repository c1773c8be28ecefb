"""RegistryService: see protos/antiphon/v1/registry_service.proto."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from antiphon.v1 import registry_pb2, registry_service_pb2_grpc
from antiphon.v1 import registry_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from google.protobuf.message import Message

from ..audit import AuditLog, Fact
from ..cluster.membership import Membership
from ..cluster.peers import Peers
from ..placement.fleet import Fleet
from ..registry.registry import ACTIVE, DRAINING, SUSPENDED, AgentNotFound, Registry
from ..registry.verified import NotProven
from .agent_watch import MESSAGE_BYTES, AgentWatch, add_instances
from .call import caller
from .errors import ApiError
from .paging import decode_token, encode_token

Context = grpc.aio.ServicerContext[Any, Any]
_Shown = TypeVar("_Shown", bound=Message)


class RegistryService(registry_service_pb2_grpc.RegistryServiceServicer):
    """Records are the same on every replica. Instances are attached to all of them, and each has its own part of their
    slots: what is shown is the sum over those that answer."""

    def __init__(self, registry: Registry, fleet: Fleet, audit: AuditLog, peers: Peers, membership: Membership) -> None:
        self._peers = peers
        self._membership = membership
        self._registry = registry
        self._audit = audit
        self._fleet = fleet

    async def ListAgents(self, request: api.ListAgentsRequest, context: Context) -> api.ListAgentsResponse:
        namespace = caller().namespace
        rest, most = _rest(request, self._registry.names(namespace))
        agents = _page(self._registry.agents(namespace, rest[:most]))
        ends = [agents[-1].name] if len(agents) < len(rest) else []
        for raw in await self._elsewhere("ListAgents", request):
            part = api.ListAgentsResponse.FromString(raw)
            known = {agent.name: agent for agent in part.agents}
            for agent in agents:
                if agent.name in known:
                    add_instances(agent, known[agent.name])
            if part.next_page_token:
                ends.append(part.agents[-1].name)
        if not ends:
            return api.ListAgentsResponse(agents=agents)
        end = min(ends)  # beyond it the instances at a replica whose page ends there are not known
        agents = [agent for agent in agents if agent.name <= end]
        return api.ListAgentsResponse(agents=agents, next_page_token=encode_token(request, (end,)))

    async def GetAgent(self, request: api.GetAgentRequest, context: Context) -> api.GetAgentResponse:
        agent = self._agent(request.name)
        for raw in await self._elsewhere("GetAgent", request):
            add_instances(agent, api.GetAgentResponse.FromString(raw).agent)
        return api.GetAgentResponse(agent=agent)

    async def _elsewhere(self, method: str, request: Message) -> Iterable[bytes]:
        """What the other replicas that do answer say to the same request."""
        who = caller()
        if who.forwarded:
            return ()
        path = f"/antiphon.v1.RegistryService/{method}"
        return (await self._peers.whoever(path, request.SerializeToString(), who)).values()

    async def WatchAgents(
        self, request: api.WatchAgentsRequest, context: Context
    ) -> AsyncIterator[api.WatchAgentsResponse]:
        watch = AgentWatch(self._registry, self._membership, self._peers, caller())
        async with aclosing(watch.messages()) as messages:
            async for message in messages:
                yield message

    async def ListCapabilities(
        self, request: api.ListCapabilitiesRequest, context: Context
    ) -> api.ListCapabilitiesResponse:
        namespace = caller().namespace
        offered: dict[str, api.OfferedCapability] = {}
        for instance in self._fleet.instances(namespace):
            for capability in instance.description.capabilities:
                label = f"{capability.name}@{capability.version}"
                row = offered.setdefault(label, api.OfferedCapability(capability=capability))
                row.instance_count += 1
                if instance.agent not in row.agents:
                    row.agents.append(instance.agent)
        rest, most = _rest(request, sorted(offered))
        page = _page(offered[label] for label in rest[:most])
        token = encode_token(request, (rest[len(page) - 1],)) if len(page) < len(rest) else ""
        return api.ListCapabilitiesResponse(capabilities=page, next_page_token=token)

    async def DrainAgent(self, request: api.DrainAgentRequest, context: Context) -> api.DrainAgentResponse:
        return api.DrainAgentResponse(agent=await self._set(request.name, DRAINING, "drain"))

    async def SuspendAgent(self, request: api.SuspendAgentRequest, context: Context) -> api.SuspendAgentResponse:
        return api.SuspendAgentResponse(agent=await self._set(request.name, SUSPENDED, "suspend"))

    async def ResumeAgent(self, request: api.ResumeAgentRequest, context: Context) -> api.ResumeAgentResponse:
        return api.ResumeAgentResponse(agent=await self._set(request.name, ACTIVE, "resume"))

    async def PutVerifyReport(
        self, request: api.PutVerifyReportRequest, context: Context
    ) -> api.PutVerifyReportResponse:
        report, who = request.report, caller()
        try:
            await self._registry.verified.put(who.namespace, who.principal, report)
        except NotProven as error:
            raise ApiError(ErrorReason.ERROR_REASON_VERIFY_REPORT_NOT_ACCEPTED, cause=str(error)) from error
        details = {"version": report.version, "capabilities": report.capabilities_digest}
        resource = f"Agent::{who.namespace}/{report.agent}"
        await self._audit.write(Fact("put_verify_report", who.namespace, who.principal, resource, details=details))
        return api.PutVerifyReportResponse()

    async def _set(self, name: str, state: registry_pb2.AgentState.ValueType, action: str) -> registry_pb2.Agent:
        who = caller()
        try:
            await self._registry.set_state(who.namespace, name, state)
        except AgentNotFound as error:
            raise ApiError(ErrorReason.ERROR_REASON_AGENT_NOT_FOUND, agent=name) from error
        await self._audit.write(Fact(action, who.namespace, who.principal, f"Agent::{who.namespace}/{name}"))
        return self._agent(name)

    def _agent(self, name: str) -> registry_pb2.Agent:
        try:
            return self._registry.agent(caller().namespace, name)
        except AgentNotFound as error:
            raise ApiError(ErrorReason.ERROR_REASON_AGENT_NOT_FOUND, agent=name) from error


def _rest(
    request: api.ListAgentsRequest | api.ListCapabilitiesRequest, names: Sequence[str]
) -> tuple[Sequence[str], int]:
    """The sorted names from the page on that is asked for, and how many it may hold."""
    found = decode_token(request, str)
    return [name for name in names if found is None or name > str(found[0])], request.page_size or 50


def _page(shown: Iterable[_Shown]) -> list[_Shown]:
    """As many as fill a message: a page of large ones ends early."""
    page: list[_Shown] = []
    size = 0
    for one in shown:
        page.append(one)
        size += one.ByteSize()
        if size >= MESSAGE_BYTES:
            break
    return page
