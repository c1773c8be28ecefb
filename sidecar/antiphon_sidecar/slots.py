"""Which replica may have how many attempts out to which agent: windows, kept as `windows.py` decides. Pure; standard
library only.
"""

from __future__ import annotations

from collections.abc import Mapping

from .boxes import Link, Said, Seat
from .windows import Grant, settle, settled


class Slots:
    """The windows of all agents at all attached replicas."""

    def __init__(self, seats: Mapping[str, Seat]) -> None:
        self.links: list[Link] = []
        self.closed = False
        """True: nobody gets new slots."""
        self._seats = seats
        self._windows_sent = 0

    def grant(self, link: Link, seat_name: str) -> Grant:
        """The slots of an agent at a replica."""
        grant = link.grants.get(seat_name)
        if grant is None:
            grant = link.grants[seat_name] = Grant()
        return grant

    def said(self, link: Link) -> dict[str, Said]:
        """What a new stream says first of each agent that is present."""
        present = ((seat, self.grant(link, name)) for name, seat in self._seats.items() if seat.present)
        return {seat.name: Said(grant.generation, grant.slots, seat.arrival) for seat, grant in present}

    def restart(self, link: Link, said: Mapping[str, Said]) -> None:
        """The replica knows no window but those that were said. That of an agent which went meanwhile it forgets: no
        window would follow for it to acknowledge, and what it was allowed would be missing for good."""
        for name, seat in self._seats.items():
            grant = self.grant(link, name)
            known = said.get(name)
            if seat.present and known != (grant.generation, grant.slots, seat.arrival):
                link.windows[name] = (grant.generation, grant.slots)
            grant.allowed = max(grant.slots, known.slots if known else 0) if seat.present else 0
            self.settle(seat)

    def forget(self, seat: Seat) -> None:
        """The agent is gone, and replicas forget its windows with it."""
        for link in self.links:
            link.windows.pop(seat.name, None)
            grant = self.grant(link, seat.name)
            grant.slots = grant.allowed = 0

    def acknowledged(self, link: Link, seat_name: str, generation: int) -> None:
        """The replica keeps to a window."""
        grant = link.grants.get(seat_name)
        if grant and grant.acknowledge(generation):
            self.settle(self._seats[seat_name])

    def demanded(self, link: Link, seat_name: str, wanted: int) -> None:
        """The replica could use that many slots of an agent."""
        seat = self._seats.get(seat_name)
        if seat:
            self.grant(link, seat_name).wanted = wanted
            self.settle(seat)

    def give_turns(self) -> None:
        """Where replicas want more than there is, let the remainder go round; call once a second."""
        for seat in self._seats.values():
            grants = [self.grant(link, seat.name) for link in self._present()]
            if len(grants) > 1 and sum(grant.wanted for grant in grants) > self._capacity(seat):
                seat.turn += 1
                self.settle(seat)

    @property
    def unacknowledged(self) -> bool:
        """Whether a replica may still believe in a window that is larger than the one it was sent."""
        return any(grant.allowed != grant.slots for link in self.links for grant in link.grants.values())

    def settle(self, seat: Seat) -> None:
        """Send the windows of an agent that are due."""
        links = self._present()
        grants, capacity = [self.grant(link, seat.name) for link in links], self._capacity(seat)
        if not grants:
            return
        for index, slots in settle(grants, capacity, seat.turn):
            self._send(links[index], seat, grants[index], slots)
        seat.unsettled = not settled(grants, capacity, seat.turn)

    def settle_all(self) -> None:
        """Send all windows that are due."""
        for seat in self._seats.values():
            self.settle(seat)

    def away(self, link: Link, away: bool) -> None:
        """Whether a replica is gone, as the others say. One that is stalled would never acknowledge a smaller window:
        its slots are taken from it at once, and what it offers nevertheless comes back."""
        if link.away == away:
            return
        link.away = away
        for seat in self._seats.values():
            grant = self.grant(link, seat.name)
            if away and max(grant.slots, grant.allowed):
                grant.slots = grant.allowed = grant.wanted = 0
                self._send(link, seat, grant, 0)
        self.settle_all()

    def _send(self, link: Link, seat: Seat, grant: Grant, slots: int) -> None:
        self._windows_sent += 1
        grant.generation = self._windows_sent
        link.windows[seat.name] = (grant.generation, slots)
        link.wake()

    def _present(self) -> list[Link]:
        return [link for link in self.links if not link.away]

    def _capacity(self, seat: Seat) -> int:
        """Slots to divide: places, prefetch and what waits for its own calls, less what belongs to no replica now."""
        if not seat.present or seat.draining or self.closed:
            return 0
        held = len(seat.running) + seat.queued
        orphans = max(held - sum(self.grant(link, seat.name).out for link in self._present()), 0)
        return max(seat.concurrency + seat.prefetch + seat.waiting - orphans, 0)
