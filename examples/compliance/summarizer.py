"""An ordinary HTTP service that summarizes texts. It knows nothing of Antiphon; a sidecar's http adapter fronts it.

POST /summarize {"directory": "…", "description": "…"} answers {"summary": "…"}: the sentences of the description that
share most words with the others (TextRank), in their own order. It takes whatever it is sent, and notes in its journal
which fields those were. `python summarizer.py --port 9000 [--journal FILE]`; port 0 lets the system choose, and the
first line of output says which.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log

LONGEST_BODY = 1 << 20
LONGEST_SUMMARY = 320
MOST_SENTENCES = 150
ROUNDS = 20
JOURNAL = ""


def summarize(text: str) -> str:
    """The most central sentences of a text in Markdown or reStructuredText; empty when it has no prose."""
    sentences = prose(text)[:MOST_SENTENCES]
    bags = [set(re.findall(r"[a-z]{3,}", sentence.lower())) for sentence in sentences]
    weights = [
        [similarity(one, other) if i != j else 0.0 for j, other in enumerate(bags)] for i, one in enumerate(bags)
    ]
    outgoing = [sum(row) or 1.0 for row in weights]
    rank = [1.0] * len(sentences)
    for _ in range(ROUNDS):
        rank = [
            0.15 + 0.85 * sum(weights[j][i] / outgoing[j] * rank[j] for j in range(len(rank))) for i in range(len(rank))
        ]
    # What stands first introduces the rest.
    best = sorted(range(len(rank)), key=lambda i: -rank[i] * (2.0 if i == 0 else 1.0))
    chosen: list[int] = []
    for index in best:
        if sum(len(sentences[i]) + 1 for i in [*chosen, index]) <= LONGEST_SUMMARY:
            chosen.append(index)
    return " ".join(sentences[i] for i in sorted(chosen))


def similarity(one: set[str], other: set[str]) -> float:
    return len(one & other) / (log(len(one) + 1) + log(len(other) + 1)) if one and other else 0.0


def prose(text: str) -> list[str]:
    """The sentences of a text, without headings, code, badges, tables and lists."""
    text = re.sub(r"```.*?```|<!--.*?-->|<[^>]+>", " ", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|^\s*\.\. .*$|^.*::\s*$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"(?::\w+:)?`+([^`<]+)(?:<[^>]*>)?`+_*", r"\1", text)
    sentences = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if re.match(r"\s{0,3}[\w*\"'(]", line) and "|" not in line]
        joined = re.sub(r"(?<!\w)[*_]+(?=\w)|(?<=[^\W_])[*_]+(?!\w)|^\W+", "", " ".join(" ".join(lines).split()))
        sentences += [one for one in re.split(r"(?<=[.!?])\s+(?=[A-Z])", joined) if 25 < len(one) <= LONGEST_SUMMARY]
    return [sentence for sentence in dict.fromkeys(sentences) if sentence[-1] in ".!?"]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes; the second would wait for an acknowledgement

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/summarize" or not 0 < length <= LONGEST_BODY:
            self._answer(404 if self.path != "/summarize" else 413, {"error": "POST a text to /summarize"})
            return
        try:
            document = json.loads(self.rfile.read(length))
            text, name = str(document["description"]), str(document.get("directory", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._answer(422, {"error": 'send {"description": "…"}'})
            return
        note(name, sorted(document))
        self._answer(200, {"summary": summarize(text)})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The journal is log enough."""


def note(subject: str, fields: list[str]) -> None:
    if JOURNAL:
        with open(JOURNAL, "a", encoding="utf-8") as file:
            file.write(f"text.summarize\t{subject}\t{os.getpid()}\t{','.join(fields)}\n")


def main() -> None:
    global JOURNAL
    parser = argparse.ArgumentParser(description="Summarize texts over HTTP.")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--journal", default="", help="a file that gets a line for each text")
    options = parser.parse_args()
    JOURNAL = options.journal
    with ThreadingHTTPServer(("127.0.0.1", options.port), Handler) as server:
        server.daemon_threads = True
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
