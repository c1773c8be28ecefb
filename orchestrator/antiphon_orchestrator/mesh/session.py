"""One stream of a sidecar: what waits to be written to it, and the order it goes out in.

Everything is queued here by plain calls and leaves in batches, one message at a time, as soon as the stream is free.
Within a message and between messages the order of protocol.md §5 holds: claims before offers, verdicts before offers.
No queue grows without bound: there are never more offers than slots, and a sidecar that does not read what it asked for
is not read either (`room`), until its silence ends the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import agent_service_pb2, context_request_pb2

from ..engine import decide, quarantine
from ..engine.run import Run, Task
from ..engine.states import ATTEMPT_LIVE
from ..wake import Wake
from .tokens import AttemptTokens

BATCH_ITEMS = 256
BATCH_BYTES = 1024 * 1024

UNANSWERED = 20_000
"""Reports without a verdict, and other answers not yet written, at which a sidecar is not read any further."""

VERDICTS = {
    decide.Verdict.ACCEPTED: mesh.VERDICT_KIND_ACCEPTED,
    decide.Verdict.DUPLICATE: mesh.VERDICT_KIND_DUPLICATE,
    decide.Verdict.STALE: mesh.VERDICT_KIND_STALE,
    decide.Verdict.GONE: mesh.VERDICT_KIND_GONE,
}


class PendingOffer:
    """An attempt to write: what is computed late (the remaining time) is computed from these."""

    __slots__ = ("epoch", "number", "run", "shard", "task")

    def __init__(self, shard: int, epoch: int, run: Run, task: Task, number: int) -> None:
        self.shard = shard
        self.epoch = epoch
        self.run = run
        self.task = task
        self.number = number


class Session:
    """Implements shards.inputs.Reporter. `before`: by shard, the attempts out to the sidecar when it was claimed."""

    def __init__(
        self,
        namespace: str,
        sidecar: str,
        principal: str,
        incarnation: str,
        generation: int,
        tokens: AttemptTokens,
        now: Callable[[], int],
    ) -> None:
        self.namespace = namespace
        self.sidecar = sidecar
        self.principal = principal
        self.incarnation = incarnation
        self.generation = generation
        self.source = f"{namespace}/{sidecar}"
        self.before: dict[int, frozenset[str]] = {}
        self.claimed: dict[int, int] = {}
        """By shard, the epoch it was last claimed with."""
        self.agents: set[str] = set()
        """Those that were admitted: their instances are in the fleet, unless they are gone."""
        self.demanded: dict[str, int] = {}
        """By agent, the slots that were last asked for."""
        self.held: dict[int, set[str]] = {}
        self.last_seen = now()
        self.since = now()
        self.going_away = False
        self.policy_epoch = 0
        """Epoch in force: what was permitted under an older one does not go out any more."""
        self.take_back: Callable[[Session, PendingOffer], None] = _nowhere
        """Takes an offer that must not go out any more."""
        self.unanswered = 0
        """Reports that were taken in and whose verdicts are not written yet."""
        self._room = Wake()
        self._tokens = tokens
        self._now = now
        self._first = mesh.AttachResponse()
        self._verdicts: deque[tuple[str, str]] = deque()
        self._offers: deque[PendingOffer] = deque()
        self._cancels: deque[tuple[str, str]] = deque()
        self._call_results: deque[agent_service_pb2.CallResponse] = deque()
        self._context_responses: deque[context_request_pb2.ContextResponse] = deque()
        self._rest: mesh.AttachResponse | None = self._first
        self._wake = Wake()
        self._wake.set()
        self.ended = False
        self.error: BaseException | None = None

    @property
    def control(self) -> mesh.AttachResponse:
        """The message that everything but verdicts and offers is added to; it leaves next. Call `wake` afterwards."""
        if self._rest is None:
            self._rest = mesh.AttachResponse()
        return self._rest

    def wake(self) -> None:
        self._wake.set()

    def instance_id(self, agent: str) -> str:
        return f"{self.sidecar}/{self.incarnation}/{agent}"

    def verdict(self, attempt_id: str, kind: str) -> None:
        self._verdicts.append((attempt_id, kind))
        self._wake.set()

    def no_verdict(self) -> None:
        self.unanswered -= 1
        self._room.set()

    def offer(self, offer: PendingOffer) -> None:
        self._offers.append(offer)
        self._wake.set()

    def drop_offers(self, shard: int) -> None:
        """Forgets what waits to be offered for a shard that is not this replica's any more."""
        self._offers = deque(offer for offer in self._offers if offer.shard != shard)

    def cancel(self, attempt_id: str, reason: str) -> None:
        self._cancels.append((attempt_id, reason[:256]))
        self._wake.set()

    def call_result(self, response: agent_service_pb2.CallResponse) -> None:
        self._call_results.append(response)
        self._wake.set()

    def context_response(self, response: context_request_pb2.ContextResponse) -> None:
        self._context_responses.append(response)
        self._wake.set()

    def end(self, error: BaseException | None = None) -> None:
        """Ends the stream, with an error for the other side if there is one."""
        if not self.ended:
            self.ended, self.error = True, error
            self._wake.set()
            self._room.set()

    @property
    def _full(self) -> bool:
        rest = len(self._rest.window_acks) + len(self._rest.refusals) if self._rest is not None else 0
        answers = len(self._call_results) + len(self._context_responses)
        return self.unanswered >= UNANSWERED or answers + rest >= UNANSWERED

    async def room(self) -> None:
        """Returns once the sidecar may be read on."""
        while self._full and not self.ended:
            self._room.clear()
            await self._room.wait()

    async def woken(self) -> None:
        """Returns once there may be something to write, or the session has ended."""
        await self._wake.wait()
        self._wake.clear()

    def next_message(self) -> mesh.AttachResponse | None:
        """What to write now; None when nothing waits."""
        if self.ended:
            # The last word, such as a go-away; offers and verdicts of a stream that ends are void.
            rest, self._rest = self._rest, None
            return rest
        waiting = self._rest is not None or self._verdicts or self._cancels or self._offers or self._call_results
        return self._next() if waiting or self._context_responses else None

    def _next(self) -> mesh.AttachResponse:
        message, self._rest = self._rest or mesh.AttachResponse(), None
        for _ in range(min(BATCH_ITEMS, len(self._verdicts))):
            attempt_id, kind = self._verdicts.popleft()
            verdict = message.verdicts.add()
            verdict.attempt_id = attempt_id
            verdict.kind = VERDICTS[kind]
        self.unanswered -= len(message.verdicts)
        for _ in range(min(BATCH_ITEMS, len(self._cancels))):
            attempt_id, reason = self._cancels.popleft()
            message.cancels.add(attempt_id=attempt_id, reason=reason)
        size = count = 0
        while self._call_results and size < BATCH_BYTES:
            result = self._call_results.popleft()
            size += result.ByteSize() + 8
            message.call_results.append(result)
        while self._context_responses and size < BATCH_BYTES:
            response = self._context_responses.popleft()
            size += response.ByteSize() + 8
            message.context_responses.append(response)
        self._room.set()
        moment = self._now()
        while self._offers and count < BATCH_ITEMS and size < BATCH_BYTES:
            pending = self._offers.popleft()
            if pending.task.attempts[pending.number - 1].state not in ATTEMPT_LIVE:
                continue  # cancelled while it waited
            if pending.task.attempts[pending.number - 1].placement.policy_epoch != self.policy_epoch:
                self.take_back(self, pending)
                continue
            count += 1
            size += len(pending.task.input) + 512
            self._write(message.offers.add(), pending, moment)
        return message

    def _write(self, offer: mesh.Offer, pending: PendingOffer, moment: int) -> None:
        run, task = pending.run, pending.task
        submitted = run.submitted
        attempt = task.attempts[pending.number - 1]
        placement = attempt.placement
        capability, _, version = placement.capability.partition("@")
        assignment: agent_service_pb2.Assignment = offer.assignment
        attempt_id = decide.attempt_id(run.run_id, task, pending.number)
        token, span = self._tokens.make(attempt_id)
        assignment.attempt_id = attempt_id
        assignment.attempt_token = token
        assignment.idempotency_key = decide.idempotency_key(run.run_id, task)
        assignment.capability = capability
        assignment.version = version
        assignment.namespace = submitted.namespace
        assignment.principal = submitted.principal
        if submitted.delegation:
            assignment.delegation.extend(submitted.delegation)
        assignment.traceparent = f"{submitted.traceparent[:36]}{span}{submitted.traceparent[52:]}"
        left = max(1, min(task.plan.timeout, decide.task_deadline(run, task) - moment))
        timeout = assignment.remaining_timeout
        timeout.seconds, micros = divmod(left, 1_000_000)
        timeout.nanos = micros * 1000
        given = task.input if placement.reduced_input is None else placement.reduced_input
        if given:
            assignment.input.MergeFromString(given)
        assignment.number = pending.number
        offer.agent = placement.agent
        offer.shard = pending.shard
        offer.epoch = pending.epoch
        offer.policy_epoch = placement.policy_epoch
        if pending.number > 1 and quarantine.alone(task, pending.number):
            offer.alone = True


def _nowhere(session: Session, pending: PendingOffer) -> None:
    raise AssertionError("the session was not told where offers come from")
