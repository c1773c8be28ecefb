"""What a sidecar holds: attempts without an outcome, and outcomes without a verdict. Pure.

Events come in as method calls with the time (monotonic seconds); what is to be sent comes out in the outboxes of the
links (one to each orchestrator replica) and seats (one for each agent), whose writers are woken and take from them. No
method blocks, no clock is read, and messages of the wire pass through as opaque objects.

The rules (protocol.md §5 and §8):

- An attempt is known by its id. A second offer of one that is held is ignored; if its outcome waits for a verdict, the
  outcome is sent again.
- Of each shard the highest epoch is remembered. Offers below it come back STALE_EPOCH. Reports go to the replica that
  claimed the shard last, whoever offered the attempt. A claim is answered by an inventory, then by the outcomes.
- An offer that is refused at the door was never held: no inventory names it, so its report is sent once, not kept.
  Every other outcome is kept until its verdict. When too many wait, or they are too large, windows close until half of
  that is gone.
- Once a policy epoch has been told for POLICY_GRACE, what was permitted under an older one is not begun: offers of it,
  and those that still wait for the agent, come back STALE_POLICY. A replica stops sending them far earlier.
- An agent is never working on more attempts than its concurrency. A handler that waits for its own calls gives up its
  place, and its agent's window grows by one meanwhile, so that parents cannot block their children.
- An attempt's time runs from the moment it is taken for the agent. At zero it fails TIMEOUT at once and its late result
  is ignored; but its place stays taken until the agent answers the cancel, or `LINGER` has passed.
- When an agent goes, what it was working on is LOST, what waited for it comes back. Whether it went without a word, or
  was draining, is told apart: of the first, an attempt may have been the cause.
- What is to be made alone is begun when no agent of this sidecar is working on anything, and nothing beside it. Who
  waits for its own calls works on nothing, or one of them could be waited for that is to be alone as well, or that
  waits behind who is. If it does not come about within PATIENCE, it comes back.

`attempts.TABLE` is the life of an attempt; `Inflight._move` is the only place that changes a state.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .attempts import TABLE, Attempt, Deliver, End, Event, State
from .boxes import Claim, Link, Said, Seat, pages
from .slots import Slots

ANNOUNCE_AFTER = 0.05
"""Seconds an attempt runs before a started report: most have their outcome sooner, and one message less."""
CANCEL_GRACE = 10.0
"""Seconds an agent has to answer a cancel before the attempt is CANCELLED without its answer."""
POLICY_GRACE = 1.5
"""Seconds after which nothing is begun that was permitted under an older policy epoch than the one told: with the way
of the news here less than the two that are promised."""
MOST_POLICIES = 16
"""Policy epochs told within the grace that are told apart; a later one takes the place, and the time, of the last."""
LINGER = 30.0
"""Seconds an agent may take to stop an attempt that has timed out before its place is given to another."""
PATIENCE = 30.0
"""Seconds for which agents begin nothing else so that an attempt can be made alone."""
MOST_OUTCOMES = 4_096
"""Outcomes without a verdict at which windows close."""
MOST_BYTES = 128 << 20
"""Bytes of such outcomes at which they close as well: a graph that an agent answers with has up to 256 KiB."""
MOST_CALLS = 64
"""Calls one attempt may have waiting."""


class Keeper(Protocol):
    """Keeps outcomes for the next life of the sidecar."""

    def keep(self, attempt: Attempt) -> None:
        """An agent has answered."""
        ...

    def forget(self, attempt: Attempt) -> None:
        """The answer has its verdict."""
        ...


class Inflight:
    """All attempts of one sidecar process."""

    def __init__(self) -> None:
        self.held: dict[str, Attempt] = {}
        self.outcomes = 0
        self.outcome_bytes = 0
        self.keeper: Keeper | None = None
        self.draining = False
        self.policy_floor = 0
        """Attempts that were permitted under a lower policy epoch are not begun."""
        self._policies: deque[tuple[float, int]] = deque()  # when which epoch becomes the floor
        self.seats: dict[str, Seat] = {}
        self.slots = Slots(self.seats)
        self._claims: dict[int, Claim] = {}
        self._young: deque[tuple[float, Attempt]] = deque()  # accepted within ANNOUNCE_AFTER
        self._old: dict[str, Attempt] = {}  # held longer than that
        self._last_turn = 0.0
        self._alone: deque[Attempt] = deque()  # to be made alone, in no queue: those under way, then who is next

    # ---- agents

    def add_seat(self, name: str, wake: Callable[[], None]) -> Seat:
        """A configured agent; it is not present yet."""
        seat = self.seats[name] = Seat(name, wake)
        return seat

    def agent_came(self, seat: Seat, concurrency: int, prefetch: int, now: float) -> None:
        """The agent is there. If it was there before, what it had is lost first."""
        if seat.present:
            self.agent_went(seat, now)
        seat.present, seat.draining = True, False
        seat.arrival += 1
        seat.concurrency, seat.prefetch = concurrency, prefetch
        for link in self.slots.links:
            link.agents[seat.name] = True
            link.wake()
        self.slots.settle(seat)

    def agent_went(self, seat: Seat, now: float, death: str = "") -> None:
        """The agent is gone: LOST is what it was working on, the rest comes back. `death`: how its process ended."""
        seat.present = False
        event = Event.AGENT_LEFT if seat.draining or self.draining else Event.AGENT_GONE
        for attempt in list(seat.running.values()):
            attempt.death = death
            self._finish(attempt, event, now)
        self._send_back(seat, event, now)
        seat.lingering.clear()
        seat.cancels.clear()
        seat.losses.clear()
        seat.pieces.clear()
        for link in self.slots.links:
            link.agents[seat.name] = False
            link.windows.pop(seat.name, None)
            grant = self.slots.grant(link, seat.name)
            grant.slots = grant.allowed = 0  # the replica forgets the window with the agent
            link.wake()

    def agent_drains(self, seat: Seat, now: float) -> None:
        """The agent finishes what it has and gets no more."""
        seat.draining = True
        self._send_back(seat, Event.DRAINED, now)
        self.slots.settle(seat)

    def drain(self, now: float) -> None:
        """The sidecar finishes what its agents are working on and takes no more."""
        self.draining = self.slots.closed = True
        for seat in self.seats.values():
            self.agent_drains(seat, now)
        for link in self.slots.links:
            link.drain = True
            link.wake()

    def take(self, seat: Seat, now: float, most: int, most_bytes: int) -> list[Attempt]:
        """Attempts to write to the agent now, as many as have a place and fit one message; their time runs from now."""
        taken: list[Attempt] = []
        if not seat.present:
            return taken
        if self._works_alone():
            return taken
        if (following := self._next_alone()) is not None:
            return self._take_alone(following, seat, now)
        queue = seat.queue
        free = min(seat.concurrency - seat.active, most)
        while free > 0 and queue:
            attempt = queue[0]
            if attempt.state is not State.QUEUED:  # it was cancelled or came too late while it waited
                queue.popleft()
                continue
            most_bytes -= attempt.size
            if most_bytes < 0 and taken:
                break
            queue.popleft()
            self._begin(seat, attempt, now)
            taken.append(attempt)
            free -= 1
        return taken

    def ended(self, seat: Seat, attempt_id: str, result: Any, size: int, now: float) -> None:
        """The agent answered an attempt. An answer that is late, unknown or another agent's is ignored."""
        attempt = seat.running.get(attempt_id)
        if attempt is None:
            if seat.lingering.pop(attempt_id, None) is not None:
                seat.wake()
            return
        attempt.result, attempt.size = result, size
        self._finish(attempt, Event.ENDED, now)
        if self.keeper is not None:
            self.keeper.keep(attempt)
        if seat.queued:
            seat.wake()

    def progressed(self, seat: Seat, attempt_id: str, update: Any) -> None:
        """The agent said how far it is; only the latest word of an attempt is sent, and none is kept."""
        attempt = seat.running.get(attempt_id)
        link = attempt and self._owner(attempt)
        if attempt and link:
            link.progress[attempt_id] = (attempt, update)
            link.wake()

    def emitted(self, seat: Seat, attempt_id: str, piece: Any) -> None:
        """The agent sent a piece of output. It leaves with whatever leaves next, at the latest with the next sweep."""
        attempt = seat.running.get(attempt_id)
        link = attempt and self._owner(attempt)
        if link:
            link.pieces.add(attempt_id, piece)

    def vouched(self, seat: Seat, attempt_id: str, token: bytes) -> Attempt | None:
        """The attempt the agent is working on, if it knows its token. Raises `KeyError` when there is none."""
        attempt = seat.running[attempt_id]
        return attempt if hmac.compare_digest(attempt.token, token) else None

    def called(self, attempt: Attempt, call_id: str, request: Any, size: int, deliver: Deliver) -> bool:
        """A handler asks for a capability and waits. False when it has too many calls waiting."""
        calls = attempt.calls = attempt.calls or {}
        earlier = calls.get(call_id)
        if earlier is None and len(calls) >= MOST_CALLS:
            return False
        first = not calls
        calls[call_id] = (request, size, deliver)
        if earlier is not None:
            earlier[2](None)
        if first and attempt.seat:
            attempt.seat.waiting += 1
            attempt.seat.wake()
            if self._alone:
                self._wake_all()
            self.slots.settle(attempt.seat)
        link = self._owner(attempt)
        if link:
            link.calls.append((request, size))
            link.wake()
        return True

    def gave_up(self, attempt: Attempt, call_id: str) -> None:
        """The one who waited for a call has left; its outcome is not delivered."""
        self.answered(attempt.attempt_id, call_id, None)

    def asked(self, attempt: Attempt, request_id: str, request: Any, size: int, deliver: Deliver) -> bool:
        """A handler asks shared context and waits, in its place: the answer is near. False when too many wait."""
        asks = attempt.asks = attempt.asks or {}
        earlier = asks.get(request_id)
        if earlier is None and len(asks) >= MOST_CALLS:
            return False
        asks[request_id] = (request, size, deliver)
        if earlier is not None:
            earlier[2](None)
        link = self._owner(attempt)
        if link:
            link.asks.append((request, size))
            link.wake()
        return True

    def found(self, attempt_id: str, shard: int, seat_name: str, result: Any, size: int, busy: float) -> Attempt | None:
        """An outcome that a former life of this sidecar has left, before any stream: it waits for its verdict like one
        of this life. None when it is there already."""
        if attempt_id in self.held:
            return None
        attempt = self.held[attempt_id] = Attempt(attempt_id, shard, seat_name)
        attempt.result, attempt.size, attempt.busy = result, size, busy
        attempt.end = self._move(attempt, Event.FOUND)
        self._waits(attempt)
        return attempt

    # ---- replicas

    def attach(self, wake: Callable[[], None]) -> Link:
        """A stream to a replica is about to say hello, the first of this link."""
        link = Link(wake)
        self.slots.links.append(link)
        self.slots.settle_all()
        return link

    def hello(self, link: Link) -> dict[str, Said]:
        """What a new stream says first of each agent that is present."""
        return self.slots.said(link)

    def welcomed(self, link: Link, said: dict[str, Said]) -> None:
        """The new stream is the link's stream from now on. Of the outbox only what has changed since `said` is kept;
        claims refill it.
        """
        link.clear()
        link.drain = self.draining
        for name, seat in self.seats.items():
            known = said.get(name)
            if seat.present != (known is not None) or (known is not None and known.arrival != seat.arrival):
                link.agents[name] = seat.present
        self.slots.restart(link, said)
        link.wake()

    def detach(self, link: Link) -> None:
        """The stream is gone and none has taken its place. Attempts are kept for whoever claims their shards."""
        self.slots.links.remove(link)
        for shard, claim in self._claims.items():
            if claim.link is link:
                self._claims[shard] = Claim(claim.epoch, None)
        for attempt in self.held.values():
            if attempt.link is link:
                attempt.link = attempt.grant = None
        self.slots.settle_all()

    def claim(self, link: Link, claims: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """The replica has taken shards: (shard, epoch). Older claims are ignored, the others answered. Returns those
        that were ignored, with the epoch that is known: (shard, epoch, newest)."""
        ignored: list[tuple[int, int, int]] = []
        answers: dict[int, tuple[list[Attempt], list[Attempt]]] = {}
        for shard, epoch in claims:
            known = self._claims.get(shard)
            if known is None or epoch >= known.epoch:
                self._claims[shard] = Claim(epoch, link)
                answers[shard] = ([], [])
            else:
                ignored.append((shard, epoch, known.epoch))
        for attempt in self.held.values():
            answer = answers.get(attempt.shard)
            if answer is None:
                continue
            answer[attempt.state is State.REPORTED].append(attempt)
            if attempt.state is not State.REPORTED:
                self._adopt(attempt, link)
        for shard, (open_attempts, reported) in answers.items():
            link.inventories.extend(pages(shard, self._claims[shard].epoch, open_attempts, reported))
            link.reports.extend(reported)
            for attempt in open_attempts:
                if attempt.announced:
                    link.started.append(attempt)
                link.calls.extend((request, size) for request, size, _ in (attempt.calls or {}).values())
                link.asks.extend((request, size) for request, size, _ in (attempt.asks or {}).values())
        self.slots.settle_all()  # what had no replica has one now
        link.wake()
        return ignored

    def offer(
        self, link: Link, seat_name: str, attempt_id: str, shard: int, epoch: int,
        assignment: Any, token: bytes, size: int, timeout: float | None, now: float, policy_epoch: int = 0,
        alone: bool = False,
    ) -> None:  # fmt: skip
        """The replica offers an attempt; `size` is that of its input in bytes, `timeout` in seconds.

        `policy_epoch` is that of the decision that permitted it; one that does not say is as old as can be. `alone`:
        nothing else is to be under way here meanwhile.
        """
        claim = self._claims.get(shard)
        if claim is None or claim.epoch < epoch or (claim.link is None and claim.epoch == epoch):
            self._claims[shard] = Claim(epoch, link)
        elif epoch < claim.epoch:
            self._refuse(link, seat_name, attempt_id, shard, End.STALE_EPOCH)
            return
        held = self.held.get(attempt_id)
        if held is not None:
            self._move(held, Event.OFFERED)
            if held.state is State.REPORTED:
                link.reports.append(held)
                link.wake()
            return
        seat = self.seats.get(seat_name)
        if seat is None or not seat.present:
            self._refuse(link, seat_name, attempt_id, shard, End.AGENT_GONE)
            return
        if self.draining or seat.draining:
            self._refuse(link, seat_name, attempt_id, shard, End.DRAINING)
            return
        if policy_epoch < self.policy_floor:
            self._refuse(link, seat_name, attempt_id, shard, End.STALE_POLICY)
            return
        grant = link.grants.get(seat_name)
        if grant is None or grant.out >= grant.allowed:
            self._refuse(link, seat_name, attempt_id, shard, End.NO_SLOT)
            return
        attempt = Attempt(attempt_id, shard, seat_name)
        attempt.seat, attempt.link, attempt.grant = seat, link, grant
        attempt.assignment, attempt.token, attempt.size = assignment, token, size
        attempt.policy_epoch = policy_epoch
        if timeout is not None:
            attempt.timeout, attempt.deadline = timeout, now + timeout
        grant.out += 1
        self._move(attempt, Event.OFFERED)
        self.held[attempt_id] = attempt
        self._young.append((now, attempt))
        seat.queued += 1
        if alone:
            attempt.alone, attempt.started = True, now
            self._alone.append(attempt)
            seat.wake()
            return
        seat.queue.append(attempt)
        if seat.queued == 1:
            seat.wake()

    def policy(self, epoch: int, now: float) -> None:
        """A replica says which policy epoch is in force; one that is not newer than another's word is old news."""
        newest = self._policies[-1][1] if self._policies else self.policy_floor
        if epoch <= newest:
            return
        due = now + POLICY_GRACE
        if len(self._policies) >= MOST_POLICIES:
            due, _ = self._policies.pop()
        self._policies.append((due, epoch))

    def cancel(self, attempt_id: str, reason: str, now: float) -> None:
        """The replica wants an attempt stopped. One that has ended is left alone: its outcome was quicker."""
        attempt = self.held.get(attempt_id)
        if attempt is None or attempt.state is State.REPORTED or attempt.cancelled is not None:
            return
        attempt.cancelled = reason
        if attempt.state is State.QUEUED:
            self._finish(attempt, Event.CANCELLED, now)
            return
        self._move(attempt, Event.CANCELLED)
        grace = now + CANCEL_GRACE
        attempt.deadline = grace if attempt.deadline is None else min(attempt.deadline, grace)
        self._old[attempt_id] = attempt  # the sweep watches its new deadline
        self._tell_cancel(attempt, reason)

    def verdict(self, attempt_id: str) -> None:
        """The owner has committed what it made of an outcome: forget it."""
        attempt = self.held.get(attempt_id)
        if attempt is None or attempt.state is not State.REPORTED:
            return
        del self.held[attempt_id]
        self._move(attempt, Event.VERDICT)
        if attempt.spooled is not None and self.keeper is not None:
            self.keeper.forget(attempt)
        self.outcomes -= 1
        self.outcome_bytes -= attempt.size
        if self.slots.closed and self._load <= 0.5 and not self.draining:
            self.slots.closed = False
            self.slots.settle_all()

    def answered(self, attempt_id: str, call_id: str, response: Any) -> None:
        """A call has its outcome; None when nobody waits any more. One of an attempt that has ended is dropped."""
        attempt = self.held.get(attempt_id)
        waiting = attempt.calls.pop(call_id, None) if attempt and attempt.calls else None
        if not attempt or not waiting:
            return
        if not attempt.calls and attempt.seat:
            attempt.seat.waiting -= 1
            self.slots.settle(attempt.seat)
        waiting[2](response)

    def call_emitted(self, attempt_id: str, call_id: str, piece: Any) -> None:
        """A piece of what a call is making has come; it is dropped when nobody waits for the call any more."""
        attempt = self.held.get(attempt_id)
        if attempt and attempt.seat and attempt.calls and call_id in attempt.calls:
            attempt.seat.pieces.add((attempt_id, call_id), piece)
            attempt.seat.wake()

    def told(self, attempt_id: str, request_id: str, response: Any) -> None:
        """Shared context has answered. An answer to an attempt that has ended is dropped."""
        attempt = self.held.get(attempt_id)
        waiting = attempt.asks.pop(request_id, None) if attempt and attempt.asks else None
        if waiting:
            waiting[2](response)

    def claim_lost(self, attempt_id: str, loss: Any) -> None:
        """A claim of an attempt is not its own any more: its agent is told."""
        attempt = self.held.get(attempt_id)
        if attempt is not None and attempt.state is State.STARTED and attempt.seat:
            attempt.seat.losses.append(loss)
            attempt.seat.wake()

    # ---- time

    def sweep(self, now: float) -> None:
        """Everything that time brings about; call every `ANNOUNCE_AFTER`."""
        while self._policies and now >= self._policies[0][0]:
            self.policy_floor = self._policies.popleft()[1]
            for seat in self.seats.values():
                self._send_back_older(seat, now)
        while self._young and self._young[0][0] <= now - ANNOUNCE_AFTER:
            attempt = self._young.popleft()[1]
            if attempt.state is State.QUEUED or attempt.state is State.STARTED:
                self._old[attempt.attempt_id] = attempt
        for attempt in list(self._old.values()):
            if attempt.state is State.REPORTED or attempt.state is State.ABSENT:
                del self._old[attempt.attempt_id]
            elif attempt.deadline is not None and now >= attempt.deadline:
                self._expire(attempt, now)
            elif attempt.state is State.STARTED and not attempt.announced and now - attempt.started >= ANNOUNCE_AFTER:
                attempt.announced = True
                link = self._owner(attempt)
                if link:
                    link.started.append(attempt)
                    link.wake()
        if (following := self._next_alone()) is not None and not self._works_alone():
            if now - following.started >= PATIENCE:
                for attempt in [attempt for attempt in self._alone if attempt.state is State.QUEUED]:
                    self._finish(attempt, Event.CROWDED, now)
            else:
                self._wake_all()  # what lingered at an agent may be over
        for link in self.slots.links:
            if link.pieces:
                link.wake()
        if now - self._last_turn >= 1.0:
            self._last_turn = now
            self.slots.give_turns()
        for seat in self.seats.values():
            for attempt_id in [key for key, until in seat.lingering.items() if now >= until]:
                del seat.lingering[attempt_id]
                seat.wake()
            if seat.unsettled:
                self.slots.settle(seat)

    def beat(self) -> None:
        """Tell every replica that the sidecar is there."""
        for link in self.slots.links:
            link.alive = True
            link.wake()

    @property
    def open_attempts(self) -> int:
        """Attempts held without an outcome."""
        return len(self.held) - self.outcomes

    # ---- inside

    @property
    def _load(self) -> float:
        """What outcomes without a verdict take, as a share of what they may take until windows close."""
        return max(self.outcomes / MOST_OUTCOMES, self.outcome_bytes / MOST_BYTES)

    def _waits(self, attempt: Attempt) -> None:
        """An outcome waits for its verdict from now on."""
        self.outcomes += 1
        self.outcome_bytes += attempt.size
        if self._load > 1 and not self.slots.closed:
            self.slots.closed = True
            self.slots.settle_all()

    def _move(self, attempt: Attempt, event: Event) -> End:
        attempt.state, end = TABLE[attempt.state, event]
        return end

    def _finish(self, attempt: Attempt, event: Event, now: float) -> None:
        """Give an attempt its outcome, free its place and slot, and send its report."""
        seat = attempt.seat
        assert seat is not None
        if attempt.state is State.STARTED:
            del seat.running[attempt.attempt_id]
            attempt.busy = now - attempt.started
            if attempt.calls:
                seat.waiting -= 1
                seat.unsettled = True
        else:
            seat.queued -= 1
        attempt.end = self._move(attempt, event)
        if self._alone:
            self._after_alone(attempt, now)
        if len(seat.queue) > 2 * seat.queued + 64:
            seat.queue = deque(other for other in seat.queue if other.state is State.QUEUED)
        if attempt.grant is not None:
            attempt.grant.out -= 1
        else:
            seat.unsettled = True  # a slot that belonged to no replica is free
        calls, attempt.calls = attempt.calls, None
        asks, attempt.asks = attempt.asks, None
        attempt.seat = attempt.link = attempt.grant = attempt.assignment = attempt.reads = None
        if attempt.result is None:
            attempt.size = 0  # that of its input was meant, which is gone
        if calls or asks:
            for _, _, deliver in (*(calls or {}).values(), *(asks or {}).values()):
                deliver(None)
        claim = self._claims.get(attempt.shard)
        if claim and claim.link:
            claim.link.reports.append(attempt)
            claim.link.wake()
        self._waits(attempt)

    def _begin(self, seat: Seat, attempt: Attempt, now: float) -> None:
        seat.queued -= 1
        self._move(attempt, Event.TAKEN)
        attempt.started = now
        attempt.deadline = None if attempt.timeout is None else now + attempt.timeout
        seat.running[attempt.attempt_id] = attempt

    def _works_alone(self) -> bool:
        """Whether an attempt that is made alone is under way, and does not wait for its own calls."""
        return any(attempt.state is State.STARTED and not attempt.calls for attempt in self._alone)

    def _next_alone(self) -> Attempt | None:
        """The next one to be made alone."""
        return next((attempt for attempt in self._alone if attempt.state is State.QUEUED), None)

    def _take_alone(self, following: Attempt, seat: Seat, now: float) -> list[Attempt]:
        if following.seat is not seat or any(other.active for other in self.seats.values()):
            return []
        self._begin(seat, following, now)
        following.announced = True  # at once: that it had begun is what a death is judged by
        if (link := self._owner(following)) is not None:
            link.started.append(following)
            link.wake()
        return [following]

    def _after_alone(self, ended: Attempt, now: float) -> None:
        """An attempt has ended: the next one that is to be alone may begin, or everybody else."""
        if ended.alone:
            self._alone.remove(ended)
            if (following := self._next_alone()) is not None:
                following.started = now
        self._wake_all()

    def _wake_all(self) -> None:
        for seat in self.seats.values():
            seat.wake()

    def _expire(self, attempt: Attempt, now: float) -> None:
        seat = attempt.seat
        assert seat is not None
        if attempt.state is State.STARTED:
            if attempt.cancelled is None:
                self._tell_cancel(attempt, "timeout")
            if not attempt.calls:
                seat.lingering[attempt.attempt_id] = now + LINGER
        self._finish(attempt, Event.EXPIRED, now)
        if attempt.cancelled is not None and attempt.end is End.TIMEOUT:
            attempt.end = End.CANCELLED

    def _tell_cancel(self, attempt: Attempt, reason: str) -> None:
        assert attempt.seat is not None
        attempt.seat.cancels.append((attempt.attempt_id, reason))
        attempt.seat.wake()

    def _send_back(self, seat: Seat, event: Event, now: float) -> None:
        queue, seat.queue = seat.queue, deque()
        for attempt in (*queue, *[attempt for attempt in self._alone if attempt.seat is seat]):
            if attempt.state is State.QUEUED:
                self._finish(attempt, event, now)

    def _send_back_older(self, seat: Seat, now: float) -> None:
        for attempt in (*seat.queue, *[attempt for attempt in self._alone if attempt.seat is seat]):
            if attempt.state is State.QUEUED and attempt.policy_epoch < self.policy_floor:
                self._finish(attempt, Event.POLICY_CHANGED, now)

    def _refuse(self, link: Link, seat_name: str, attempt_id: str, shard: int, end: End) -> None:
        refusal = Attempt(attempt_id, shard, seat_name)
        refusal.end = end
        link.reports.append(refusal)
        link.wake()

    def _owner(self, attempt: Attempt) -> Link | None:
        claim = self._claims.get(attempt.shard)
        return claim.link if claim else None

    def _adopt(self, attempt: Attempt, link: Link) -> None:
        if attempt.link is not link:
            if attempt.grant is not None:
                attempt.grant.out -= 1
            attempt.link, attempt.grant = link, self.slots.grant(link, attempt.seat_name)
            attempt.grant.out += 1
