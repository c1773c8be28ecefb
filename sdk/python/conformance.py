"""The conformance executor of the Python SDK: `conformance.py agent CONCURRENCY` or `conformance.py client`.

What it must do is said in protos/antiphon/conformance/v1/executor.proto and in sdk/README.md. It uses what users of the
SDK have, and nothing besides.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, NoReturn

from antiphon import (
    Agent,
    AntiphonError,
    BudgetExceeded,
    CallFailed,
    Client,
    Credentials,
    Graph,
    InvalidInput,
    InvalidOutput,
    Payload,
    PermanentFailure,
    Subgraph,
    TaskCancelled,
    TaskContext,
    TransientFailure,
    entry_value,
    output_of,
    ref,
)
from antiphon.conformance.v1 import executor_pb2 as pb
from antiphon.v1 import audit_pb2, failure_pb2, policy_pb2, run_pb2
from google.protobuf import json_format

_FAILURES = {
    failure_pb2.FAILURE_KIND_TRANSIENT: TransientFailure,
    failure_pb2.FAILURE_KIND_PERMANENT: PermanentFailure,
    failure_pb2.FAILURE_KIND_INVALID_INPUT: InvalidInput,
    failure_pb2.FAILURE_KIND_INVALID_OUTPUT: InvalidOutput,
    failure_pb2.FAILURE_KIND_BUDGET: BudgetExceeded,
    failure_pb2.FAILURE_KIND_CANCELLED: TaskCancelled,
}


# The agent


@dataclass
class Package:
    name: str
    files: int = 0


@dataclass
class Verdict:
    name: str
    fine: bool


def agent(concurrency: int) -> Agent:
    """The agent that cases are played with."""
    made = Agent("conformance", concurrency=concurrency)
    counts: Counter[str] = Counter()

    @made.capability("conformance.script@1", effect="pure", idempotent=True)
    async def script(value: Any, task: TaskContext) -> Any:
        result = None
        for step in json_format.ParseDict(value, pb.Script(), ignore_unknown_fields=True).steps:
            match step.WhichOneof("kind"):
                case "output_json":
                    result = json.loads(step.output_json)
                case "large":
                    result = "x" * step.large
                case "describe":
                    result = _described(task)
                case "count":
                    counts[step.count] += 1
                    result = counts[step.count]
                case "progress":
                    await task.progress(step.progress.fraction, step.progress.message)
                case "emit_text":
                    task.emit(step.emit_text)
                case "emit_json":
                    task.emit(json.loads(step.emit_json))
                case "subgraph":
                    result = _apart(step.subgraph)
                case "call":
                    result = await _call(task, step.call)
                case "fail":
                    _fail(step.fail)
                case "crash":
                    raise RuntimeError(step.crash)
                case "wait_cancelled":
                    await asyncio.Event().wait()
        return result

    @made.capability("conformance.judge@1", effect="pure")
    async def judge(package: Package) -> Verdict:
        return Verdict(package.name, package.files > 0)

    @made.capability("conformance.reverse@1")
    async def reverse(payload: Payload) -> Payload:
        return Payload(inline=payload.inline[::-1], media_type=payload.media_type)

    return made


def _apart(how: pb.ScriptSubgraph) -> Subgraph:
    graph = Graph("apart", description="x" * how.description)
    graph.task("part", how.capability, input=ref("input"))
    return Subgraph(graph, json.loads(how.input_json or "null"))


def _described(task: TaskContext) -> dict[str, Any]:
    return {
        "attempt_id": task.attempt_id,
        "run_id": task.run_id,
        "number": task.number,
        "idempotency_key": task.idempotency_key,
        "capability": task.capability,
        "namespace": task.namespace,
        "principal": task.principal,
        "delegation": list(task.delegation),
        "traceparent": task.traceparent,
        "deadline": task.deadline is not None,
    }


async def _call(task: TaskContext, call: pb.ScriptCall) -> Any:
    def emit(piece: run_pb2.PartialOutput) -> None:
        task.emit(piece.text)

    shown = emit if call.emitted else None
    given = json.loads(call.input_json or "null")
    try:
        return await task.call(call.capability, given, call_id=call.call_id or None, on_partial=shown)
    except CallFailed as error:
        if not call.caught:
            raise
        return {"kind": failure_pb2.FailureKind.Name(error.failure.kind), "code": error.failure.code}


def _fail(failure: failure_pb2.Failure) -> NoReturn:
    kind = _FAILURES[failure.kind]
    if kind is TransientFailure:
        raise TransientFailure(failure.message, failure.code)
    raise kind(failure.message, failure.code, retryable=failure.retryable, field=failure.field)


# The client


async def converse() -> None:
    """Answer each line of standard input with one on standard output."""
    client: Client | None = None
    settings = pb.ClientSettings()
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json_format.Parse(line, pb.ExecutorRequest())
            response = pb.ExecutorResponse(id=request.id)
            try:
                if client is None or request.client != settings:
                    if client is not None:
                        await client.__aexit__(None, None, None)
                    settings = request.client
                    client = await _connect(settings).__aenter__()
                response.answer.CopyFrom(await _answer(client, request.call))
            except AntiphonError as error:
                response.error.CopyFrom(_told(error))
            except Exception as error:
                response.broken = f"{type(error).__name__}: {error}"
            print(json_format.MessageToJson(response, indent=None, preserving_proto_field_name=True), flush=True)
    finally:
        if client is not None:
            await client.__aexit__(None, None, None)


def _connect(settings: pb.ClientSettings) -> Client:
    credentials = Credentials.from_files(settings.certificate_file, settings.key_file, settings.bundle_file)
    timeout = settings.timeout.ToTimedelta() if settings.HasField("timeout") else timedelta(seconds=10)
    return Client.connect(address=list(settings.addresses), credentials=credentials, timeout=timeout)


async def _answer(client: Client, call: pb.ClientCall) -> pb.ClientAnswer:
    match call.WhichOneof("kind"):
        case "submit":
            one = call.submit
            value = json.loads(one.input_json) if one.input_json else None
            return _run(await client.submit(one.graph, value, wait=one.wait, request_id=one.request_id))
        case "submit_many":
            return await _submit_many(client, call.submit_many)
        case "get_run":
            return _run(await client.get_run(call.get_run.run_id))
        case "wait":
            return _run(await client.wait(call.wait.run_id))
        case "watch":
            return pb.ClientAnswer(event_seqs=[event.event_seq async for event in client.watch(call.watch.run_id)])
        case "watch_partials":
            events = [event async for event in client.watch(call.watch_partials.run_id, include_partials=True)]
            pieces = [event.partial for event in events if event.HasField("partial")]
            return pb.ClientAnswer(
                event_seqs=[event.event_seq for event in events if event.event_seq],
                names=[piece.withheld or piece.text or piece.json.decode() for piece in pieces],
            )
        case "signal":
            asked = call.signal
            data = json.loads(asked.data_json) if asked.data_json else None
            told = await client.signal(asked.run_id, asked.signal, data, request_id=asked.request_id or None)
            return pb.ClientAnswer(names=[told.key.task_id])
        case "pause":
            return _run(await client.pause(call.pause.run_id))
        case "resume":
            return _run(await client.resume(call.resume.run_id))
        case "cancel_task":
            task, more = call.cancel_task, {"dependents": call.cancel_task.dependents}
            return _task(await client.cancel_task(task.run_id, task.task_id, task.member, reason=task.reason, **more))
        case "retry_task":
            task = call.retry_task
            return _task(await client.retry(task.run_id, task.task_id, task.member, reason=task.reason))
        case "resolve_task":
            task, output = call.resolve_task, json.loads(call.resolve_task.output_json or "null")
            return _task(
                await client.resolve(task.run_id, task.task_id, task.member, output=output, reason=task.reason)
            )
        case "fail_task":
            task = call.fail_task
            return _task(
                await client.resolve(task.run_id, task.task_id, task.member, failure=task.failure, reason=task.reason)
            )
        case "cancel":
            return _run(await client.cancel(call.cancel.run_id))
        case "list_runs":
            runs = client.list_runs(**_filter(call.list_runs))
            return pb.ClientAnswer(run_ids=[run.run_id async for run in runs])
        case "list_agents":
            return pb.ClientAnswer(names=[found.name async for found in client.list_agents()])
        case "get_entry":
            entry = await client.get_entry(call.get_entry.key)
            return pb.ClientAnswer(output_json=json.dumps(entry_value(entry)), revision=entry.revision)
        case "put_entry":
            put = call.put_entry
            expected = put.expected_revision if put.HasField("expected_revision") else None
            written = await client.put_entry(put.key, json.loads(put.value_json), expected_revision=expected)
            return pb.ClientAnswer(revision=written.revision)
    return await _operated(client, call)


def _filter(asked: pb.ListRunsCall) -> dict[str, Any]:
    return {
        "states": [run_pb2.RunState.Value(state) for state in asked.states],
        "graph": asked.graph,
        "labels": dict(asked.labels),
        "created_after": asked.created_after.ToDatetime(UTC) if asked.HasField("created_after") else None,
        "created_before": asked.created_before.ToDatetime(UTC) if asked.HasField("created_before") else None,
        "parent": asked.parent,
        "failure": asked.failure,
        "waiting_for_person": asked.waiting_for_person,
        "waiting_for_signal": asked.waiting_for_signal,
        "page_size": asked.page_size,
    }


async def _operated(client: Client, call: pb.ClientCall) -> pb.ClientAnswer:
    """What operators do."""
    match call.WhichOneof("kind"):
        case "revoke":
            asked = call.revoke
            await client.revoke_certificates(asked.kind, asked.name, serial=asked.serial, cause=asked.cause)
            return pb.ClientAnswer()
        case "list_revocations":
            revoked = [one async for one in client.list_revocations()]
            return pb.ClientAnswer(names=[one.serial or f"{one.identity.kind}/{one.identity.name}" for one in revoked])
        case "activate_policies":
            new = call.activate_policies
            return _policy(await client.activate_policies(new.files, expected_epoch=new.expected_epoch))
        case "roll_back_policies":
            back = call.roll_back_policies
            return _policy(await client.roll_back_policies(back.epoch, expected_epoch=back.expected_epoch))
        case "get_policy":
            return _policy(await client.get_policy(call.get_policy.epoch))
        case "list_policies":
            return pb.ClientAnswer(event_seqs=[one.epoch async for one in client.list_policies()])
        case "list_audit_records":
            chain = call.list_audit_records
            outcome = audit_pb2.AUDIT_OUTCOME_DENIED if chain.denied else audit_pb2.AUDIT_OUTCOME_UNSPECIFIED
            start = chain.start_time.ToDatetime(UTC) if chain.HasField("start_time") else None
            listed = client.list_audit_records(
                chain.chain, newest_first=chain.newest_first, action=chain.action, outcome=outcome, start_time=start
            )
            records = [record async for record in listed]
            return pb.ClientAnswer(
                event_seqs=[record.seq for record in records], names=[record.action for record in records]
            )
        case "get_audit_checkpoint":
            checkpoint = await client.get_audit_checkpoint()
            return pb.ClientAnswer(names=[head.chain for head in checkpoint.heads])
    raise ValueError("this executor does not know the call")


def _policy(found: policy_pb2.PolicySet) -> pb.ClientAnswer:
    return pb.ClientAnswer(revision=found.epoch, names=[file.name for file in found.files])


async def _submit_many(client: Client, many: pb.SubmitManyCall) -> pb.ClientAnswer:
    async with client.submitter() as submitter:
        answers = [
            await submitter.submit(many.graph, wait=True, request_id=f"many-{number}")
            for number in range(1, many.count + 1)
        ]
        return pb.ClientAnswer(run_ids=[run.run_id for run in await asyncio.gather(*answers)])


def _run(run: run_pb2.Run) -> pb.ClientAnswer:
    answer = pb.ClientAnswer(run_id=run.run_id, state=run_pb2.RunState.Name(run.state))
    if run.state == run_pb2.RUN_STATE_SUCCEEDED:
        answer.output_json = json.dumps(output_of(run))
    return answer


def _task(task: run_pb2.Task) -> pb.ClientAnswer:
    answer = pb.ClientAnswer(state=run_pb2.TaskState.Name(task.state))
    if task.HasField("output"):
        answer.output_json = json.dumps(json.loads(task.output.inline or b"null"))
    return answer


def _told(error: AntiphonError) -> pb.ClientError:
    told = pb.ClientError(
        reason=error.reason,
        remedy=error.remedy or "",
        code=error.code.name,
        metadata=error.metadata,
        fields=[one.field for one in error.violations],
    )
    if error.retry_after is not None:
        told.retry_after.FromTimedelta(error.retry_after)
    return told


def main(arguments: list[str]) -> int:
    """Be what the arguments say."""
    match arguments:
        case ["agent", concurrency]:
            agent(int(concurrency)).run()
        case ["client"]:
            asyncio.run(converse())
        case _:
            print("usage: conformance.py agent CONCURRENCY | conformance.py client", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
