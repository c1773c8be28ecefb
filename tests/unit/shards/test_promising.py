"""What large fan-outs will still write is known from the moment their members are."""

from __future__ import annotations

from antiphon_orchestrator.shards import inputs as i
from antiphon_orchestrator.shards.promising import LARGE, MEMBER_BYTES
from shard_rig import Rig, instance

from tests.fakes.plans import Node, plan


def test_a_large_fan_out_promises_less_with_each_member_that_ends_and_nothing_in_the_end() -> None:
    rig = Rig()
    rig.fleet.attach(instance(slots=2 * LARGE))
    of = plan(Node(members=LARGE), Node(members=LARGE - 1))
    rig.tell(rig.submit("r1", of))
    assert rig.shard.promises.size() == LARGE * MEMBER_BYTES
    rig.tell(*[rig.report(f"r1/t0/{member}/1") for member in range(1, 11)])
    assert rig.shard.promises.size() == (LARGE - 10) * MEMBER_BYTES
    assert rig.recovered(lambda submitted: of).shard.promises.size() == (LARGE - 10) * MEMBER_BYTES
    rig.tell(i.Cancel("r1", "spiffe://antiphon.internal/ns/demo/client/tester", "enough", lambda run: None))
    assert rig.shard.promises.size() == 0
