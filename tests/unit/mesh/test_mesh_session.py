"""What waits for a sidecar: in messages that it accepts, and never more than it leaves unread."""

from __future__ import annotations

import asyncio

import pytest
from antiphon.mesh.v1 import mesh_service_pb2 as mesh
from antiphon.v1 import agent_service_pb2, context_request_pb2
from antiphon_orchestrator.api.image import Image
from antiphon_orchestrator.engine.decide import Verdict
from antiphon_orchestrator.engine.events import AttemptEnded, AttemptOffered, Placement
from antiphon_orchestrator.engine.run import apply, start
from antiphon_orchestrator.engine.states import AttemptState
from antiphon_orchestrator.mesh import session as module
from antiphon_orchestrator.mesh.session import PendingOffer, Session
from antiphon_orchestrator.mesh.tokens import AttemptTokens

from tests.fakes.plans import Node, plan, submitted

MOST = 4 << 20


def session() -> Session:
    made = Session("demo", "s", "spiffe://d/ns/demo/sidecar/s", "i", 1, AttemptTokens(b"key"), lambda: 1)
    made.next_message()
    return made


def sizes(of: Session) -> list[int]:
    found = []
    while (message := of.next_message()) is not None:
        found.append(message.ByteSize())
    return found


def test_many_cancels_and_large_answers_leave_in_messages_that_are_accepted() -> None:
    one = session()
    for number in range(20_000):
        one.cancel("r" * 300 + str(number), "x" * 300)
    for number in range(200):
        response = agent_service_pb2.CallResponse(call_id=str(number))
        response.output.inline = b"x" * 65_536
        one.call_result(response)
        answer = context_request_pb2.ContextResponse(request_id=str(number))
        for _ in range(16):  # a page, as full as it gets
            answer.list.entries.add().value.inline = b"x" * 65_536
        one.context_response(answer)
    assert max(sizes(one)) < MOST


@pytest.mark.parametrize("flood", ["reports", "windows", "calls", "context"])
async def test_a_sidecar_that_does_not_read_is_not_read(flood: str) -> None:
    one = session()
    for number in range(module.UNANSWERED):
        if flood == "reports":
            one.unanswered += 1
            one.verdict(f"r/{number}", Verdict.GONE)
        elif flood == "windows":
            one.control.window_acks.add(agent="a")
        elif flood == "context":
            one.context_response(context_request_pb2.ContextResponse())
        else:
            one.call_result(agent_service_pb2.CallResponse())
    reading = asyncio.create_task(one.room())
    await asyncio.sleep(0)
    assert not reading.done()
    one.next_message()
    async with asyncio.timeout(5):
        await reading
    while one.next_message() is not None:
        pass
    assert one.unanswered == 0


async def test_a_stream_that_ends_waits_for_no_room() -> None:
    one = session()
    one.unanswered = module.UNANSWERED
    reading = asyncio.create_task(one.room())
    await asyncio.sleep(0)
    one.end()
    async with asyncio.timeout(5):
        await reading


@pytest.mark.proves("version skew of one minor")
def test_a_newer_sidecar_may_return_an_attempt_for_a_reason_that_is_not_known_here() -> None:
    image, request = Image.load(), mesh.AttachRequest()
    request.reports.add(attempt_id="r/t/0/1").returned.reason = 99  # type: ignore[assignment]
    image.check(image.methods["/antiphon.mesh.v1.MeshService/Attach"], request.SerializeToString())


def test_what_was_permitted_under_a_policy_epoch_that_is_over_does_not_go_out() -> None:
    one, taken_back = session(), list[PendingOffer]()
    one.take_back = lambda _, pending: taken_back.append(pending)
    one.policy_epoch = 2
    run = start("r", plan(Node()), submitted("r"), 1)
    for number, epoch in ((1, 1), (2, 2)):
        placement = Placement("a", "s/i/a", "text.work@1", b"", epoch)
        apply(run, AttemptOffered(0, 0, number, placement, 1, b"" if number == 1 else None), number)
        one.offer(PendingOffer(0, 1, run, run.tasks[0], number))
        message = one.next_message()
        assert message is not None
        assert [offer.policy_epoch for offer in message.offers] == ([] if epoch == 1 else [2])
        if epoch == 1:
            apply(run, AttemptEnded(0, 0, 1, AttemptState.RETURNED), 3)
    assert [pending.number for pending in taken_back] == [1]
