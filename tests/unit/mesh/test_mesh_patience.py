"""What an orchestrator waits for, and how long those it waits for may take."""

from __future__ import annotations

from datetime import timedelta

from antiphon_orchestrator.mesh.sessions import MeshSettings
from antiphon_sidecar.backoff import backoff


def test_a_sidecar_that_was_alone_for_long_is_back_before_its_attempts_are_given_up() -> None:
    """It may just have dialled in vain when its orchestrator came, and needs some time to be welcomed."""
    settings = MeshSettings("r")
    patience = min(settings.adoption_window, settings.reattach_grace)
    assert max(timedelta(seconds=backoff(failures)) for failures in range(100)) < patience / 2
