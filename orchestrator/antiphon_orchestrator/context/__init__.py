"""Shared context: entries and claims of a namespace, over the store port.

`rules` and `index` are pure. `entries` and `claims` write by them, `reading` lists, watches and follows lineage,
`keeper` collects what time has ended; `shared` is all of it, as the API and the mesh use it.
"""

from .rules import Quota, Standing
from .shared import SharedContext

__all__ = ["Quota", "SharedContext", "Standing"]
