"""The part of the client that steers runs which are under way."""

from __future__ import annotations

import uuid
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from antiphon.v1 import run_pb2, run_service_pb2

from ._client_base import ClientBase
from ._submission import payload_of


class SteeringCalls(ClientBase):
    """What somebody may ask of a run between its submission and its end."""

    async def signal(
        self, run_id: str, signal: str, data: Any = None, *, request_id: str | None = None
    ) -> run_service_pb2.SignalRunResponse:
        """Send a signal to a run, for the task that waits for it or will; `data`, as the input of `submit`, becomes its
        output. Repeated with the same `request_id` it is one signal. Raises `RunNotFound`, `RunEnded`,
        `SignalNotExpected`, `RequestIdReused`.
        """
        request = run_service_pb2.SignalRunRequest(
            request_id=request_id or uuid.uuid4().hex, run_id=run_id, signal=signal
        )
        if data is not None:
            request.payload.CopyFrom(await payload_of(self.upload_payload, data))
        return await self._ask(lambda to: to.runs.SignalRun, request)

    async def resolve(
        self,
        run_id: str,
        task_id: str,
        member: int = 0,
        *,
        output: Any = None,
        failure: str | None = None,
        reason: str = "",
    ) -> run_pb2.Task:
        """Say what becomes of a task that is ESCALATED or QUARANTINED: it succeeds with `output` (None is null),
        or with `failure` it fails. Raises `TaskNotFound`, `TaskStateConflict`, `RunEnded`.
        """
        request = run_service_pb2.ResolveTaskRequest(
            run_id=run_id, key=run_pb2.TaskKey(task_id=task_id, member=member), reason=reason
        )
        if failure is not None:
            request.failure = failure
        else:
            request.output.CopyFrom(await payload_of(self.upload_payload, output))
        return (await self._ask(lambda to: to.runs.ResolveTask, request)).task

    async def pause(self, run_id: str, reason: str = "") -> run_pb2.Run:
        """Hold a run: attempts that are out go on, nothing else begins. Raises `RunNotFound`, `RunEnded`."""
        request = run_service_pb2.PauseRunRequest(run_id=run_id, reason=reason)
        return (await self._ask(lambda to: to.runs.PauseRun, request)).run

    async def resume(self, run_id: str, reason: str = "") -> run_pb2.Run:
        """Let a paused run go on. Raises `RunNotFound`, `RunEnded`."""
        request = run_service_pb2.ResumeRunRequest(run_id=run_id, reason=reason)
        return (await self._ask(lambda to: to.runs.ResumeRun, request)).run

    async def cancel_task(
        self, run_id: str, task_id: str, member: int = 0, *, dependents: bool = False, reason: str = ""
    ) -> run_pb2.Task:
        """End a task of a run, and with `dependents` all that need it. Raises `TaskNotFound`, `RunEnded`."""
        request = run_service_pb2.CancelTaskRequest(
            run_id=run_id,
            key=run_pb2.TaskKey(task_id=task_id, member=member),
            dependents=dependents,
            reason=reason,
        )
        return (await self._ask(lambda to: to.runs.CancelTask, request)).task

    async def retry(
        self, run_id: str, task_id: str, member: int = 0, *, end_time: Timestamp | None = None, reason: str = ""
    ) -> run_pb2.Task:
        """Take up a failed task of a run that has not ended, and with it what was skipped because of it.

        `end_time` is that of the task as the caller saw it; by default it is looked up first, so that a call which has
        to be repeated does not retry twice. Raises `TaskNotFound`, `TaskStateConflict`, `RunEnded`.
        """
        key = run_pb2.TaskKey(task_id=task_id, member=member)
        if end_time is None:
            seen = run_service_pb2.GetTaskRequest(run_id=run_id, key=key)
            task = (await self._ask(lambda to: to.runs.GetTask, seen)).task
            end_time = task.end_time if task.HasField("end_time") else None
        request = run_service_pb2.RetryTaskRequest(run_id=run_id, key=key, expected_end_time=end_time, reason=reason)
        return (await self._ask(lambda to: to.runs.RetryTask, request)).task
