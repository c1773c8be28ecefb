"""The files of a first agent in TypeScript: it builds, has a test, and is proven by `antiphon verify`.

The SDK is not on a registry yet: a project depends on the folder of the checkout that this command runs from.
"""

from __future__ import annotations

from pathlib import Path

from .problems import Problem

_PACKAGE = """{
  "name": "$name",
  "version": "0.1.0",
  "private": true,
  "type": "module",
  "engines": { "node": ">=20" },
  "scripts": {
    "build": "tsc",
    "test": "tsc && node --test dist/"
  },
  "dependencies": {
    "@antiphon/sdk": "file:$sdk"
  },
  "devDependencies": {
    "@types/node": "^20.19.0",
    "typescript": "~5.9.0"
  }
}
"""

_CONFIG = """{
  "compilerOptions": {
    "target": "ES2022",
    "module": "NodeNext",
    "strict": true,
    "skipLibCheck": true,
    "rootDir": "src",
    "outDir": "dist"
  },
  "include": ["src"]
}
"""

_AGENT = """/** An agent that greets. It offers one capability; its sidecar gives it work. */
import { Agent } from "@antiphon/sdk";

export const agent = new Agent("$name");

const person = {
  type: "object",
  properties: { name: { type: "string" } },
  required: ["name"],
} as const;

const greeting = {
  type: "object",
  properties: { text: { type: "string" } },
  required: ["text"],
} as const;

/** Greets a person by name. */
export function greet(person: { name: string }): { text: string } {
  return { text: `Hello, $${person.name}!` };
}

agent.capability(
  "$capability@1",
  { description: "Greets a person by name.", effect: "pure", idempotent: true, input: person, output: greeting },
  greet,
);
"""

_MAIN = """import { agent } from "./agent.js";

await agent.run();
"""

_TEST = """/** The handler is a plain function: test it as one. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { greet } from "./agent.js";

test("a person is greeted by name", () => {
  assert.deepEqual(greet({ name: "Ada" }), { text: "Hello, Ada!" });
});
"""

_SIDECAR = """# Read by: antiphon sidecar run --config sidecar.toml
# The first start needs a join token as well (ANTIPHON_TOKEN); later ones use the certificate kept in the state folder.

[[agent]]
name = "$name"
command = ["node", "dist/main.js"]
"""

_README = """# $name

An Antiphon agent in TypeScript. `src/agent.ts` offers `$capability@1`.

```sh
npm install && npm test                 # the handler alone
antiphon verify -- node dist/main.js    # the agent, against the contract

antiphon dev                            # in another terminal: a whole mesh on this machine
export ANTIPHON_TOKEN=$$(antiphon certs token --profile operator \\
    --kind sidecar --name $name --agent $name --capability '$family.*')
antiphon sidecar run --config sidecar.toml

antiphon run submit graph.yaml --input '{"name": "Ada"}' --wait    # in a third terminal
```
"""

FILES = {
    "package.json": _PACKAGE,
    "tsconfig.json": _CONFIG,
    "src/agent.ts": _AGENT,
    "src/main.ts": _MAIN,
    "src/agent.test.ts": _TEST,
    "sidecar.toml": _SIDECAR,
    "README.md": _README,
    ".gitignore": "node_modules/\ndist/\n",
}


def sdk_folder() -> Path:
    """The SDK of this checkout, built. Raises `Problem`."""
    folder = Path(__file__).resolve().parents[3] / "typescript"
    if not (folder / "package.json").exists():
        raise Problem("the TypeScript SDK is not here", "run the command of a checkout of Antiphon")
    if not (folder / "dist/index.js").exists():
        raise Problem("the TypeScript SDK is not built", f"run: make typescript  in {folder.parents[1]}")
    return folder
