"""The command `antiphon`: decides which program this process becomes, before anything heavy is imported.

A sidecar and an orchestrator live long and are counted by their memory, so they must not carry what only the command
line needs (typer, rich); they are recognised here by their first two words. Whatever the servers' package brings is
imported by name: the SDK never depends on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

INSTALL_SERVER = "in a checkout of Antiphon, run: pip install ./sdk/python ."
"""What to do where the server package is missing: it is on no registry."""

DELEGATED = {
    ("orchestrator", "serve"): ("antiphon_orchestrator.__main__", "Run an orchestrator replica until it is stopped."),
    ("orchestrator", "check"): ("antiphon_orchestrator.__main__", "Check its configuration and say what holds."),
    ("orchestrator", "health"): ("antiphon_orchestrator.__main__", "Ask a running orchestrator whether it serves."),
    ("sidecar", "run"): ("antiphon_sidecar.__main__", "Run a sidecar beside agents; agent commands follow after --."),
    ("sidecar", "check"): ("antiphon_sidecar.__main__", "Check its configuration, identity and reachability."),
    ("sidecar", "health"): ("antiphon_sidecar.__main__", "Ask a running sidecar whether it serves."),
    ("dev",): ("antiphon_orchestrator.dev", "Run a whole mesh on this machine, for development."),
    ("demo",): (
        "antiphon_orchestrator.demo",
        "Review the packages of this Python environment, with crashes on the way.",
    ),
}
"""Commands that other programs carry out: their module, and what they do. Its `main(arguments) -> exit code` gets what
follows the first word."""


def delegate(words: Sequence[str]) -> int | None:
    """Become the program that `words` name, and return its exit code; None when they name none."""
    for command, (module, _) in DELEGATED.items():
        if tuple(words[: len(command)]) == command:
            try:
                program = import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not module.startswith(error.name):
                    raise  # it is there, and something it needs is not
                print(
                    f"antiphon: `antiphon {' '.join(command)}` needs the server package; {INSTALL_SERVER}",
                    file=sys.stderr,
                )
                return 2
            # The word that chose the program is gone; a second word is that program's own command.
            code: int = program.main(list(words[1:]))
            return code
    return None


def main() -> int:
    """The entry point of the console script."""
    words = sys.argv[1:]
    if words[:1] not in (["orchestrator"], ["sidecar"]):
        # gRPC's core writes to stderr what a command says better in one line. Its library reads this once, when loaded.
        # The two that are excepted do so themselves, also where they are started without this.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    code = delegate(words)  # before the import below: that is the point
    if code is not None:
        return code
    try:
        from antiphon.cli.main import main as command_line
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "yaml"):
            raise
        how = 'in a checkout of Antiphon, run: pip install "./sdk/python[cli]"'
        print(f"antiphon: the command needs a few more packages; {how}", file=sys.stderr)
        return 2
    return command_line(words)


if __name__ == "__main__":
    raise SystemExit(main())
