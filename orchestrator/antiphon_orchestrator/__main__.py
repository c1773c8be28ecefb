"""The entry point of the orchestrator's process."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """`antiphon orchestrator ARGUMENTS`; see command.py."""
    # structlog imports rich for a console renderer that a server never uses; in this process it is not there (4 MB).
    sys.modules["rich"] = None  # type: ignore[assignment]
    from .command import main as command

    return command(argv)


if __name__ == "__main__":
    raise SystemExit(main())
