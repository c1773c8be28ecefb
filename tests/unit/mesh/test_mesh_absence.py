"""Who is gone is told from time that passed for us, never from a clock that was set or a process that stood still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from antiphon_orchestrator.admission import SchemaSet, Values
from antiphon_orchestrator.mesh.session import Session
from antiphon_orchestrator.mesh.sessions import MeshSettings, Sessions
from antiphon_orchestrator.mesh.tokens import AttemptTokens
from antiphon_orchestrator.placement.fleet import Fleet
from antiphon_orchestrator.policy import CedarPolicies

SECOND = 1_000_000


def test_a_stall_ends_no_stream_and_loses_no_absent_sidecar() -> None:
    time = 1_000 * SECOND
    nothing: Any = SimpleNamespace(changed=lambda *_: None)
    policy, tokens = CedarPolicies(), AttemptTokens(b"key")
    fleet = Fleet(policy, SchemaSet(Values()))
    sessions = Sessions(MeshSettings("r"), fleet, nothing, policy, nothing, tokens, nothing, nothing, lambda: time)
    here, away = (Session("demo", name, "p", name, 1, tokens, lambda: time) for name in ("here", "away"))
    sessions._sessions.update({"here": here, "away": away})
    sessions.close(away)
    due = sessions._absent["away"]
    for gap in (60 * SECOND, -3600 * SECOND):
        time += gap
        sessions.extend(gap)
        sessions._look_after(cast(Session, here), time)
        assert not here.ended
        assert sessions._absent["away"] - time == due - 1_000 * SECOND
