"""Runs the command line and turns whatever happens into an exit code and, where something went wrong, one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from typer.exceptions import Abort, TyperException

from ..command import delegate
from . import output
from .app import app
from .problems import UNUSABLE, describe

INTERRUPTED = 130  # as shells report a program that SIGINT has ended


def main(words: Sequence[str]) -> int:
    """Carry out one command; never raises, unless a program it delegates to does."""
    delegated = delegate(words)
    if delegated is not None:
        return delegated
    try:
        code = app(list(words), prog_name="antiphon", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer swallows a KeyboardInterrupt and returns this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except TyperException as error:
        return _wrong_usage(error)
    except (Abort, KeyboardInterrupt):
        goes_on = "; a run that was submitted goes on, see: antiphon run list" if "run" in words[:1] else ""
        output.note(f"antiphon: interrupted{goes_on}")
        return INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except SystemExit as end:  # nothing else ends a command so: typer makes it of a broken pipe
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return _unread()
    except Exception as error:  # the last resort: everything else becomes one line, and bugs keep their traceback
        told = describe(error)
        print(told.json() if "--json" in words else output.visible(told.line()), file=sys.stderr)
        return told.exit_code


def _unread() -> int:
    """The reader of our output has gone, as `head` does: not a failure. What is buffered must not be tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _wrong_usage(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return UNUSABLE
    help_command = f"{context.command_path} --help" if context else "antiphon --help"
    print(f"antiphon: {error.format_message().rstrip('.')}; see: {help_command}", file=sys.stderr)
    return error.exit_code
