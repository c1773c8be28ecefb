"""Antiphon without asyncio: the same words for scripts and notebooks.

    from antiphon import output_of, sync

    with sync.Client.connect() as client:
        run = client.submit("review@1", {"folder": "…"}, wait=True)
        print(output_of(run))

Methods, arguments, records and errors are those of `antiphon.Client`; what is awaited there is simply called here, and
what is iterated with `async for` is iterated with `for`. The work is done by that very client, on an event loop in a
thread of its own: a loop that runs already, as in a notebook, does not mind, and several threads may use one client.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from antiphon.v1 import context_pb2, graph_pb2
from antiphon.v1.run_pb2 import Run

from . import _client, _submitter
from ._connection import Renew
from ._credentials import Credentials
from ._errors import SetupError
from ._portal import PORTAL
from ._submission import SubmitOptions

if TYPE_CHECKING:
    from ._graph import Graph

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _called(
    method: Callable[Concatenate[_client.Client, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Client, _P], _T]:
    def call(self: Client, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        client = self._opened
        return PORTAL.call(lambda: method(client, *arguments, **named))

    functools.update_wrapper(call, method)
    return call


def _iterated(
    method: Callable[Concatenate[_client.Client, _P], AsyncIterator[_T]],
) -> Callable[Concatenate[Client, _P], Iterator[_T]]:
    def iterate(self: Client, /, *arguments: _P.args, **named: _P.kwargs) -> Iterator[_T]:
        return PORTAL.iterate(method(self._opened, *arguments, **named))

    functools.update_wrapper(iterate, method)
    return iterate


class Client:
    """A connection to the orchestrators of one identity; make it with `connect`, use it with `with`.

    Where a block is in the way, as in a notebook, `open` and `close` do what its ends do.
    """

    def __init__(self, client: _client.Client) -> None:
        self._client = client
        self._open = False

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
        """A client that connects when it is opened; see `antiphon.Client.connect`. Raises `SetupError`."""
        client = _client.Client.connect(
            profile, address=address, credentials=credentials, renew=renew, timeout=timeout, patience=patience
        )
        return cls(client)

    def open(self) -> Self:
        """Begin; to be closed at the end. Raises `SetupError`."""
        if not self._open:
            PORTAL.enter()
            try:
                PORTAL.call(self._client.__aenter__)
            except BaseException:
                PORTAL.leave()
                raise
            self._open = True
        return self

    def close(self) -> None:
        """End every call and iterator. Closing twice is closing once."""
        if self._open:
            self._open = False
            try:
                PORTAL.call(lambda: self._client.__aexit__(None, None, None))
            finally:
                PORTAL.leave()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _opened(self) -> _client.Client:
        if not self._open:
            raise SetupError("the client is not connected; use it inside: with sync.Client.connect() as client")
        return self._client

    submit = _called(_client.Client.submit)
    get_run = _called(_client.Client.get_run)
    list_runs = _iterated(_client.Client.list_runs)
    list_tasks = _iterated(_client.Client.list_tasks)
    get_task = _called(_client.Client.get_task)
    list_attempts = _iterated(_client.Client.list_attempts)
    watch = _iterated(_client.Client.watch)
    wait = _called(_client.Client.wait)
    cancel = _called(_client.Client.cancel)
    cancel_task = _called(_client.Client.cancel_task)
    signal = _called(_client.Client.signal)
    pause = _called(_client.Client.pause)
    resume = _called(_client.Client.resume)
    retry = _called(_client.Client.retry)
    resolve = _called(_client.Client.resolve)
    explain = _called(_client.Client.explain)
    register_graph = _called(_client.Client.register_graph)
    validate_graph = _called(_client.Client.validate_graph)
    get_graph = _called(_client.Client.get_graph)
    list_graphs = _iterated(_client.Client.list_graphs)
    list_agents = _iterated(_client.Client.list_agents)
    get_agent = _called(_client.Client.get_agent)
    watch_agents = _iterated(_client.Client.watch_agents)
    list_capabilities = _iterated(_client.Client.list_capabilities)
    drain_agent = _called(_client.Client.drain_agent)
    suspend_agent = _called(_client.Client.suspend_agent)
    resume_agent = _called(_client.Client.resume_agent)
    put_verify_report = _called(_client.Client.put_verify_report)
    get_cluster = _called(_client.Client.get_cluster)
    create_token = _called(_client.Client.create_token)
    revoke_certificates = _called(_client.Client.revoke_certificates)
    list_revocations = _iterated(_client.Client.list_revocations)

    get_entry = _called(_client.Client.get_entry)
    put_entry = _called(_client.Client.put_entry)
    delete_entry = _called(_client.Client.delete_entry)
    list_entries = _iterated(_client.Client.list_entries)
    snapshot_entries = _called(_client.Client.snapshot_entries)
    watch_entries = _iterated(_client.Client.watch_entries)
    lineage = _called(_client.Client.lineage)
    acquire_claim = _called(_client.Client.acquire_claim)
    renew_claim = _called(_client.Client.renew_claim)
    release_claim = _called(_client.Client.release_claim)

    check_policy = _called(_client.Client.check_policy)
    list_policies = _iterated(_client.Client.list_policies)
    get_policy = _called(_client.Client.get_policy)
    activate_policies = _called(_client.Client.activate_policies)
    roll_back_policies = _called(_client.Client.roll_back_policies)
    list_decisions = _iterated(_client.Client.list_decisions)

    list_audit_records = _iterated(_client.Client.list_audit_records)
    get_audit_checkpoint = _called(_client.Client.get_audit_checkpoint)
    get_audit_proof = _called(_client.Client.get_audit_proof)
    digest_runs = _called(_client.Client.digest_runs)

    upload_payload = _called(_client.Client.upload_payload)
    download_payload = _called(_client.Client.download_payload)

    def claim(
        self,
        name: str,
        *,
        scope: str = "namespace",
        ttl: timedelta = timedelta(seconds=30),
        wait: timedelta = timedelta(0),
    ) -> AbstractContextManager[context_pb2.Claim]:
        """Hold a claim while a block runs; see `antiphon.Client.claim`.

        A block of plain code cannot be stopped from outside: when the claim is lost meanwhile, `ClaimLost` is raised at
        its end. Writes that name the claim are refused as soon as it is lost.
        """
        return PORTAL.inside_of(self._opened.claim(name, scope=scope, ttl=ttl, wait=wait))

    def submitter(self, in_flight: int = 1000) -> AbstractContextManager[Submitter]:
        """For many runs: one stream, with at most `in_flight` submissions that have no answer.

        with client.submitter() as submitter:
            answers = [submitter.submit("review", one, wait=True) for one in inputs]
        runs = [answer.result() for answer in answers]
        """
        return self._submitting(in_flight)

    @contextmanager
    def _submitting(self, in_flight: int) -> Iterator[Submitter]:
        with PORTAL.inside_of(self._opened.submitter(in_flight)) as submitter:
            yield Submitter(submitter)


class Submitter:
    """Submits runs through one stream; made by `Client.submitter`."""

    def __init__(self, submitter: _submitter.Submitter) -> None:
        self._submitter = submitter

    def submit(
        self, graph: str | Graph | graph_pb2.Graph, input: Any = None, **options: Unpack[SubmitOptions]
    ) -> Future[Run]:
        """Take a submission as soon as there is room for it, and return what will be its answer.

        Arguments as of `Client.submit`. The answer raises `AntiphonError` when the submission is refused.
        """
        answer = PORTAL.call(lambda: self._submitter.submit(graph, input, **options))

        async def wait() -> Run:
            return await answer

        return PORTAL.start(wait)
