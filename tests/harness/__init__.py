"""The product as real processes: one small class for each, on ports of the system's choice and short paths.

What is started here is ended here, by its own pid. Waiting is for a state with a limit, never for a time.
"""

from .authority import Ca
from .journal import Entry, journal_of
from .mesh import AGENT, Mesh
from .orchestrator import OrchestratorProcess
from .process import Process
from .sidecar import SidecarProcess
from .waiting import LIMIT, eventually

__all__ = [
    "AGENT",
    "LIMIT",
    "Ca",
    "Entry",
    "Mesh",
    "OrchestratorProcess",
    "Process",
    "SidecarProcess",
    "eventually",
    "journal_of",
]
