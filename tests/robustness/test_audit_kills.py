"""kill -9 of the orchestrator at random moments under load: its audit chains are whole, and hold all it has answered.

ANTIPHON_SEED=N runs one seed of one's own.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from datetime import timedelta

import grpc
import pytest
from antiphon import AntiphonError, Client, Graph, Retry, Unavailable, verify_audit
from antiphon.v1.audit_pb2 import AuditRecord, RunDigest
from cryptography import x509

from tests.harness import Mesh, eventually
from tests.harness.joining import join, new_token

SEEDS = [int(os.environ["ANTIPHON_SEED"])] if "ANTIPHON_SEED" in os.environ else [1, 2]
KILLS = 4
PATIENCE = timedelta(seconds=60)
RULE = Retry(["LOST", "TRANSIENT"], max_attempts=50, backoff=timedelta(milliseconds=20))


@dataclass
class Answers:
    """What the orchestrator has said."""

    submitted: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)
    """Serial numbers of certificates."""


def graph() -> Graph:
    made = Graph("steps")
    made.task("first", "work.echo@1", input=1, retry=[RULE])
    made.task("second", "work.echo@1", input=2, needs=["first"], retry=[RULE])
    return made


async def submit(client: Client, answers: Answers, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            answers.submitted.add((await client.submit(graph(), timeout=PATIENCE)).run_id)
        except Unavailable:
            await asyncio.sleep(0.01)  # it was killed, and has answered nothing


async def submit_and_wait(client: Client, answers: Answers, stop: asyncio.Event) -> None:
    while not stop.is_set():
        answers.ended.add((await client.submit(graph(), wait=True, timeout=PATIENCE)).run_id)


async def stream(client: Client, answers: Answers, stop: asyncio.Event) -> None:
    async with client.submitter() as submitter:
        while not stop.is_set():
            batch = [await submitter.submit(graph(), wait=True) for _ in range(20)]
            answers.ended.update([(await answer).run_id for answer in batch])


async def keep_joining(mesh: Mesh, answers: Answers, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            answer = await join(mesh, await new_token(mesh))
        except (AntiphonError, grpc.aio.AioRpcError):
            await asyncio.sleep(0.01)  # it was killed; a token whose answer is lost is lost
            continue
        leaf = x509.load_pem_x509_certificate(answer.certificate.chain.encode())
        answers.joined.add(f"{leaf.serial_number:x}")


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_chains_are_whole_and_hold_whatever_was_answered(seed: int) -> None:
    print(f"ANTIPHON_SEED={seed}")
    dice, answers, stop = random.Random(seed), Answers(), asyncio.Event()
    with Mesh() as mesh:
        try:
            mesh.sidecar(concurrency=8)
            async with mesh.client(timeout=timedelta(seconds=30)) as client, mesh.operator() as operator:
                await mesh.attached(client)
                async with asyncio.timeout(PATIENCE.total_seconds()), asyncio.TaskGroup() as group:
                    for work in (submit, submit, submit_and_wait, stream):
                        group.create_task(work(client, answers, stop))
                    group.create_task(keep_joining(mesh, answers, stop))
                    for _ in range(KILLS):
                        await asyncio.sleep(dice.uniform(0.1, 1.0))
                        mesh.orchestrator.kill9()
                        await asyncio.to_thread(mesh.orchestrator.start)
                    await eventually(lambda: answers.joined)
                    stop.set()
                for run_id in answers.submitted:
                    answers.ended.add((await client.wait(run_id, timeout=PATIENCE)).run_id)
                mesh.orchestrator.restart()
                records = await verified(operator)
                await compare_runs(operator, records)
        finally:
            mesh.show()
        assert "audit_chain_broken" not in mesh.orchestrator.said()
    print(f"{len(records)} records, {len(answers.ended)} runs, {len(answers.joined)} joins")
    by_action = {
        action: {one.resource.rpartition("/")[2] for one in records if one.action == action}
        for action in ("submit", "end")
    }
    assert answers.submitted | answers.ended <= by_action["submit"]
    assert answers.ended <= by_action["end"]
    assert answers.joined <= {one.details["serial"] for one in records if one.action == "join"}
    of_runs = [(one.action, one.resource) for one in records if one.action in ("submit", "end")]
    assert len(of_runs) == len(set(of_runs)), "a run was submitted or has ended twice"


async def verified(operator: Client) -> list[AuditRecord]:
    """All records, found whole."""
    found: list[AuditRecord] = []
    for head in (await operator.get_audit_checkpoint()).heads:
        records = [one async for one in operator.list_audit_records(head.chain, complete=True, page_size=500)]
        assert verify_audit([one for one in records if one.seq <= head.last_seq], head) == []
        found += records
    return found


async def compare_runs(operator: Client, records: list[AuditRecord]) -> None:
    """What is in the archive is what was recorded, once it is all there."""
    ends = [one for one in records if one.action == "end"]

    async def same() -> bool:
        for start in range(0, len(ends), 100):
            part = ends[start : start + 100]
            asked = []
            for one in part:
                first, _, last = one.details["events"].partition("-")
                run_id = one.resource.rpartition("/")[2]
                asked.append(RunDigest(run_id=run_id, first_event_seq=int(first), last_event_seq=int(last)))
            if [one.digest for one in await operator.digest_runs(asked)] != [one.details["digest"] for one in part]:
                return False
        return True

    await eventually(same)
