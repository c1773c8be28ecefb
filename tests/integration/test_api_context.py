"""ContextService over mutual TLS with a clock of our own: time, quotas, history, obligations, and who may call."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from antiphon.store.v1 import records_pb2
from antiphon.v1 import context_pb2, context_service_pb2_grpc
from antiphon.v1 import context_service_pb2 as api
from antiphon_certs import Authority, Kind
from antiphon_orchestrator.blobs import ObjectBlobs
from antiphon_orchestrator.context import Quota
from antiphon_orchestrator.policy import CedarPolicies, PolicyBundle, PolicyFile
from antiphon_orchestrator.store import Delete, Put, SqliteStore, Txn, keys
from api_harness import TIMEOUT, Running, details, reason_of, serving, status_of
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from tests.harness import eventually

Stub: Any = context_service_pb2_grpc.ContextServiceStub
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("ca") / "ca", "mesh.test")


class Team:
    """A server with shared context, its store, and what a client asks of it."""

    def __init__(self, running: Running, store: SqliteStore) -> None:
        self.running = running
        self.store = store
        self.stub = Stub(running.dial())

    @property
    def context(self) -> Any:
        return self.running.context

    async def put(self, key: str, value: bytes = b"1", *, stub: Any = None, **fields: Any) -> api.PutEntryResponse:
        request = api.PutEntryRequest(request_id=fields.pop("request_id", uuid.uuid4().hex), key=key, **fields)
        request.value.inline = value
        answer: api.PutEntryResponse = await (stub or self.stub).PutEntry(request, timeout=TIMEOUT)
        return answer

    async def get(self, key: str) -> context_pb2.Entry:
        return (await self.stub.GetEntry(api.GetEntryRequest(key=key), timeout=TIMEOUT)).entry

    async def delete(self, key: str, **fields: Any) -> int:
        request = api.DeleteEntryRequest(request_id=fields.pop("request_id", uuid.uuid4().hex), key=key, **fields)
        return int((await self.stub.DeleteEntry(request, timeout=TIMEOUT)).revision)

    async def keys(self, **fields: Any) -> list[str]:
        page = await self.stub.ListEntries(api.ListEntriesRequest(**fields), timeout=TIMEOUT)
        return [entry.key for entry in page.entries]

    async def acquire(self, name: str, seconds: int = 30, *, stub: Any = None, request_id: str = "") -> Any:
        request = api.AcquireClaimRequest(request_id=request_id or uuid.uuid4().hex, name=name)
        request.ttl.seconds = seconds
        return (await (stub or self.stub).AcquireClaim(request, timeout=TIMEOUT)).claim

    def advance(self, duration: timedelta) -> None:
        self.running.clock.advance(duration)


@asynccontextmanager
async def team(authority: Authority, folder: Path, **settings: Any) -> AsyncIterator[Team]:
    history = settings.pop("history_revisions", 10_000)
    async with (
        SqliteStore(folder / "store.db", history_revisions=history) as store,
        ObjectBlobs((folder / "blobs").as_uri()) as blobs,
        serving(authority, store=store, blobs=blobs, **settings) as running,
    ):
        yield Team(running, store)


@pytest.fixture
async def one(authority: Authority, tmp_path: Path) -> AsyncIterator[Team]:
    async with team(authority, tmp_path) as made:
        yield made


async def refused(call: Any, reason: str) -> dict[str, str]:
    """The metadata of the refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == reason
    return dict(details(status_of(caught.value), error_details_pb2.ErrorInfo)[0].metadata)


async def test_an_entry_is_gone_at_its_moment_and_collected_afterwards(one: Team) -> None:
    put = await one.put("brief", ttl=Duration(seconds=5))
    assert put.expire_time.seconds
    one.advance(5 * SECOND - timedelta(microseconds=1))
    assert (await one.get("brief")).revision == put.revision
    one.advance(timedelta(microseconds=1))
    await refused(one.get("brief"), "ENTRY_NOT_FOUND")
    assert await one.keys() == []
    key = keys.context("team-a", "namespace", "brief")
    assert (await one.store.range(key)).kvs, "not collected yet"
    await one.context.collect()
    assert not (await one.store.range(key)).kvs


async def test_an_expired_entry_has_revision_0_for_whoever_expects_one(one: Team) -> None:
    first = await one.put("again", ttl=Duration(seconds=1))
    one.advance(SECOND)
    metadata = await refused(one.put("again", expected_revision=first.revision), "ENTRY_CONFLICT")
    assert metadata["revision"] == "0"
    second = await one.put("again", expected_revision=0)
    await one.context.collect()
    entry = await one.get("again")
    assert entry.revision == second.revision, "what was written anew is not collected"
    assert entry.create_time == entry.update_time, "it came to be anew"


async def test_an_entry_that_is_overwritten_keeps_the_time_it_was_made(one: Team) -> None:
    await one.put("old")
    made = (await one.get("old")).create_time
    one.advance(SECOND)
    await one.put("old", b"2")
    entry = await one.get("old")
    assert entry.create_time == made and entry.update_time.seconds == made.seconds + 1


async def test_a_watch_tells_an_entry_that_has_expired_meanwhile_as_gone(one: Team) -> None:
    first = await one.put("brief", ttl=Duration(seconds=1))
    one.advance(SECOND)
    stream = one.stub.WatchEntries(api.WatchEntriesRequest(from_revision=first.revision))
    assert (await stream.read()).revision == first.revision - 1, "from where, at once"
    told = (await stream.read()).events
    assert [(event.deleted.key, event.deleted.revision) for event in told] == [("brief", first.revision)]
    stream.cancel()


async def test_a_watch_beyond_history_says_to_list_again(authority: Authority, tmp_path: Path) -> None:
    async with team(authority, tmp_path) as one:
        first = await one.put("a")
        last = await one.put("a", b"2")
        await one.store.compact(last.revision)
        stream = one.stub.WatchEntries(api.WatchEntriesRequest(from_revision=first.revision))
        await stream.read()
        metadata = await refused(stream.read(), "HISTORY_COMPACTED")
        assert metadata["revision"] == str(last.revision)
        page = await one.stub.ListEntries(api.ListEntriesRequest(), timeout=TIMEOUT)
        stream = one.stub.WatchEntries(api.WatchEntriesRequest(from_revision=page.revision + 1))
        await stream.read()
        again = await one.put("b")
        assert [event.put.revision for event in (await stream.read()).events] == [again.revision]
        stream.cancel()


async def test_pages_go_on_where_the_last_one_ended_and_tell_where_the_first_began(one: Team) -> None:
    for number in range(5):
        await one.put(f"k{number}")
    request = api.ListEntriesRequest(page_size=2)
    seen, revisions = [], set()
    while True:
        page = await one.stub.ListEntries(request, timeout=TIMEOUT)
        seen += [entry.key for entry in page.entries]
        revisions.add(page.revision)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await one.put("zzz")
    assert seen == ["k0", "k1", "k2", "k3", "k4", "zzz"] and len(revisions) == 1
    request.prefix = "other"
    await refused(one.stub.ListEntries(request, timeout=TIMEOUT), "PAGE_TOKEN_INVALID")


async def test_the_quota_holds_for_entries_and_bytes_and_deletes_make_room(
    authority: Authority, tmp_path: Path
) -> None:
    async with team(authority, tmp_path, quota=Quota(entries=3, bytes=10_000, claims=1)) as one:
        for number in range(3):
            await one.put(f"k{number}")
        assert (await refused(one.put("k3"), "CONTEXT_QUOTA_EXCEEDED"))["what"] == "entries"
        await one.put("k0", b"overwritten")
        assert (await refused(one.put("k0", b"x" * 10_000), "CONTEXT_QUOTA_EXCEEDED"))["what"] == "bytes"
        await one.delete("k1")
        await one.put("k3", ttl=Duration(seconds=1))
        one.advance(SECOND)
        await one.context.collect()
        await one.put("k4")
        await one.acquire("first")
        assert (await refused(one.acquire("second"), "CONTEXT_QUOTA_EXCEEDED"))["what"] == "claims"
        other = Stub(one.running.dial(one.running.credential(namespace="team-b")))
        await one.put("k0", stub=other)


async def test_an_entry_whose_labels_exceed_what_a_page_can_hold_is_refused(one: Team) -> None:
    request = api.PutEntryRequest(request_id="r", key="many")
    for number in range(256):
        part = request.value.field_labels.add(pointer="/" + "p" * 500)
        for _ in range(16):
            part.labels.add(key=f"l{number}", value="v" * 256)
    await refused(one.stub.PutEntry(request, timeout=TIMEOUT), "MESSAGE_TOO_LARGE")
    assert await one.keys() == []


async def test_many_at_once_cannot_exceed_the_quota_together(authority: Authority, tmp_path: Path) -> None:
    async with team(authority, tmp_path, quota=Quota(entries=10)) as one:
        answers = await asyncio.gather(*(one.put(f"k{number}") for number in range(30)), return_exceptions=True)
        assert sum(isinstance(answer, api.PutEntryResponse) for answer in answers) == 10
        assert len(await one.keys()) == 10


async def test_of_many_who_expect_the_same_revision_one_wins(one: Team) -> None:
    first = await one.put("race")
    tries = (one.put("race", b"%d" % number, expected_revision=first.revision) for number in range(20))
    answers = await asyncio.gather(*tries, return_exceptions=True)
    (won,) = [answer for answer in answers if isinstance(answer, api.PutEntryResponse)]
    assert (await one.get("race")).revision == won.revision


async def test_a_request_id_is_remembered_for_an_hour_and_its_answer_outlives_a_restart(
    authority: Authority, tmp_path: Path
) -> None:
    async with team(authority, tmp_path) as one:
        first = await one.put("once", expected_revision=0, request_id="r")
        await one.put("once", b"2")
        removed = await one.delete("once", request_id="d")
        start = one.running.clock.now()
    async with team(authority, tmp_path, start=start) as one:
        assert (await one.put("once", expected_revision=0, request_id="r")).revision == first.revision
        assert await one.delete("once", request_id="d") == removed
        await refused(one.put("once", b"other", request_id="r"), "REQUEST_ID_REUSED")
        await refused(one.put("once", request_id="d"), "REQUEST_ID_REUSED")
        bob = Stub(one.running.dial(one.running.credential(name="bob")))
        assert (await one.put("once", b"bob's", stub=bob, request_id="r")).revision > removed, "unique to its caller"
        one.advance(timedelta(hours=1))
        await one.context.collect()
        prefix = keys.CONTEXT_REQUESTS
        assert not (await one.store.range(prefix, prefix + b"\xff")).kvs


async def test_what_another_replica_writes_counts_as_soon_as_the_watch_tells_of_it(
    authority: Authority, tmp_path: Path
) -> None:
    async with team(authority, tmp_path, quota=Quota(entries=1)) as one:
        running = asyncio.create_task(one.context.run())
        theirs = keys.context("team-a", "namespace", "theirs")
        await one.store.commit(Txn((), (Put(theirs, records_pb2.EntryRecord().SerializeToString()),)))
        await eventually(lambda: one.context._keeper.entries.get(theirs))
        await refused(one.put("ours"), "CONTEXT_QUOTA_EXCEEDED")
        await one.store.commit(Txn((), (Delete(theirs),)))
        await eventually(lambda: one.context._keeper.entries.get(theirs) is None)
        await one.put("ours")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_index_that_comes_too_late_for_the_history_is_told_everything_anew(
    authority: Authority, tmp_path: Path
) -> None:
    async with team(authority, tmp_path, quota=Quota(entries=2)) as one:
        gone, theirs = (keys.context("team-a", "namespace", name) for name in ("gone", "theirs"))
        await one.put("gone")
        await one.put("stays")
        await one.context.load()
        await one.store.commit(Txn((), (Delete(gone), Put(theirs, records_pb2.EntryRecord().SerializeToString()))))
        latest = await one.store.commit(Txn((), (Put(b"elsewhere", b""),)))
        await one.store.compact(latest.revision)
        running = asyncio.create_task(one.context.run())
        await eventually(lambda: one.context._keeper.entries.get(theirs))
        assert one.context._keeper.entries.get(gone) is None
        await refused(one.put("more"), "CONTEXT_QUOTA_EXCEEDED")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_write_decided_by_what_another_replica_has_changed_is_decided_anew(one: Team) -> None:
    first = await one.put("ours")
    key = keys.context("team-a", "namespace", "ours")
    (kv,) = (await one.store.range(key)).kvs
    theirs = (await one.store.commit(Txn((), (Put(key, kv.value),)))).revision
    metadata = await refused(one.put("ours", expected_revision=first.revision), "ENTRY_CONFLICT")
    assert metadata["revision"] == str(theirs)
    assert (await one.put("ours", expected_revision=theirs)).revision > theirs


async def test_a_claim_ends_with_its_time_and_its_fence_grows(one: Team) -> None:
    bob = Stub(one.running.dial(one.running.credential(name="bob")))
    first = await one.acquire("plan", 10, request_id="mine")
    one.advance(9 * SECOND)
    metadata = await refused(one.acquire("plan", stub=bob), "CLAIM_HELD")
    assert metadata["holder"].endswith("/client/alice")
    again = await one.acquire("plan", 10, request_id="mine")
    assert again.claim == first.claim and again.expire_time.seconds == first.expire_time.seconds + 9
    renew = api.RenewClaimRequest(claim=first.claim, ttl=Duration(seconds=10))
    one.advance(9 * SECOND)
    kept = (await one.stub.RenewClaim(renew, timeout=TIMEOUT)).claim
    assert kept.claim.fence == first.claim.fence
    await refused(bob.RenewClaim(renew, timeout=TIMEOUT), "CLAIM_LOST")
    await bob.ReleaseClaim(api.ReleaseClaimRequest(claim=first.claim), timeout=TIMEOUT)
    await refused(one.acquire("plan", stub=bob), "CLAIM_HELD")
    one.advance(10 * SECOND)
    await refused(one.put("plan", claim=first.claim), "CLAIM_LOST")
    taken = await one.acquire("plan", stub=bob)
    assert taken.claim.fence > first.claim.fence
    await refused(one.stub.RenewClaim(renew, timeout=TIMEOUT), "CLAIM_LOST")
    await one.stub.ReleaseClaim(api.ReleaseClaimRequest(claim=first.claim), timeout=TIMEOUT)
    await one.put("plan", b"2", stub=bob, claim=taken.claim)
    await bob.ReleaseClaim(api.ReleaseClaimRequest(claim=taken.claim), timeout=TIMEOUT)
    await refused(one.put("plan", stub=bob, claim=taken.claim), "CLAIM_LOST")


async def test_a_write_that_was_made_under_a_claim_is_answered_again_after_the_claim_has_ended(one: Team) -> None:
    claim = await one.acquire("plan", 1)
    made = await one.put("plan", claim=claim.claim, request_id="r")
    one.advance(SECOND)
    assert (await one.put("plan", claim=claim.claim, request_id="r")).revision == made.revision


async def test_of_many_who_acquire_at_once_one_holds(one: Team) -> None:
    answers = await asyncio.gather(*(one.acquire("plan") for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, context_pb2.Claim) for answer in answers) == 1


PERMITTED = """
@id("log") @obligation("log") permit(principal, action, resource);
@id("own.keys") @reason("tasks alone write there")
forbid(principal, action == Action::"write_context", resource)
when { context.key like "team/*" && context.agent == "" };
@id("graph") forbid(principal, action == Action::"read_context", resource)
when { context.scope == "graph" || context.labels.contains("pii") };
@id("demands") @obligation("redact") @fields("x") permit(principal, action == Action::"write_context", resource)
when { context.key == "redacted" };
"""


async def test_policy_decides_by_scope_key_agent_and_labels_and_a_demand_it_cannot_meet_denies(
    authority: Authority, tmp_path: Path
) -> None:
    policy = CedarPolicies(PolicyBundle.of(1, [PolicyFile("team.cedar", PERMITTED)]))
    async with team(authority, tmp_path, policy=policy) as one:
        await one.put("free")
        metadata = await refused(one.put("team/x"), "POLICY_DENIED")
        assert metadata["action"] == "write_context" and "tasks alone write there" in metadata["cause"]
        await refused(one.put("redacted"), "POLICY_DENIED")
        scope = context_pb2.ContextScope(graph="review")
        await one.put("g", scope=scope)
        await refused(one.stub.GetEntry(api.GetEntryRequest(scope=scope, key="g"), timeout=TIMEOUT), "POLICY_DENIED")
        assert await one.keys(scope=scope) == []


async def test_without_a_policy_nothing_is_read_or_written(authority: Authority, tmp_path: Path) -> None:
    async with team(authority, tmp_path, policy=CedarPolicies()) as one:
        await refused(one.put("any"), "POLICY_DENIED")
        await refused(one.get("any"), "POLICY_DENIED")
        await refused(one.delete("any"), "POLICY_DENIED")
        await refused(one.acquire("any"), "POLICY_DENIED")


async def test_a_sidecar_has_no_rights_of_its_own(one: Team) -> None:
    stub = Stub(one.running.dial(one.running.credential(Kind.SIDECAR, "s")))
    await refused(one.put("any", stub=stub), "ACCESS_DENIED")


@pytest.mark.parametrize("key", ["", "/a", "a b", "ä", "a" * 256, "-a"])
async def test_a_key_that_is_none_is_refused_with_its_field(one: Team, key: str) -> None:
    await refused(one.put(key), "REQUEST_INVALID")
