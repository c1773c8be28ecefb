"""Things that exist already, as agents: an adapter turns assignments into what they understand, and changes nothing
about them. Each is imported only when the configuration asks for it.
"""

from __future__ import annotations

from ..config import AgentConfig
from .base import Adapter


def make(config: AgentConfig) -> Adapter:
    """The adapter that the configuration asks for. Opens nothing."""
    if config.adapter == "http":
        from .http import HttpAdapter

        return HttpAdapter(config)
    from .exec import ExecAdapter

    return ExecAdapter(config)
