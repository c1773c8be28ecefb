"""What can go wrong for a user, as one line with a remedy and an exit code.

Every exception ends in `describe`; what it does not know is a bug of ours, and its traceback goes to a file.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import traceback
from dataclasses import dataclass

from .._errors import AntiphonError, SetupError, Unavailable
from .._reasons import AccessDenied, RequestInvalid

_CAUSE = re.compile(r"ipv[46]:(\S+?): (?:Failed to connect to remote host: )?(?:connect: )?(.*)", re.DOTALL)

_POINTING = "; see the field violations"

FAILED = 1
"""The server refused, or the work did not succeed."""
UNUSABLE = 2
"""The command was written wrongly, or this machine lacks something."""


class Problem(Exception):
    """An expected failure, in words for the user; `remedy` completes "run: …" or is a sentence of its own."""

    def __init__(self, message: str, remedy: str = "", *, exit_code: int = UNUSABLE) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of an exception."""

    message: str
    exit_code: int
    reason: str = ""
    """The reason of the error registry, where a server gave one."""
    remedy: str = ""
    """What to do: a sentence, or the name of the registry's remedy."""

    text: str = ""
    """What people read in place of `message`, which says all on one line."""

    def line(self) -> str:
        """For people; of several mistakes each has a line of its own."""
        sentence = self.remedy if self.remedy and not self.remedy.isupper() else ""
        return f"antiphon: {self.text or self.message}{'; ' if sentence else ''}{sentence}"

    def json(self) -> str:
        """For programs."""
        return json.dumps({"error": {"message": self.message, "reason": self.reason, "remedy": self.remedy}})


def describe(error: BaseException) -> Description:
    """The words for an exception. Every exception has some."""
    if isinstance(error, Problem):
        return Description(error.message, error.exit_code, remedy=error.remedy)
    if isinstance(error, Unavailable):
        return _unreachable(str(error))
    if isinstance(error, AccessDenied):  # of its kind of caller; what policy denies is another error
        remedy = "call as an operator, for example with: --profile operator"
        return Description(str(error), FAILED, error.reason, remedy)
    if isinstance(error, AntiphonError):
        code = UNUSABLE if isinstance(error, SetupError) else FAILED
        return Description(str(error), code, error.reason, error.remedy or "", _with_mistakes(error))
    if _is_certs_error(error):
        return Description(str(error), UNUSABLE)
    if isinstance(error, TimeoutError):
        return Description("no answer in time", UNUSABLE, remedy="try again")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Description(f"{where}{error.strerror or error}", UNUSABLE)
    return Description(f"a bug in this command: {type(error).__name__}: {error}", FAILED, remedy=_keep(error))


def _with_mistakes(error: AntiphonError) -> str:
    """A refusal and the mistakes it names, without the words that only point to them; "" where it names none."""
    mistakes = [": ".join(filter(None, (one.field, one.message))) for one in error.violations]
    if len(mistakes) == 1 and isinstance(error, RequestInvalid):
        return mistakes[0]
    heading = error.message.removesuffix(_POINTING)
    return ("; " if len(mistakes) == 1 else "\n").join((heading, *mistakes)) if mistakes else ""


def _unreachable(text: str) -> Description:
    """gRPC tells the cause at the end of a long story, after the address it tried last."""
    if "CERTIFICATE_VERIFY_FAILED" in text:
        message = "the server's certificate is not of the authority that this profile trusts"
        return Description(message, UNUSABLE, "UNAVAILABLE", "is the address right? If so, join again with a new token")
    cause = _CAUSE.search(text)
    message = f"no orchestrator answers: {cause[1]}: {cause[2]}" if cause else f"no orchestrator answers: {text}"
    remedy = "is it running, and is the address right? To start one here, run: antiphon dev"
    return Description(message, UNUSABLE, "UNAVAILABLE", remedy)


def _is_certs_error(error: BaseException) -> bool:
    # Its package may be absent; an exception of it cannot come from an absent package.
    module = sys.modules.get("antiphon_certs")
    return module is not None and isinstance(error, module.CertsError)


def _keep(error: BaseException) -> str:
    """Keep the traceback where the user can find it; says where."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get("ANTIPHON_DEBUG"):
        return f"the traceback:\n{text}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="antiphon-", suffix=".log", delete=False) as file:
            file.write(text)
    except OSError:
        return "to see the traceback, run it again with ANTIPHON_DEBUG=1"
    return f"the traceback is in {file.name}; please report it"
