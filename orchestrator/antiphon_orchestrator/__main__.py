"""The entry point of the orchestrator's process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """`antiphon orchestrator ARGUMENTS`; see command.py."""
    # structlog imports rich for a console renderer that a server never uses; in this process it is not there (4 MB).
    sys.modules["rich"] = None  # type: ignore[assignment]
    # gRPC's core writes of handshakes that fail, between the lines of the log; it reads this once, when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from .command import main as command

    return command(argv)


if __name__ == "__main__":
    raise SystemExit(main())
