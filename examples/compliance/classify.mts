/**
 * An agent that says which kind of licence a package has, on what evidence, and what about it deserves a person's eye.
 *
 * The twin of classify.py, from which its answers cannot be told; there is said what it believes, and in which order.
 * Texts are cut and words bounded as Python does it: by characters of Unicode.
 */
import { appendFileSync } from "node:fs";
import { Agent, type FromSchema } from "@antiphon/sdk";

const STRICTNESS = ["permissive", "weak-copyleft", "strong-copyleft", "proprietary", "unknown"] as const;
type Kind = (typeof STRICTNESS)[number];
const EVIDENCE = 140;
const BEGINNING = 1500;
const SIMILAR = 0.6;

const DOCUMENT = {
  type: "object",
  properties: {
    directory: { type: "string" },
    expression: { type: "string" },
    license: { type: "string" },
    classifiers: { anyOf: [{ type: "array", items: { type: "string" } }, { type: "null" }] },
    text: { type: "string" },
  },
  required: ["directory"],
} as const;

const VERDICT = {
  type: "object",
  properties: {
    kind: { enum: STRICTNESS },
    license: { type: "string" },
    evidence: { type: "string" },
    doubt: { type: "string" },
  },
  required: ["kind", "license", "evidence", "doubt"],
} as const;

type Document = FromSchema<typeof DOCUMENT>;
type Verdict = FromSchema<typeof VERDICT>;

/** A kind of licence, and which one. */
type Named = readonly [kind: Kind, name: string];

// The first pattern that is found decides; what is stricter stands before what its words also fit.
const NAMES: readonly (readonly [pattern: string, kind: Kind, name: string])[] = [
  [String.raw`\bA-?GPL|affero`, "strong-copyleft", "AGPL"],
  [String.raw`\bL-?GPL|lesser general public`, "weak-copyleft", "LGPL"],
  [String.raw`\bGPL|gnu general public`, "strong-copyleft", "GPL"],
  [String.raw`\bMPL|mozilla public`, "weak-copyleft", "MPL-2.0"],
  [String.raw`\bEPL|eclipse public`, "weak-copyleft", "EPL"],
  [String.raw`\bEUPL`, "strong-copyleft", "EUPL"],
  [String.raw`proprietary|all rights reserved|commercial|\bEULA|LicenseRef`, "proprietary", "proprietary"],
  [String.raw`apache`, "permissive", "Apache-2.0"],
  [String.raw`\b0BSD`, "permissive", "0BSD"],
  [String.raw`\bBSD[- ]?2|simplified bsd`, "permissive", "BSD-2-Clause"],
  [String.raw`\bBSD[- ]?3|new bsd|modified bsd|revised bsd`, "permissive", "BSD-3-Clause"],
  [String.raw`\bBSD`, "permissive", "BSD"],
  [String.raw`\bMIT\b|\bexpat\b`, "permissive", "MIT"],
  [String.raw`\bISC\b`, "permissive", "ISC"],
  [String.raw`\bPSF|python software foundation|CNRI-Python`, "permissive", "PSF-2.0"],
  [String.raw`\bZPL|zope public`, "permissive", "ZPL-2.1"],
  [String.raw`unlicense|public domain|\bCC0\b`, "permissive", "public domain"],
  [String.raw`\bzlib\b`, "permissive", "Zlib"],
  [String.raw`\bHPND\b|\bNCSA\b|\bBSL-1\.0\b|boost software`, "permissive", "permissive, other"],
];

const MIT = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice
and this permission notice shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS
PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`;
const BSD_2 = `Redistribution and use in source and binary forms, with or without modification, are permitted provided
that the following conditions are met: Redistributions of source code must retain the above copyright notice, this
list of conditions and the following disclaimer. Redistributions in binary form must reproduce the above copyright
notice, this list of conditions and the following disclaimer in the documentation and/or other materials provided with
the distribution. `;
const BSD_3 = `Neither the name of the copyright holder nor the names of its contributors may be used to endorse or
promote products derived from this software without specific prior written permission. `;
const BSD_END = `THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED
WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR
PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT,
INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE
GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF
LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT
OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.`;
const ISC = `Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is
hereby granted, provided that the above copyright notice and this permission notice appear in all copies. THE SOFTWARE
IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED
WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT,
OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION
OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS
SOFTWARE.`;
const WHOLE_TEXTS = { "MIT": MIT, "BSD-2-Clause": BSD_2 + BSD_END, "BSD-3-Clause": BSD_2 + BSD_3 + BSD_END, "ISC": ISC };

// Long licences are recognised by how they begin.
const TITLES: readonly (readonly [pattern: string, name: string])[] = [
  [String.raw`gnu affero general public license`, "AGPL"],
  [String.raw`gnu lesser general public license`, "LGPL"],
  [String.raw`gnu general public license`, "GPL"],
  [String.raw`mozilla public license`, "MPL-2.0"],
  [String.raw`apache license,? version 2|www\.apache\.org/licenses/license-2\.0`, "Apache-2.0"],
  [String.raw`python software foundation license|psf license`, "PSF-2.0"],
];

// JavaScript's own \b and \s mean other characters than Python's.
const LETTER = String.raw`[\p{L}\p{N}_]`;
const BOUNDARY = `(?:(?<=${LETTER})(?!${LETTER})|(?<!${LETTER})(?=${LETTER}))`;
const BLANKS = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;

const PATTERNS = NAMES.map(([pattern, kind, name]) => ({ pattern: compiled(pattern, "iu"), named: [kind, name] as const }));
const BEGINNINGS = TITLES.map(([pattern, name]) => ({ pattern: compiled(pattern, "u"), name }));
const OR = compiled(String.raw`\bOR\b`, "u");
const AND = compiled(String.raw`\bAND\b`, "u");
const KINDS = new Map(NAMES.map(([, kind, name]) => [name, kind]));
const REFERENCES = Object.entries(WHOLE_TEXTS).map(([name, text]) => ({ name, words: words(text) }));

function compiled(pattern: string, flags: string): RegExp {
  return new RegExp(pattern.replaceAll(String.raw`\b`, BOUNDARY), flags);
}

/** The kind of licence of one package, with evidence. */
function classify({ directory, expression = "", license = "", classifiers, text = "" }: Document): Verdict {
  note(directory);
  const [textName, likeness] = recognise(text);
  const sources = [
    ["License-Expression", expression, named],
    ["classifier", (classifiers ?? []).join(" OR "), firstNamed],
    ["License field", license, firstNamed],
  ] as const;
  for (const [source, said, look] of sources) {
    const found = look(said);
    if (found === undefined) continue;
    const [kind, name] = found;
    const evidence = cut(`${source}: ${said}`, EVIDENCE);
    return { kind, license: name, evidence, doubt: doubtOf(kind, name, textName, text !== "") };
  }
  if (textName !== "") {
    const kind = kindOf(textName);
    return { kind, license: textName, evidence: `licence file, ${likeness}`, doubt: doubtOf(kind, textName, textName, true) };
  }
  const said = expression || license || "neither expression, classifier, field nor a known text";
  return { kind: "unknown", license: "", evidence: cut(said, EVIDENCE), doubt: "no licence could be determined" };
}

/** What a person should look at. */
function doubtOf(kind: Kind, name: string, textName: string, hasText: boolean): string {
  if (kind === "proprietary") return "not an open licence";
  if (kind === "strong-copyleft") return `${name}: conditions reach what is distributed with it`;
  if (textName !== "" && kindOf(textName) !== kind) return `says ${name}, but its licence file reads like ${textName}`;
  if (kind === "weak-copyleft") return `${name}: changes to it must stay open`;
  return hasText ? "" : "ships no licence text";
}

/** An SPDX expression: of alternatives the mildest holds, of a conjunction the strictest. */
function named(expression: string): Named | undefined {
  let mildest: Named | undefined;
  for (const alternative of expression.replaceAll("(", " ").replaceAll(")", " ").split(OR)) {
    let strictest: Named | undefined;
    for (const part of alternative.split(AND)) {
      const found = firstNamed(part);
      if (found !== undefined && (strictest === undefined || strictness(found) > strictness(strictest))) strictest = found;
    }
    if (strictest !== undefined && (mildest === undefined || strictness(strictest) < strictness(mildest))) mildest = strictest;
  }
  return mildest;
}

function strictness([kind]: Named): number {
  return STRICTNESS.indexOf(kind);
}

/** The licence that a short text names. */
function firstNamed(text: string): Named | undefined {
  return PATTERNS.find(({ pattern }) => pattern.test(text))?.named;
}

/** The name of the licence whose text this is, and how sure that is; two empty strings when none is like it. */
function recognise(text: string): readonly [name: string, likeness: string] {
  const beginning = cut(text, BEGINNING).toLowerCase().split(BLANKS).filter(Boolean).join(" ");
  const titled = BEGINNINGS.find(({ pattern }) => pattern.test(beginning));
  if (titled !== undefined) return [titled.name, "by its title"];
  const have = words(text);
  let best = { name: "", words: [] as string[] };
  let most = -1;
  for (const reference of REFERENCES) {
    const score = overlap(reference.words, have);
    if (score > most) [best, most] = [reference, score];
  }
  const score = likenessOf(best.words, have);
  return score >= SIMILAR ? [best.name, `${percent(score)} like ${best.name}`] : ["", ""];
}

/** How much of the reference, word by word and in order, is in the text; rough, and quick enough to choose by. */
function overlap(reference: readonly string[], text: readonly string[]): number {
  const matched = matching(reference, text);
  // Both directions, so that of two licences of which one contains the other the right one wins.
  return matched / (0.8 * reference.length + 0.2 * Math.max(matched, Math.min(text.length, reference.length * 2)));
}

/** How much of the reference is in the text, letter by letter: a changed word counts for what was changed in it. */
function likenessOf(reference: readonly string[], text: readonly string[]): number {
  const whole = reference.join(" ");
  return matching([...whole], [...text.join(" ")]) / whole.length;
}

/** Elements in the matching blocks that Python's difflib finds: the longest one, then the same left and right of it. */
function matching(one: readonly string[], other: readonly string[]): number {
  const places = new Map<string, number[]>();
  for (const [place, element] of other.entries()) {
    const known = places.get(element);
    if (known === undefined) places.set(element, [place]);
    else known.push(place);
  }
  let matched = 0;
  const open: [number, number, number, number][] = [[0, one.length, 0, other.length]];
  for (let range = open.pop(); range !== undefined; range = open.pop()) {
    const [fromOne, toOne, fromOther, toOther] = range;
    const [atOne, atOther, size] = longest(one, places, other.length, range);
    if (size === 0) continue;
    matched += size;
    if (fromOne < atOne && fromOther < atOther) open.push([fromOne, atOne, fromOther, atOther]);
    if (atOne + size < toOne && atOther + size < toOther) open.push([atOne + size, toOne, atOther + size, toOther]);
  }
  return matched;
}

/** The longest common block within a range, of several the first: where it begins in both, and its size. */
function longest(
  one: readonly string[],
  places: ReadonlyMap<string, readonly number[]>,
  length: number,
  [fromOne, toOne, fromOther, toOther]: readonly [number, number, number, number],
): [atOne: number, atOther: number, size: number] {
  let best: [number, number, number] = [fromOne, fromOther, 0];
  // At each place, shifted by one, the length of the common block that ends there and at the last element.
  let before = new Int32Array(length + 1);
  let now = new Int32Array(length + 1);
  for (let at = fromOne; at < toOne; at += 1) {
    for (const place of places.get(one[at] ?? "") ?? []) {
      if (place < fromOther) continue;
      if (place >= toOther) break;
      const size = (before[place] ?? 0) + 1;
      now[place + 1] = size;
      if (size > best[2]) best = [at - size + 1, place - size + 1, size];
    }
    [before, now] = [now, before];
    now.fill(0, fromOther, toOther + 1);
  }
  return best;
}

function words(text: string): string[] {
  return text.toLowerCase().match(/[a-z]+/g) ?? [];
}

function kindOf(name: string): Kind {
  return KINDS.get(name) ?? "unknown";
}

function cut(text: string, characters: number): string {
  return [...text].slice(0, characters).join("");
}

/** A share in whole percents; a half goes to the even number, as in Python. */
function percent(share: number): string {
  const exact = share * 100;
  const below = Math.floor(exact);
  return `${String(exact - below === 0.5 ? below + (below % 2) : Math.round(exact))}%`;
}

/** Say in a file what is being worked on, for whoever wants to prove what ran, and how often. */
function note(subject: string): void {
  const journal = process.env["COMPLIANCE_JOURNAL"];
  if (journal) appendFileSync(journal, `license.classify\t${subject}\t${String(process.pid)}\n`);
}

const agent = new Agent("classifier", { concurrency: 2, prefetch: 4 });

agent.capability(
  "license.classify@1",
  {
    description: "The kind of licence of one package, with evidence.",
    effect: "pure",
    idempotent: true,
    input: DOCUMENT,
    output: VERDICT,
  },
  classify,
);

await agent.run();
