"""An ordinary command-line program that blackens personal data. It knows nothing of Antiphon; a sidecar's exec adapter
keeps some of it running and hands each a line at a time.

Reads JSON lines {"id": "…", "text": "…"} and answers each with a line {"text": "…", "redactions": 2, "found":
["email"]}. `python redact.py [--journal FILE]`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

PATTERNS = {
    "key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----"
        r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bsk-[A-Za-z0-9_-]{20,}\b|\bpypi-[A-Za-z0-9_-]{32,}\b",
        re.DOTALL,
    ),
    "email": re.compile(r"[\w.+-]+(?:@| at | \[at\] )[\w-]+(?:(?:\.| dot )[\w-]+)+", re.IGNORECASE),
    # A plus or a parenthesis first: bare digits are far more often versions and dates.
    "phone": re.compile(r"(?:\+\d{1,3}[ .-]?|\(\d{2,5}\)[ .-]?)\d{2,4}(?:[ .-]?\d{2,4}){1,4}"),
}


def redact(text: str) -> dict[str, object]:
    """The text with each finding replaced by its kind in brackets, how many there were, and of which kinds."""
    found, total = [], 0
    for kind, pattern in PATTERNS.items():
        text, count = pattern.subn(f"[{kind}]", text)
        total += count
        if count:
            found.append(kind)
    return {"text": text, "redactions": total, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description="Redact personal data in JSON lines.")
    parser.add_argument("--journal", default="", help="a file that gets a line for each text")
    journal = parser.parse_args().journal
    for line in sys.stdin:
        document = json.loads(line)
        if journal:
            with open(journal, "a", encoding="utf-8") as file:
                file.write(f"text.redact\t{document.get('id', '')}\t{os.getpid()}\n")
        print(json.dumps(redact(document["text"])), flush=True)


if __name__ == "__main__":
    main()
