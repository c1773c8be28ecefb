"""The client against an orchestrator double over real mutual TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import antiphon
import pytest
from antiphon import Client, Credentials, Graph, RunFailed, _calls, output_of
from antiphon.v1 import error_pb2, registry_pb2, run_pb2
from antiphon.v1.payload_pb2 import Label, Payload
from antiphon_certs import Authority, CertificateFiles, Credential, Profile
from google.protobuf.duration_pb2 import Duration

from tests.fakes.orchestrator import DOMAIN, Orchestrator, credential, orchestrator

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.init(tmp_path_factory.mktemp("sdk-ca") / "ca", DOMAIN)


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> CertificateFiles:
    """A client's credential folder."""
    folder = CertificateFiles(tmp_path / "credential")
    store(folder, credential(authority))
    return folder


@pytest.fixture
async def double(authority: Authority) -> AsyncIterator[Orchestrator]:
    async with orchestrator(authority) as running:
        yield running


@pytest.fixture
async def client(double: Orchestrator, files: CertificateFiles) -> AsyncIterator[Client]:
    async with connect(double, files) as connected:
        yield connected


def store(folder: CertificateFiles, made: Credential) -> None:
    folder.store(made.key_pem, made.chain_pem, made.bundle_pem)


@asynccontextmanager
async def connect(double: Orchestrator, files: CertificateFiles, **settings: timedelta) -> AsyncIterator[Client]:
    credentials = Credentials.from_folder(files.folder)
    async with Client.connect(address=double.address, credentials=credentials, **settings) as connected:
        yield connected


@dataclass
class Order:
    item: str
    count: int = 1


async def test_a_run_is_submitted_and_its_output_read(client: Client, double: Orchestrator) -> None:
    run = await client.submit(
        "review@1.2", Order("pen"), wait=True, labels={"team": "x"}, priority=3, deadline=5 * SECOND, request_id="r1"
    )
    (request,) = double.submissions
    assert (request.request_id, request.registered.name, request.registered.version) == ("r1", "review", "1.2")
    assert (request.input.inline, dict(request.labels), request.priority) == (
        b'{"item":"pen","count":1}',
        {"team": "x"},
        3,
    )
    assert request.deadline.seconds == 5 and request.wait
    assert output_of(run) == {"answer": 42} and output_of(run, dict[str, int]) == {"answer": 42}


async def test_a_graph_may_be_submitted_inline(client: Client, double: Orchestrator) -> None:
    graph = Graph("inline")
    graph.task("a", "text.echo@1")
    run = await client.submit(graph)
    assert double.submissions[0].inline.tasks[0].capability == "text.echo@1"
    assert not double.submissions[0].HasField("input")
    with pytest.raises(RunFailed, match="is RUNNING"):
        output_of(run)


async def test_every_unary_call_has_a_deadline_and_trace_context(client: Client, double: Orchestrator) -> None:
    await client.get_run("x")
    await client.cancel("x")
    assert len(double.calls) == 2
    for metadata, left, _ in double.calls:
        assert left is not None and 0 < left < 11
        assert len(metadata["traceparent"].split("-")) == 4
    assert double.calls[0][0]["traceparent"] != double.calls[1][0]["traceparent"]


async def test_a_call_without_an_answer_ends_at_its_deadline(double: Orchestrator, files: CertificateFiles) -> None:
    async with connect(double, files, timeout=SECOND) as client:
        await client.get_run("x")  # it is connected: what follows has little time
        double.hold = asyncio.Event()
        with pytest.raises(antiphon.DeadlineExceeded):
            await client.get_run("x")
        with pytest.raises(antiphon.DeadlineExceeded, match="has not ended"):
            await client.submit("review", wait=True, timeout=SECOND)


async def test_who_stops_waiting_for_a_submission_learns_which_run_goes_on(
    double: Orchestrator, files: CertificateFiles
) -> None:
    async with connect(double, files) as client:
        await client.get_run("x")  # it is connected: what follows has little time
        double.hold = asyncio.Event()
        with pytest.raises(antiphon.DeadlineExceeded, match=r"run .+ has not ended") as late:
            await client.submit("review", wait=True, timeout=SECOND)
    first, second = double.submissions
    assert first.request_id == second.request_id and not second.wait
    assert late.value.metadata["run_id"] == double.run(first.request_id, False).run_id


async def test_a_retryable_refusal_is_tried_again_after_the_delay_it_names(
    client: Client, double: Orchestrator
) -> None:
    double.refusals.extend([(error_pb2.ERROR_REASON_OVERLOADED, {"retry": 0.2})] * 2)
    began = time.monotonic()
    await client.submit("review", request_id="same")
    assert time.monotonic() - began >= 0.4
    assert [one.request_id for one in double.submissions] == ["same"] * 3


async def test_tries_are_bounded_in_number_and_in_time(client: Client, double: Orchestrator) -> None:
    double.refusals.extend([(error_pb2.ERROR_REASON_OVERLOADED, {"retry": 0.001, "queue": "inbox"})] * 9)
    with pytest.raises(antiphon.Overloaded, match="inbox is full") as caught:
        await client.get_run("x")
    assert len(double.calls) == 6 and caught.value.metadata == {"queue": "inbox"}
    double.refusals.clear()
    double.refusals.append((error_pb2.ERROR_REASON_OVERLOADED, {"retry": 60}))
    with pytest.raises(antiphon.RetryableError) as late:
        await client.get_run("x")
    assert late.value.retry_after == timedelta(seconds=60)


async def test_a_refusal_carries_reason_metadata_and_violations_and_is_not_tried_again(
    client: Client, double: Orchestrator
) -> None:
    settings = {"violations": {"tasks[3].when": "no such field"}, "graph": "review", "count": "1"}
    double.refusals.append((error_pb2.ERROR_REASON_GRAPH_INVALID, settings))
    with pytest.raises(antiphon.GraphInvalid) as caught:
        await client.register_graph(Graph("review", version="1"))
    error = caught.value
    assert isinstance(error, antiphon.RequestError) and error.reason == "GRAPH_INVALID"
    assert error.remedy is antiphon.Remedy.FIX_REQUEST and error.code.name == "INVALID_ARGUMENT"
    assert error.violations == (antiphon.FieldViolation("tasks[3].when", "no such field"),)
    assert "tasks[3].when: no such field" in str(error) and len(double.calls) == 1


async def test_a_token_is_not_made_twice_when_the_answer_is_lost(client: Client, double: Orchestrator) -> None:
    assert (await client.create_token("sidecar", "edge", lifetime=SECOND)).token == "sidecar:edge"
    await double.stop()
    with pytest.raises(antiphon.Unavailable):
        await client.create_token("sidecar", "edge")


async def test_waiting_for_a_run_outlives_a_restart(client: Client, double: Orchestrator) -> None:
    double.hold = asyncio.Event()
    waiting = asyncio.create_task(client.submit("review", wait=True, request_id="one"))
    watching = asyncio.create_task(client.wait("run-of-one"))
    await double.until(lambda: len(double.calls) == 2)
    await double.stop()
    double.hold = None
    await double.start()
    assert (await waiting).run_id == "run-of-one"
    assert output_of(await watching) == {"answer": 42}
    assert {one.request_id for one in double.submissions} == {"one"}


async def test_what_is_silent_for_longer_than_the_patience_outlives_a_restart(
    double: Orchestrator, files: CertificateFiles
) -> None:
    patience = timedelta(seconds=3)
    double.hold = asyncio.Event()
    async with connect(double, files, patience=patience) as client, client.submitter() as submitter:
        waiting = asyncio.create_task(client.submit("review", wait=True, request_id="one"))
        watching = asyncio.create_task(client.wait("run-of-one"))
        submitted = await submitter.submit("review", wait=True, request_id="two")
        await double.until(lambda: len(double.calls) == 3 and double.unanswered == 1)
        await asyncio.sleep(patience.total_seconds())
        await double.stop()
        double.hold = None
        await double.start()
        assert [run.run_id for run in (await waiting, await submitted)] == ["run-of-one", "run-of-two"]
        assert output_of(await watching) == {"answer": 42}


async def test_a_stream_that_has_stood_for_a_while_is_no_failure_however_often_it_breaks(
    double: Orchestrator, files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_calls, "_STOOD", 0.5)
    double.hold = asyncio.Event()
    async with connect(double, files, patience=3 * SECOND) as client:
        watching = asyncio.create_task(client.wait("run-of-one"))
        for times in range(4):
            await double.until(lambda: len(double.calls) > times)  # noqa: B023  it is called here alone
            await asyncio.sleep(1.0)
            await double.stop()
            double.hold = double.hold if times < 3 else None
            await double.start()
        assert output_of(await watching) == {"answer": 42}


async def test_a_watch_goes_on_from_its_cursor_without_gap_or_repeat(client: Client, double: Orchestrator) -> None:
    double.hold = asyncio.Event()
    double.emit(3)
    events = client.watch("x", cursor=1)
    seen = [(await anext(events)).event_seq for _ in range(2)]
    await double.stop()
    double.emit(4)
    await double.start()
    seen += [(await anext(events)).event_seq for _ in range(4)]
    double.hold = None
    double.emit(1)
    seen += [event.event_seq async for event in events]
    assert seen == [2, 3, 4, 5, 6, 7, 8]


async def test_a_watch_of_nothing_is_refused_and_a_lost_server_given_up(
    double: Orchestrator, files: CertificateFiles
) -> None:
    async with connect(double, files, patience=timedelta(seconds=0.5)) as client:
        double.refusals.append((error_pb2.ERROR_REASON_RUN_NOT_FOUND, {"run_id": "x"}))
        with pytest.raises(antiphon.RunNotFound, match="no run x"):
            await anext(aiter(client.watch("x")))
        await double.stop()
        with pytest.raises(antiphon.Unavailable):
            await client.wait("x")


async def test_lists_fetch_their_pages_as_needed(client: Client, double: Orchestrator) -> None:
    assert [run.run_id async for run in client.list_runs(page_size=3)] == list("0123456")
    assert len(double.calls) == 3
    async for run in client.list_runs(page_size=3, states=[run_pb2.RUN_STATE_FAILED]):
        assert run.run_id == "0"
        break
    assert len(double.calls) == 4


async def test_every_method_reaches_its_service(client: Client) -> None:
    assert [task.key.task_id async for task in client.list_tasks("r")] == ["a"]
    assert (await client.get_task("r", "a", 2)).key.member == 2
    assert [attempt.number async for attempt in client.list_attempts("r", "a")] == [1, 2]
    assert (await client.explain("r", "a", 3)).task.key.member == 3
    assert (await client.cancel("r", "enough")).state == run_pb2.RUN_STATE_CANCELLED
    assert (await client.register_graph(Graph("g", version="2"))).graph.graph.version == "2"
    assert (await client.validate_graph(Graph("g"))).mistakes[0].code == "expression"
    assert (await client.get_graph("g")).graph.version == "9"
    assert len([graph async for graph in client.list_graphs()]) == 1
    assert [agent.name async for agent in client.list_agents()] == ["a"]
    assert [agent.name async for agent in client.watch_agents()] == ["a"]
    assert [offered.agents async for offered in client.list_capabilities()] == [["a"]]
    assert (await client.get_agent("x")).name == "x"
    assert (await client.drain_agent("x")).state == registry_pb2.AGENT_STATE_DRAINING
    assert (await client.suspend_agent("x")).state == registry_pb2.AGENT_STATE_SUSPENDED
    assert (await client.resume_agent("x")).state == registry_pb2.AGENT_STATE_ACTIVE


async def test_a_large_input_travels_by_reference(client: Client, double: Orchestrator) -> None:
    await client.submit("review", "x" * 3_000_000)
    (request,) = double.submissions
    assert request.input.blob.size == 3_000_002
    double.break_download_at = 1 << 20
    assert await client.download_payload(request.input) == double.blobs[request.input.blob.digest]
    with pytest.raises(antiphon.PayloadNotFound):
        await client.download_payload("0" * 64)


async def test_a_submitter_batches_and_holds_back(client: Client, double: Orchestrator) -> None:
    async with client.submitter(in_flight=40) as submitter:
        answers = [await submitter.submit("review", number, wait=True) for number in range(500)]
    runs = [await answer for answer in answers]
    assert len({run.run_id for run in runs}) == 500
    assert double.most_unanswered <= 40 and max(double.batches) > 1
    assert all(one.traceparent for one in double.submissions)


async def test_a_submitter_outlives_a_restart_with_the_same_request_ids(client: Client, double: Orchestrator) -> None:
    double.hold = asyncio.Event()
    async with client.submitter() as submitter:
        answers = [await submitter.submit("review", number) for number in range(20)]
        await double.until(lambda: double.unanswered > 0)
        await double.stop()
        double.hold = None
        await double.start()
        runs = await asyncio.gather(*answers)
    assert {one.request_id for one in double.submissions} == {run.run_id.removeprefix("run-of-") for run in runs}
    assert len(double.submissions) > 20


async def test_a_submitter_answers_item_by_item(client: Client, double: Orchestrator) -> None:
    double.errors["gone"] = error_pb2.Error(reason=error_pb2.ERROR_REASON_GRAPH_NOT_FOUND, message="no graph gone")
    busy = error_pb2.Error(reason=error_pb2.ERROR_REASON_OVERLOADED, retry_delay=Duration(nanos=1_000_000))
    double.errors["busy"] = busy
    async with client.submitter() as submitter:
        gone = await submitter.submit("gone")
        tried = await submitter.submit("busy", request_id="same")
        with pytest.raises(ValueError, match="on its way"):
            await submitter.submit("busy", request_id="same")
        with pytest.raises(antiphon.GraphNotFound, match="no graph gone"):
            await gone
        assert (await tried).run_id == "run-of-same"


async def test_a_submitter_that_is_refused_tells_every_answer(client: Client, double: Orchestrator) -> None:
    double.refusals.append((error_pb2.ERROR_REASON_ACCESS_DENIED, {}))
    with pytest.raises(antiphon.AccessDenied):
        async with client.submitter(in_flight=1) as submitter:
            await submitter.submit("review")
            await submitter.submit("review")
    with pytest.raises(antiphon.SetupError, match="closed"):
        await submitter.submit("review")


async def test_leaving_a_submitter_by_an_exception_gives_its_answers_up(client: Client, double: Orchestrator) -> None:
    double.hold = asyncio.Event()
    with pytest.raises(ZeroDivisionError):
        async with client.submitter() as submitter:
            answer = await submitter.submit("review")
            raise ZeroDivisionError
    assert answer.cancelled()


async def test_a_new_certificate_takes_over_while_calls_go_on(
    client: Client, double: Orchestrator, files: CertificateFiles, authority: Authority
) -> None:
    double.hold = asyncio.Event()
    held = asyncio.create_task(client.wait("x"))
    await double.until(lambda: len(double.calls) == 1)
    store(files, credential(authority))
    assert await client._connection.refresh() and not await client._connection.refresh()
    await client.cancel("x")
    old, new = double.calls[0][2], double.calls[1][2]
    assert old != new
    double.hold = None
    double.more.set()
    assert (await held).state == run_pb2.RUN_STATE_SUCCEEDED
    assert len(client._connection._generations) == 1


async def test_a_certificate_that_does_not_work_leaves_the_one_in_use(
    client: Client, double: Orchestrator, files: CertificateFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antiphon._connection._READY", 0.3)
    foreign = Authority.init(tmp_path / "foreign", DOMAIN)
    store(files, credential(foreign))
    assert not await client._connection.refresh()
    assert (await client.get_run("x")).run_id == "x"


@pytest.mark.parametrize("place", [0, 1, 2], ids=["certificate", "key", "bundle"])
@pytest.mark.parametrize("written", [b"", b" \n", b"\0" * 80], ids=["empty", "blank", "allotted"])
async def test_a_file_that_is_being_written_leaves_the_certificate_in_use(
    double: Orchestrator, authority: Authority, tmp_path: Path, place: int, written: bytes
) -> None:
    made = credential(authority)
    files = [tmp_path / name for name in ("cert.pem", "key.pem", "bundle.pem")]
    for file, content in zip(files, (made.chain_pem, made.key_pem, made.bundle_pem), strict=True):
        file.write_bytes(content)
    credentials = Credentials.from_files(*files)
    async with Client.connect(address=double.address, credentials=credentials) as client:
        files[place].write_bytes(written)
        assert not await client._connection.refresh()
        assert (await client.get_run("x")).run_id == "x"
    with pytest.raises(antiphon.SetupError, match=f"{files[place]} holds no PEM; run: .*antiphon certs join"):
        async with Client.connect(address=double.address, credentials=credentials):
            pass


async def test_an_expired_certificate_is_read_again_at_once(
    client: Client, double: Orchestrator, files: CertificateFiles, authority: Authority
) -> None:
    store(files, credential(authority))
    double.refusals.append((error_pb2.ERROR_REASON_CERTIFICATE_EXPIRED, {}))
    assert (await client.get_run("x")).run_id == "x"
    assert double.calls[0][2] != double.calls[1][2]
    double.refusals.append((error_pb2.ERROR_REASON_CERTIFICATE_EXPIRED, {}))
    with pytest.raises(antiphon.CertificateExpired):
        await client.get_run("x")


async def test_a_call_and_a_watch_with_a_certificate_that_has_expired_end_with_that_and_not_after_the_patience(
    double: Orchestrator, files: CertificateFiles, authority: Authority
) -> None:
    store(files, credential(authority, now=datetime.now(UTC) - timedelta(hours=2)))
    async with connect(double, files) as client:
        with pytest.raises(antiphon.CertificateExpired, match=r"expired at 20\d\d-.*Z; join again"):
            await client.get_run("x")
        with pytest.raises(antiphon.CertificateExpired):
            await client.wait("x")
        store(files, credential(authority))
        assert (await client.get_run("x")).run_id == "x"


async def test_a_stream_that_outlives_its_certificate_goes_on_with_the_one_that_has_replaced_it(
    client: Client, double: Orchestrator, files: CertificateFiles, authority: Authority
) -> None:
    double.hold = asyncio.Event()
    async with client.submitter() as submitter:
        answer = await submitter.submit("review")
        await double.until(lambda: len(double.submissions) == 1)
        store(files, credential(authority))
        assert await client._connection.refresh()
        double.expired = True
        double.hold.set()
        assert (await answer).run_id
    assert double.calls[0][2] != double.calls[1][2]


async def test_a_server_of_a_foreign_authority_is_not_talked_to(
    authority: Authority, files: CertificateFiles, tmp_path: Path
) -> None:
    foreign = Authority.init(tmp_path / "foreign", DOMAIN)
    async with orchestrator(foreign) as stranger, connect(stranger, files, timeout=SECOND) as client:
        with pytest.raises(antiphon.Unavailable):
            await client.get_run("x")
        assert not stranger.calls


async def test_a_payload_with_more_labels_than_travel_is_refused_before_it_is_sent(
    client: Client, double: Orchestrator
) -> None:
    labels = [Label(key="pii", value="x" * 256) for _ in range(20_000)]
    async with client.submitter() as submitter:
        answer = await submitter.submit("review")
        with pytest.raises(ValueError, match="bytes of labels and other texts, larger than 262144 bytes"):
            await submitter.submit("review", Payload(inline=b"1", labels=labels))
        assert (await answer).run_id
    with pytest.raises(ValueError, match="labels"):
        await client.put_entry("key", Payload(inline=b"1", labels=labels))


async def test_with_several_addresses_the_next_is_tried(double: Orchestrator, files: CertificateFiles) -> None:
    credentials = Credentials.from_folder(files.folder)
    async with Client.connect(address=["127.0.0.1:1", double.address], credentials=credentials) as client:
        assert (await client.get_run("x")).run_id == "x"
        async with client.submitter() as submitter:
            assert (await (await submitter.submit("review"))).run_id


@pytest.mark.parametrize(
    "address",
    ["https://mesh.example:7443", "grpc://a:1", "dns:///a:1", "a:", "a:0", "a:65536", "::1:7443", ":7443", "a:1,b"],
)
def test_what_is_no_address_of_an_orchestrator_is_refused_at_once(files: CertificateFiles, address: str) -> None:
    credentials = Credentials.from_folder(files.folder)
    with pytest.raises(antiphon.SetupError, match=r"write host:port, without a scheme, such as .* or \[::1\]:7443$"):
        Client.connect(address, credentials=credentials)
    Client.connect("a-b.example:7443, 127.0.0.1:1,[::1]:7443,[fe80::1%eth0]:65535,unix:/run/a", credentials=credentials)


async def test_a_profile_says_whom_to_dial_as_whom(
    double: Orchestrator, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIPHON_HOME", str(tmp_path))
    profile = Profile(tmp_path / "profiles/work", (double.address,), ("127.0.0.1:1",), DOMAIN, "team-a")
    profile.save()
    store(profile.credential, credential(authority))
    renewals: list[int] = []

    async def renew() -> None:
        renewals.append(1)

    async with Client.connect("work", renew=renew) as client:
        assert (await client.get_run("x")).run_id == "x"
    assert renewals == [1]
    with pytest.raises(antiphon.SetupError, match=r"no profile 'default'.*antiphon dev"):
        Client.connect()


async def test_a_client_is_used_inside_its_block_only(double: Orchestrator, files: CertificateFiles) -> None:
    client = Client.connect(address=double.address, credentials=Credentials.from_folder(files.folder))
    with pytest.raises(antiphon.SetupError, match="async with"):
        await client.get_run("x")
