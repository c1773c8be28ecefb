"""Started in place of an agent's or an adapter's command: ties the process to its sidecar, then becomes the command.

A sidecar that dies by SIGKILL cannot stop its agents, and one that is left over would fight its successor for the
socket. So the kernel is asked to send SIGTERM when the parent is gone. Linux only; elsewhere the command just runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Become `command`; exits 127 when there is no such program."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise SystemExit(1)  # it was gone before the kernel knew
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
