"""What the parts of one sidecar process share: who it is, what it holds, which agents are there.

The streams up (`upstream.py`), the sockets and adapters down (`agents.py`, `adapters/`) never meet; both act on
`inflight`, whose outboxes wake the other side.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from antiphon.v1 import error_pb2, registry_pb2
from antiphon_certs import Grants

from .boxes import Seat
from .checks import INLINE_LIMIT, mistakes_in_description
from .errors import Refused
from .inflight import Inflight
from .payloads import Payloads

log = logging.getLogger(__name__)


class Node:
    """One sidecar process. `now` is its only clock, monotonic, in seconds."""

    def __init__(self, namespace: str, grants: Grants, now: Callable[[], float] = time.monotonic) -> None:
        self.namespace = namespace
        self.grants = grants
        self.incarnation = secrets.token_hex(16)
        self.inflight = Inflight()
        self.inline_limit = INLINE_LIMIT
        self.descriptions: dict[str, registry_pb2.AgentDescription] = {}
        """Of the agents that are present, by name."""
        self.refusals: dict[str, Refused] = {}
        """Why an agent gets no work, by name; until it comes again, or a replica welcomes the sidecar anew."""
        self.now = now
        self.payloads = Payloads(now)
        self._generation = 0

    def next_generation(self) -> int:
        """The number of the next stream, over all replicas."""
        self._generation += 1
        return self._generation

    def announce(self, seat: Seat, description: registry_pb2.AgentDescription) -> None:
        """An agent is there. Raises `Refused` when its description breaks the contract or exceeds what is granted."""
        if description.name not in ("", seat.name):
            raise Refused(error_pb2.ERROR_REASON_NOT_GRANTED, what=f"agent {description.name} on {seat.name}'s socket")
        description.name = seat.name
        if mistakes := list(mistakes_in_description(description)):
            violations = [(f"hello.description.{field}", remedy) for field, remedy in mistakes]
            message = "; ".join(map(str, mistakes))[:4_096]
            raise Refused(
                error_pb2.ERROR_REASON_REQUEST_INVALID, message, violations=violations, field=violations[0][0]
            )
        if not self.grants.allows_agent(seat.name):
            raise Refused(error_pb2.ERROR_REASON_NOT_GRANTED, what=f"agent {seat.name}")
        for capability in description.capabilities:
            if not self.grants.allows_capability(capability.name):
                raise Refused(error_pb2.ERROR_REASON_NOT_GRANTED, what=f"capability {capability.name}")
        self.refusals.pop(seat.name, None)
        self.descriptions[seat.name] = description
        self.inflight.agent_came(seat, description.concurrency, description.prefetch, self.now())
        log.info("agent present", extra={"agent": seat.name, "runtime": description.runtime})

    def depart(self, seat: Seat, death: str = "") -> None:
        """An agent that was there is gone. `death`: how its process ended, where that is known."""
        if self.descriptions.pop(seat.name, None) is not None:
            self.inflight.agent_went(seat, self.now(), death)
            log.info("agent gone", extra={"agent": seat.name})

    def refuse(self, agent: str, refusal: Refused) -> None:
        """An orchestrator refused an agent: it is told, and so is the log."""
        if agent in self.descriptions:
            self.refusals[agent] = refusal
            self.inflight.seats[agent].wake()
            log.error("agent refused", extra={"agent": agent, "cause": str(refusal)})
