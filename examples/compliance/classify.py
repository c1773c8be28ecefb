"""An agent that says which kind of licence a package has, on what evidence, and what about it deserves a person's eye.

It believes, in this order, an SPDX expression, the classifiers, the licence field, and the text of the licence file;
the text is compared with well-known ones in any case: a package may say one thing and ship another. No legal advice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Literal

from antiphon import Agent

Kind = Literal["permissive", "weak-copyleft", "strong-copyleft", "proprietary", "unknown"]
STRICTNESS: list[Kind] = ["permissive", "weak-copyleft", "strong-copyleft", "proprietary", "unknown"]
EVIDENCE = 140

agent = Agent("classifier", concurrency=2, prefetch=4)


@dataclass
class Document:
    """What a package says about its licence."""

    directory: str
    expression: str = ""
    license: str = ""
    classifiers: list[str] | None = None
    text: str = ""


@dataclass
class Verdict:
    kind: Kind
    license: str
    evidence: str
    doubt: str
    """Why a person should look; empty when nobody need."""


# The first pattern that is found decides; what is stricter stands before what its words also fit.
NAMES: list[tuple[str, Kind, str]] = [
    (r"\bA-?GPL|affero", "strong-copyleft", "AGPL"),
    (r"\bL-?GPL|lesser general public", "weak-copyleft", "LGPL"),
    (r"\bGPL|gnu general public", "strong-copyleft", "GPL"),
    (r"\bMPL|mozilla public", "weak-copyleft", "MPL-2.0"),
    (r"\bEPL|eclipse public", "weak-copyleft", "EPL"),
    (r"\bEUPL", "strong-copyleft", "EUPL"),
    (r"proprietary|all rights reserved|commercial|\bEULA|LicenseRef", "proprietary", "proprietary"),
    (r"apache", "permissive", "Apache-2.0"),
    (r"\b0BSD", "permissive", "0BSD"),
    (r"\bBSD[- ]?2|simplified bsd", "permissive", "BSD-2-Clause"),
    (r"\bBSD[- ]?3|new bsd|modified bsd|revised bsd", "permissive", "BSD-3-Clause"),
    (r"\bBSD", "permissive", "BSD"),
    (r"\bMIT\b|\bexpat\b", "permissive", "MIT"),
    (r"\bISC\b", "permissive", "ISC"),
    (r"\bPSF|python software foundation|CNRI-Python", "permissive", "PSF-2.0"),
    (r"\bZPL|zope public", "permissive", "ZPL-2.1"),
    (r"unlicense|public domain|\bCC0\b", "permissive", "public domain"),
    (r"\bzlib\b", "permissive", "Zlib"),
    (r"\bHPND\b|\bNCSA\b|\bBSL-1\.0\b|boost software", "permissive", "permissive, other"),
]

_MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice
and this permission notice shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS
PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""
_BSD_2 = """Redistribution and use in source and binary forms, with or without modification, are permitted provided
that the following conditions are met: Redistributions of source code must retain the above copyright notice, this
list of conditions and the following disclaimer. Redistributions in binary form must reproduce the above copyright
notice, this list of conditions and the following disclaimer in the documentation and/or other materials provided with
the distribution. """
_BSD_3 = """Neither the name of the copyright holder nor the names of its contributors may be used to endorse or
promote products derived from this software without specific prior written permission. """
_BSD_END = """THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED
WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR
PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT,
INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE
GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF
LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT
OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE."""
_ISC = """Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is
hereby granted, provided that the above copyright notice and this permission notice appear in all copies. THE SOFTWARE
IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED
WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT,
OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION
OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS
SOFTWARE."""
WHOLE_TEXTS = {
    "MIT": _MIT,
    "BSD-2-Clause": _BSD_2 + _BSD_END,
    "BSD-3-Clause": _BSD_2 + _BSD_3 + _BSD_END,
    "ISC": _ISC,
}
SIMILAR = 0.6

# Long licences are recognised by how they begin.
TITLES: list[tuple[str, str]] = [
    (r"gnu affero general public license", "AGPL"),
    (r"gnu lesser general public license", "LGPL"),
    (r"gnu general public license", "GPL"),
    (r"mozilla public license", "MPL-2.0"),
    (r"apache license,? version 2|www\.apache\.org/licenses/license-2\.0", "Apache-2.0"),
    (r"python software foundation license|psf license", "PSF-2.0"),
]
KINDS: dict[str, Kind] = {name: kind for _, kind, name in NAMES}


@agent.capability("license.classify@1", effect="pure", idempotent=True)
def classify(document: Document) -> Verdict:
    """The kind of licence of one package, with evidence."""
    note(document.directory)
    text_name, likeness = recognise(document.text)
    for source, said in (
        ("License-Expression", document.expression),
        ("classifier", " OR ".join(document.classifiers or ())),
        ("License field", document.license),
    ):
        found = named(said) if source == "License-Expression" else first_named(said)
        if found is None:
            continue
        kind, name = found
        return Verdict(kind, name, f"{source}: {said}"[:EVIDENCE], doubt_of(kind, name, text_name, bool(document.text)))
    if text_name:
        kind = KINDS[text_name]
        return Verdict(kind, text_name, f"licence file, {likeness}", doubt_of(kind, text_name, text_name, True))
    said = document.expression or document.license or "neither expression, classifier, field nor a known text"
    return Verdict("unknown", "", said[:EVIDENCE], "no licence could be determined")


def doubt_of(kind: Kind, name: str, text_name: str, has_text: bool) -> str:
    """What a person should look at."""
    if kind == "proprietary":
        return "not an open licence"
    if kind == "strong-copyleft":
        return f"{name}: conditions reach what is distributed with it"
    if text_name and KINDS[text_name] != kind:
        return f"says {name}, but its licence file reads like {text_name}"
    if kind == "weak-copyleft":
        return f"{name}: changes to it must stay open"
    return "" if has_text else "ships no licence text"


def named(expression: str) -> tuple[Kind, str] | None:
    """An SPDX expression: of alternatives the mildest holds, of a conjunction the strictest."""
    choices = []
    for alternative in re.split(r"\bOR\b", expression.replace("(", " ").replace(")", " ")):
        parts = [found for part in re.split(r"\bAND\b", alternative) if (found := first_named(part))]
        if parts:
            choices.append(max(parts, key=lambda part: STRICTNESS.index(part[0])))
    return min(choices, key=lambda choice: STRICTNESS.index(choice[0])) if choices else None


def first_named(text: str) -> tuple[Kind, str] | None:
    """The licence that a short text names."""
    return next(((kind, name) for pattern, kind, name in NAMES if re.search(pattern, text, re.IGNORECASE)), None)


def recognise(text: str) -> tuple[str, str]:
    """The name of the licence whose text this is, and how sure that is; two empty strings when none is like it."""
    if not text.strip():
        return "", ""
    beginning = " ".join(text[:1500].lower().split())
    for title, name in TITLES:
        if re.search(title, beginning):
            return name, "by its title"
    have = words(text)
    name = max(references(), key=lambda one: overlap(references()[one], have))
    score = likeness_of(references()[name], have)
    return (name, f"{score:.0%} like {name}") if score >= SIMILAR else ("", "")


def overlap(reference: list[str], text: list[str]) -> float:
    """How much of the reference, word by word and in order, is in the text; rough, and quick enough to choose by."""
    matched = matching(reference, text)
    # Both directions, so that of two licences of which one contains the other the right one wins.
    return matched / (0.8 * len(reference) + 0.2 * max(matched, min(len(text), len(reference) * 2)))


def likeness_of(reference: list[str], text: list[str]) -> float:
    """How much of the reference is in the text, letter by letter: a changed word counts for what was changed in it."""
    whole = " ".join(reference)
    return matching(whole, " ".join(text)) / len(whole)


def matching(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(block.size for block in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks())


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@cache
def references() -> dict[str, list[str]]:
    return {name: words(text) for name, text in WHOLE_TEXTS.items()}


def note(subject: str) -> None:
    """Say in a file what is being worked on, for whoever wants to prove what ran, and how often."""
    journal = os.environ.get("COMPLIANCE_JOURNAL")
    if journal:
        with open(journal, "a", encoding="utf-8") as file:
            file.write(f"license.classify\t{subject}\t{os.getpid()}\n")


if __name__ == "__main__":
    agent.run()
