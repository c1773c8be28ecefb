"""Room in a cluster that has reached its quota.

etcd then raises an alarm and refuses puts until somebody ends it, however much is deleted; and its quota bounds the
database file, which keeps the pages that are freed. So after history was forgotten each member gives its free pages
back, one after the other, and the alarm is ended once there is room. A member answers nothing while it does so, which
costs little here: nobody can write anyway.
"""

from __future__ import annotations

from antiphon.etcd.v3 import rpc_pb2

from ... import telemetry
from .address import EtcdAddress
from .health import Member, look
from .wire import Endpoint, Line

log = telemetry.logger("store")

_ENOUGH = 0.9
"""Share of the quota that a database file may have when the alarm is ended."""

_DEFRAGMENT_SECONDS = 120.0


async def make_room(line: Line, address: EtcdAddress) -> bool:
    """Gives free pages back and ends the alarm when that made room; whether puts are taken again. Raises StoreError.

    Call it when history has been forgotten. It needs the rights of etcd's root where the cluster has users.
    """
    bounds: dict[str, float] = {}
    for endpoint, member in zip(line.endpoints, await look(line.endpoints, address), strict=True):
        # A member that does not tell its quota has about reached it with the size it has.
        bounds[member.endpoint] = _ENOUGH * (member.quota or member.size)
        if member.size > bounds[member.endpoint]:
            await _defragment(endpoint, member)
    if any(member.size > bounds[member.endpoint] for member in await look(line.endpoints, address)):
        return False
    alarms = await _alarm(line, rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET, alarm=rpc_pb2.NOSPACE))
    for alarm in alarms.alarms:
        end = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=rpc_pb2.NOSPACE
        )
        await _alarm(line, end)
    return True


async def _defragment(endpoint: Endpoint, member: Member) -> None:
    log.warning("store_defragments", address=member.endpoint, bytes=member.size)
    request = rpc_pb2.DefragmentRequest()
    await endpoint.call("Maintenance/Defragment", request, rpc_pb2.DefragmentResponse, _DEFRAGMENT_SECONDS)


async def _alarm(line: Line, request: rpc_pb2.AlarmRequest) -> rpc_pb2.AlarmResponse:
    return await line.again(lambda: line.once("Maintenance/Alarm", request, rpc_pb2.AlarmResponse))
