"""Loads gRPC without lines of its own between those of the log; to be imported before it.

Its core reads the variable once. It says of connections that fail what `detached` says, as text and several times.
Agents that are started here get the environment as it was.
"""

from __future__ import annotations

import os

_ours = "GRPC_VERBOSITY" not in os.environ
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc  # noqa: E402, F401

if _ours:
    del os.environ["GRPC_VERBOSITY"]
