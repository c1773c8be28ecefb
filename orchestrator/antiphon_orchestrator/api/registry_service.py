"""RegistryService: see protos/antiphon/v1/registry_service.proto."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc
from antiphon.v1 import registry_pb2, registry_service_pb2_grpc
from antiphon.v1 import registry_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason

from ..placement.fleet import Fleet
from ..registry.registry import ACTIVE, DRAINING, SUSPENDED, AgentNotFound, Registry
from .call import caller
from .errors import ApiError

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class RegistryService(registry_service_pb2_grpc.RegistryServiceServicer):
    def __init__(self, registry: Registry, fleet: Fleet) -> None:
        self._registry = registry
        self._fleet = fleet

    async def ListAgents(self, request: api.ListAgentsRequest, context: Context) -> api.ListAgentsResponse:
        namespace = caller().namespace
        names, token = _page(self._registry.names(namespace), request.page_size, request.page_token, lambda n: n)
        agents = [self._registry.agent(namespace, name) for name in names]
        return api.ListAgentsResponse(agents=agents, next_page_token=token)

    async def GetAgent(self, request: api.GetAgentRequest, context: Context) -> api.GetAgentResponse:
        return api.GetAgentResponse(agent=self._agent(request.name))

    async def WatchAgents(
        self, request: api.WatchAgentsRequest, context: Context
    ) -> AsyncIterator[api.WatchAgentsResponse]:
        namespace = caller().namespace
        changes = self._registry.listen()
        try:
            everything = [self._registry.agent(namespace, name) for name in self._registry.names(namespace)]
            yield api.WatchAgentsResponse(agents=everything)
            while True:
                names = {await changes.get()}
                while not changes.empty():
                    names.add(changes.get_nowait())
                wanted = self._registry.names(namespace)
                if ("", "") not in names:
                    wanted = [name for name in wanted if (namespace, name) in names]
                if wanted:
                    yield api.WatchAgentsResponse(agents=[self._registry.agent(namespace, name) for name in wanted])
        finally:
            self._registry.unlisten(changes)

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
        labels, token = _page(sorted(offered), request.page_size, request.page_token, lambda label: label)
        return api.ListCapabilitiesResponse(capabilities=[offered[label] for label in labels], next_page_token=token)

    async def DrainAgent(self, request: api.DrainAgentRequest, context: Context) -> api.DrainAgentResponse:
        return api.DrainAgentResponse(agent=await self._set(request.name, DRAINING))

    async def SuspendAgent(self, request: api.SuspendAgentRequest, context: Context) -> api.SuspendAgentResponse:
        return api.SuspendAgentResponse(agent=await self._set(request.name, SUSPENDED))

    async def ResumeAgent(self, request: api.ResumeAgentRequest, context: Context) -> api.ResumeAgentResponse:
        return api.ResumeAgentResponse(agent=await self._set(request.name, ACTIVE))

    async def _set(self, name: str, state: registry_pb2.AgentState.ValueType) -> registry_pb2.Agent:
        self._agent(name)
        await self._registry.set_state(caller().namespace, name, state)
        return self._agent(name)

    def _agent(self, name: str) -> registry_pb2.Agent:
        try:
            return self._registry.agent(caller().namespace, name)
        except AgentNotFound as error:
            raise ApiError(ErrorReason.ERROR_REASON_AGENT_NOT_FOUND, agent=name) from error


def _page(items: Sequence[T], size: int, token: str, key: Callable[[T], str]) -> tuple[list[T], str]:
    """Items after the token, in order of `key`, and the next token."""
    after = ""
    if token:
        try:
            after = base64.urlsafe_b64decode(token).decode()
        except (ValueError, binascii.Error) as error:
            raise ApiError(ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID) from error
    rest = [item for item in items if key(item) > after]
    page = rest[: size or 50]
    more = len(rest) > len(page)
    return page, base64.urlsafe_b64encode(key(page[-1]).encode()).decode() if more else ""
