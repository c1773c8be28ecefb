"""`antiphon demo`: a compliance review of a Python environment by a whole mesh on this machine, with two crashes.

The programs it runs are those of examples/compliance (`compliance` here is that folder). Everything lives in one
temporary folder and in child processes of its own; nothing is left of either, unless asked for.
"""

from .command import main

__all__ = ["main"]
