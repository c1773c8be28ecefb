"""What was done and refused is on record, proven, per tenant; and whatever is done to the files is found."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from antiphon import (
    AccessDenied,
    AuditChainNotFound,
    AuditRecordNotFound,
    Client,
    Graph,
    PolicyDenied,
    Tampering,
    verify_audit,
    verify_audit_proof,
)
from antiphon.store.v1 import journal_pb2, records_pb2
from antiphon.v1 import run_pb2
from antiphon.v1.audit_pb2 import AuditOutcome, AuditRecord
from antiphon_certs import CertificateFiles, Kind, Profile

from tests.harness import Mesh, eventually
from tests.harness.authority import DOMAIN, NAMESPACE
from tests.harness.joining import join, new_token

pytest_plugins = ("tests.harness.fixtures",)

DONE, DENIED = AuditOutcome.AUDIT_OUTCOME_DONE, AuditOutcome.AUDIT_OUTCOME_DENIED
ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


def one_task(capability: str = "work.echo@1", input: Any = 1) -> Graph:
    graph = Graph("one")
    graph.task("t", capability, input=input)
    return graph


async def records_of(operator: Client, **wanted: Any) -> list[AuditRecord]:
    """Records of all chains, each in its order."""
    heads = (await operator.get_audit_checkpoint()).heads
    return [record for head in heads async for record in operator.list_audit_records(head.chain, **wanted)]


async def whole(operator: Client) -> None:
    """Every chain is what was written."""
    for head in (await operator.get_audit_checkpoint()).heads:
        records = [record async for record in operator.list_audit_records(head.chain, complete=True)]
        assert verify_audit([one for one in records if one.seq <= head.last_seq], head) == []


async def test_every_act_of_a_run_and_of_an_operator_is_on_record(client: Client, mesh: Mesh) -> None:
    run = await client.submit(one_task(), request_id="on-record", wait=True)
    slow = await client.submit(one_task("work.sleep@1", 30))
    await client.cancel(slow.run_id, "no longer needed")
    async with mesh.operator() as operator:
        await operator.suspend_agent("worker")
        await operator.resume_agent("worker")
        await client.register_graph(kept())
        token = await new_token(mesh, "recorded")
        await join(mesh, token)
        found = await records_of(operator)
        await whole(operator)
    of_run = [one for one in found if one.resource == f"Run::{NAMESPACE}/{run.run_id}"]
    assert [(one.action, AuditOutcome.Name(one.outcome)[14:]) for one in of_run] == [
        ("submit", "DONE"),
        ("end", "SUCCEEDED"),
    ]
    assert of_run[0].details["request_id"] == "on-record" and of_run[0].decision_id and of_run[0].policy_epoch == 1
    cancelled = [one for one in found if one.resource.endswith(slow.run_id)]
    assert [one.action for one in cancelled] == ["submit", "cancel", "end"]
    assert cancelled[1].reason == "no longer needed" and cancelled[1].principal.endswith("/client/alice")
    acts = {(one.action, one.resource) for one in found if one.outcome == DONE}
    assert acts >= {
        ("register", f"Agent::{NAMESPACE}/worker"),
        ("suspend", f"Agent::{NAMESPACE}/worker"),
        ("resume", f"Agent::{NAMESPACE}/worker"),
        ("register_graph", f"Graph::{NAMESPACE}/kept@1.0.0"),
        ("create_token", f"Identity::{NAMESPACE}/sidecar/recorded"),
        ("join", f"Identity::{NAMESPACE}/sidecar/recorded"),
    }


def kept() -> Graph:
    graph = Graph("kept", version="1.0.0")
    graph.task("t", "work.echo@1", input=1)
    return graph


async def test_a_refused_call_is_on_record_and_repetitions_are_counted(client: Client, mesh: Mesh) -> None:
    async with mesh.operator() as operator:
        for _ in range(20):
            with pytest.raises(PolicyDenied):
                await operator.upload_payload(b"1")

        async def counted() -> list[AuditRecord] | None:
            found = await records_of(operator, action="write_payload", outcome=DENIED)
            total = sum(int(one.details.get("repeated", "1")) for one in found)
            return found if total == 20 else None

        found = await eventually(counted)
    assert len(found) < 20
    assert all(one.reason.startswith("denied") and one.principal.endswith("/operator/olga") for one in found)


async def test_another_tenant_sees_hidden_records_which_it_can_verify_and_system_sees_all(
    client: Client, mesh: Mesh
) -> None:
    await client.submit(one_task(), wait=True)
    async with mesh.client("otto", kind=Kind.OPERATOR, namespace="team-b") as other:
        assert await records_of(other) == []
        assert {one.hidden for one in await records_of(other, complete=True)} == {True}
        await whole(other)
    async with mesh.client("root", kind=Kind.OPERATOR, namespace="system") as root:
        found = await records_of(root)
        assert {one.namespace for one in found} >= {NAMESPACE, "system"}
        assert await records_of(root, namespace=NAMESPACE) == [one for one in found if one.namespace == NAMESPACE]
    with pytest.raises(AccessDenied):
        await client.get_audit_checkpoint()


async def test_pages_give_each_record_once_both_ways(client: Client, mesh: Mesh) -> None:
    async with client.submitter() as submitter:
        await asyncio.gather(*[await submitter.submit(one_task(), wait=True) for _ in range(30)])
    async with mesh.operator() as operator:
        for head in (await operator.get_audit_checkpoint()).heads:
            found = [one.seq async for one in operator.list_audit_records(head.chain, complete=True, page_size=7)]
            assert found[: head.last_seq] == list(range(1, head.last_seq + 1))
            back = operator.list_audit_records(head.chain, complete=True, page_size=7, newest_first=True)
            seqs = [one.seq async for one in back]
            assert seqs == sorted(seqs, reverse=True) and len(seqs) >= head.last_seq
        with pytest.raises(AuditChainNotFound):
            await records_of_chain(operator, "shard-9999")


async def records_of_chain(operator: Client, chain: str) -> list[AuditRecord]:
    return [one async for one in operator.list_audit_records(chain)]


async def test_a_proof_leads_from_a_record_to_the_checkpoint(client: Client, mesh: Mesh) -> None:
    run = await client.submit(one_task(), wait=True)
    async with mesh.operator() as operator:
        (record, _) = [one for one in await records_of(operator) if one.resource.endswith(run.run_id)]
        checkpoint = await operator.get_audit_checkpoint()
        (head,) = [one for one in checkpoint.heads if one.chain == record.chain]
        proof = await operator.get_audit_proof(record.chain, record.seq, head.last_seq)
        assert proof.record == record and proof.last_seq == head.last_seq
        assert verify_audit_proof(proof) == head.last_hash
        proof.record.principal = "somebody else"
        with pytest.raises(ValueError, match="not what its hash stands for"):
            verify_audit_proof(proof)
        with pytest.raises(AuditRecordNotFound):
            await operator.get_audit_proof(record.chain, head.last_seq + 1000)
    async with mesh.client("otto", kind=Kind.OPERATOR, namespace="team-b") as other:
        proof = await other.get_audit_proof(record.chain, record.seq, head.last_seq)
        assert proof.record.hidden and not proof.record.principal and verify_audit_proof(proof) == head.last_hash


class Books:
    """A mesh with some records, stopped, its command, and its files open to whoever wants to change them."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.home = mesh.folder / "home"
        self.run_id = ""

    async def fill(self) -> None:
        self.mesh.sidecar()
        async with self.mesh.client() as client, self.mesh.operator() as operator:
            await self.mesh.attached(client)
            for _ in range(9):  # so that one of four shards gets three
                self.run_id = (await client.submit(one_task(), wait=True)).run_id
                await operator.get_audit_checkpoint()  # whoever reads has what waits written: a page for each run
        self.sign_in()

    def sign_in(self) -> None:
        """Gives the command a profile."""
        folder = self.home / "profiles" / "operator"
        CertificateFiles(folder / "credential").store(*self.mesh.ca.issue(Kind.OPERATOR, "olga"))
        address = (self.mesh.orchestrator.address,)
        Profile(folder, address, address, DOMAIN, NAMESPACE).save()

    def antiphon(self, *words: str) -> tuple[int, str]:
        """Exit code and output of the command, as an operator."""
        environ = {**os.environ, "ANTIPHON_HOME": str(self.home), "ANTIPHON_PROFILE": "operator"}
        done = subprocess.run([ANTIPHON, *words], env=environ, capture_output=True, text=True, timeout=90)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    def findings(self, *words: str) -> list[tuple[str, str, int]]:
        code, said = self.antiphon("audit", "verify", "--json", *words)
        report = json.loads(said)
        assert code == (1 if report["findings"] else 0)
        return [(one["kind"], one["chain"], one["seq"]) for one in report["findings"]]

    def change(self, file: str, work: Callable[[sqlite3.Connection], None]) -> None:
        """Stops the orchestrator, lets `work` at a file, and starts it again."""
        self._stop()
        connection = sqlite3.connect(self.mesh.orchestrator.data / file)
        try:
            with connection:
                work(connection)
        finally:
            connection.close()
        self.mesh.orchestrator.start()

    def _stop(self) -> None:
        """Stops it when its log is trimmed: what is there still would be written anew by the next start."""
        for _ in range(20):
            assert self.mesh.orchestrator.term() == 0
            with closing(sqlite3.connect(self.mesh.orchestrator.data / "store.db")) as connection:
                log = b"log/", b"log0"
                (left,) = connection.execute("SELECT count(*) FROM kv WHERE key >= ? AND key < ?", log).fetchone()
            if not left:
                return
            self.mesh.orchestrator.start()
            assert self.findings() == []
        raise AssertionError("the log is never trimmed")


@pytest.fixture
async def books(bare: Mesh) -> AsyncIterator[Books]:
    made = Books(bare)
    await made.fill()
    yield made


def longest_chain(connection: sqlite3.Connection) -> tuple[str, list[bytes]]:
    """The shard's chain with the most pages, and the keys of them."""
    query = "SELECT key FROM kv WHERE key > ? AND key < ? ORDER BY key"
    keys = [key for (key,) in connection.execute(query, (b"audit/shard-", b"audit/shard-~"))]
    chains: dict[str, list[bytes]] = {}
    for key in keys:
        chains.setdefault(bytes(key).decode().split("/")[1], []).append(key)
    return max(chains.items(), key=lambda item: len(item[1]))


def first_of(key: bytes) -> int:
    return int(bytes(key).decode().rpartition("/")[2], 16)


def edit(connection: sqlite3.Connection) -> tuple[str, str, int]:
    chain, keys = longest_chain(connection)
    (value,) = connection.execute("SELECT value FROM kv WHERE key = ?", (keys[1],)).fetchone()
    page = records_pb2.AuditPage.FromString(value)
    page.records[0] = page.records[0].replace(b"client/alice", b"client/malet")
    connection.execute("UPDATE kv SET value = ? WHERE key = ?", (page.SerializeToString(), keys[1]))
    return Tampering.EDITED, chain, first_of(keys[1])


def delete(connection: sqlite3.Connection) -> tuple[str, str, int]:
    chain, keys = longest_chain(connection)
    connection.execute("DELETE FROM kv WHERE key = ?", (keys[1],))
    return Tampering.DELETED, chain, first_of(keys[1])


def truncate(connection: sqlite3.Connection) -> tuple[str, str, int]:
    chain, keys = longest_chain(connection)
    connection.execute("DELETE FROM kv WHERE key = ?", (keys[-1],))
    return Tampering.TRUNCATED, chain, first_of(keys[-1])


def garble(connection: sqlite3.Connection) -> tuple[str, str, int]:
    chain, keys = longest_chain(connection)
    connection.execute("UPDATE kv SET value = x'ff' WHERE key = ?", (keys[1],))
    return Tampering.DELETED, chain, first_of(keys[1])


@pytest.mark.parametrize("tamper", [edit, delete, truncate, garble])
async def test_tampering_with_the_store_is_named_and_an_alarm_at_the_next_start(
    tamper: Callable[[sqlite3.Connection], tuple[str, str, int]], books: Books
) -> None:
    assert books.findings() == []
    done: list[tuple[str, str, int]] = []
    books.change("store.db", lambda connection: done.append(tamper(connection)))
    assert done[0] in books.findings()
    assert "audit_chain_broken" in books.mesh.orchestrator.said()
    async with books.mesh.client() as client:  # it serves all the same
        assert (await client.get_run(books.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_history_that_was_changed_in_the_archive_is_named(books: Books) -> None:
    def change(connection: sqlite3.Connection) -> None:
        row = connection.execute("SELECT rowid, data FROM run_events WHERE run_id = ?", (books.run_id,)).fetchone()
        segment = journal_pb2.LogSegment.FromString(row[1])
        record = journal_pb2.Record.FromString(segment.records[-1])
        record.time += 1
        segment.records[-1] = record.SerializeToString()
        connection.execute("UPDATE run_events SET data = ? WHERE rowid = ?", (segment.SerializeToString(), row[0]))

    assert books.findings() == []
    books.change("archive.db", change)
    assert [kind for kind, _, _ in books.findings()] == [Tampering.RUN_CHANGED]
    assert books.findings("--no-runs") == []


async def test_a_store_put_back_to_an_earlier_state_contradicts_a_checkpoint_kept_elsewhere(books: Books) -> None:
    kept = books.mesh.folder / "kept.json"
    mesh = books.mesh

    def forget(connection: sqlite3.Connection) -> None:
        """Takes a chain's last page away, and the head back: what is left is whole in itself."""
        chain, keys = longest_chain(connection)
        (value,) = connection.execute("SELECT value FROM kv WHERE key = ?", (keys[-2],)).fetchone()
        records = records_pb2.AuditPage.FromString(value).records
        head = records_pb2.AuditHead(last_seq=first_of(keys[-1]) - 1, last_hash=records[-1][:32])
        connection.execute("DELETE FROM kv WHERE key = ?", (keys[-1],))
        name = f"audit-head/{chain}".encode()
        connection.execute("UPDATE kv SET value = ? WHERE key = ?", (head.SerializeToString(), name))

    assert books.findings("--save-checkpoint", str(kept)) == []
    books.change("store.db", forget)
    assert books.findings() == []
    assert [kind for kind, _, _ in books.findings("--checkpoint", str(kept))] == [Tampering.TRUNCATED]
    assert mesh.orchestrator.alive


async def test_an_export_is_verified_without_the_service_and_a_forged_checkpoint_is_none(books: Books) -> None:
    code, text = books.antiphon("audit", "export")
    lines = [line for line in text.splitlines() if line.startswith("{")]
    export = books.mesh.folder / "export.jsonl"
    export.write_text("\n".join(lines) + "\n")
    assert code == 0
    books.mesh.orchestrator.kill9()
    assert books.findings(str(export)) == []
    record = json.loads(lines[2])["record"]
    record["action"] = "nothing"
    export.write_text("\n".join([*lines[:2], json.dumps({"record": record}), *lines[3:]]))
    assert books.findings(str(export)) == [(Tampering.EDITED, record["chain"], int(record["seq"]))]
    checkpoint = json.loads(lines[0])
    checkpoint["checkpoint"]["heads"].pop()
    export.write_text("\n".join([json.dumps(checkpoint), *lines[1:]]))
    assert (Tampering.FORGED, "checkpoint", 0) in books.findings(str(export))
    export.write_text("nothing\n")
    assert books.antiphon("audit", "verify", str(export))[0] == 2


async def test_an_export_of_which_age_took_the_beginning_meanwhile_says_so_by_its_second_checkpoint(
    books: Books,
) -> None:
    _, before = books.antiphon("audit", "export")
    trimmed: list[tuple[str, int]] = []

    def age(connection: sqlite3.Connection) -> None:
        chain, keys = longest_chain(connection)
        assert len(keys) > 1
        rows = {key: connection.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()[0] for key in keys}
        (head,) = connection.execute("SELECT value FROM kv WHERE key = ?", (f"audit-head/{chain}".encode(),)).fetchone()
        changed = records_pb2.AuditHead.FromString(head)
        changed.trimmed_seq = first_of(keys[1]) - 1
        changed.trimmed_hash = records_pb2.AuditPage.FromString(rows[keys[0]]).records[-1][:32]
        connection.execute("DELETE FROM kv WHERE key = ?", (keys[0],))
        name = f"audit-head/{chain}".encode()
        connection.execute("UPDATE kv SET value = ? WHERE key = ?", (changed.SerializeToString(), name))
        trimmed.append((chain, changed.trimmed_seq))

    books.change("store.db", age)
    ((chain, last),) = trimmed
    _, after = books.antiphon("audit", "export")
    lines = [json.loads(line) for line in before.splitlines() if line.startswith("{")]
    later = json.loads(after.splitlines()[0])
    gone = [
        line for line in lines if line.get("record", {}).get("chain") == chain and int(line["record"]["seq"]) <= last
    ]
    left = [line for line in lines if line not in gone]
    (begins, *_) = [place for place, line in enumerate(left) if line.get("record", {}).get("chain") == chain]
    export = books.mesh.folder / "export.jsonl"

    def findings(*exported: dict[str, Any]) -> list[tuple[str, str, int]]:
        export.write_text("".join(json.dumps(line) + "\n" for line in exported))
        return books.findings(str(export))

    assert gone and findings(*lines) == []
    assert [(kind, name) for kind, name, _ in findings(*left)] == [(Tampering.DELETED, chain)]
    assert findings(*left, later) == [(Tampering.DELETED, chain, 1)]
    assert findings(*left[:begins], later, *left[begins:]) == []
    _, said = books.antiphon("audit", "verify", str(export))
    assert f"{chain}: {last} records, 1 to {last}, were removed by age between 20" in said
    assert f"whole but for {last} records removed by age: " in said
    later["checkpoint"]["signature"] = lines[0]["checkpoint"]["signature"]
    found = findings(*left[:begins], later, *left[begins:])
    assert [kind for kind, _, _ in found] == [Tampering.FORGED, Tampering.DELETED]
    export.write_text("\n".join(map(json.dumps, [*lines, *lines])))
    assert books.antiphon("audit", "verify", str(export))[0] == 2


@pytest.fixture
def long() -> Iterator[Mesh]:
    """A mesh of one shard, whose chain grows long."""
    with Mesh("--shards", "1") as mesh:
        mesh.sidecar(concurrency=100)
        yield mesh
        mesh.show()


def archived_pages(mesh: Mesh) -> int:
    with closing(sqlite3.connect(mesh.orchestrator.data / "archive.db")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM audit_pages").fetchone()
    return int(count)


async def test_old_records_are_in_the_archive_and_are_listed_proven_and_verified_with_the_new_ones(long: Mesh) -> None:
    books = Books(long)
    async with long.client() as client, long.operator() as operator:
        await long.attached(client)
        async with client.submitter() as submitter:
            await asyncio.gather(*[await submitter.submit(one_task(), wait=True) for _ in range(400)])
        await operator.get_audit_checkpoint()  # whoever reads has what waits written
        await eventually(lambda: archived_pages(long) > 0, limit=30)
        await whole(operator)
        (head,) = [one for one in (await operator.get_audit_checkpoint()).heads if one.chain == "shard-0000"]
        assert head.first_seq == 1 and head.last_seq == 800
        (first,) = [one async for one in operator.list_audit_records(head.chain, page_size=500) if one.seq == 1]
        back = [one.seq async for one in operator.list_audit_records(head.chain, newest_first=True)]
        assert back == list(range(800, 0, -1))
        proof = await operator.get_audit_proof(head.chain, 1, head.last_seq)
        assert proof.record == first and verify_audit_proof(proof) == head.last_hash
    books.sign_in()
    assert books.findings("--no-runs") == []
    books.change("archive.db", lambda archive: archive.execute("DELETE FROM audit_pages WHERE first_seq = 1") and None)
    assert (Tampering.DELETED, "shard-0000", 1) in books.findings("--no-runs")
    assert "audit_chain_broken" not in long.orchestrator.said()
