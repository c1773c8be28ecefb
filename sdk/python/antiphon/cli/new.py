"""`antiphon new`: the files a first agent needs, complete and tested, ready to run against `antiphon dev`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from . import new_go, new_typescript, output
from .problems import Problem

app = typer.Typer(help="Begin something new.", no_args_is_help=True)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LANGUAGES = ("python", "typescript", "go")

_AGENT = '''"""An agent that greets. It offers one capability; its sidecar gives it work."""

from dataclasses import dataclass

from antiphon import Agent

agent = Agent("$name")


@dataclass
class Person:
    name: str


@dataclass
class Greeting:
    text: str


@agent.capability("$capability@1", effect="pure", idempotent=True)
async def greet(person: Person) -> Greeting:
    """Greets a person by name."""
    return Greeting(f"Hello, {person.name}!")


if __name__ == "__main__":
    agent.run()
'''

_TEST = '''"""The handler is a plain function: test it as one. The whole is tested on a mesh of its own."""

import asyncio
from pathlib import Path

from agent import Greeting, Person, agent, greet

from antiphon import load_graph, output_of
from antiphon.testing import Mesh


def test_a_person_is_greeted_by_name() -> None:
    assert asyncio.run(greet(Person("Ada"))) == Greeting("Hello, Ada!")


def test_a_run_that_fails_at_first_is_answered_in_the_end() -> None:
    graph = load_graph(Path(__file__).with_name("graph.yaml")).graph

    async def journey() -> None:
        async with Mesh() as mesh:
            instance = mesh.add(agent)
            instance.fail("$capability@1", attempts=1)
            async with mesh.hurry():
                run = await mesh.client.submit(graph, {"name": "Ada"}, wait=True)
            assert output_of(run) == {"greet": {"text": "Hello, Ada!"}}
            assert [attempted.state for attempted in instance.attempts()] == ["FAILED", "SUCCEEDED"]

    asyncio.run(journey())
'''

_SIDECAR = """# Read by: antiphon sidecar run --config sidecar.toml
# The first start needs a join token as well (ANTIPHON_TOKEN); later ones use the certificate kept in the state folder.

[[agent]]
name = "$name"
command = ["python", "agent.py"]
"""

_GRAPH = """name: greet
version: "1"
tasks:
  - id: greet
    capability: $capability@1
    input:
      name: $${input.name}
"""

_README = """# $name

An Antiphon agent in Python. `agent.py` offers `$capability@1`.

```sh
pip install pytest                      # where Antiphon is; its checkout gives that: pip install ./sdk/python .
pytest                                  # the handler alone, then on a mesh

antiphon dev                            # in another terminal: a whole mesh on this machine
export ANTIPHON_TOKEN=$$(antiphon certs token --profile operator \\
    --kind sidecar --name $name --agent $name --capability '$family.*')
antiphon sidecar run --config sidecar.toml

antiphon run submit graph.yaml --input '{"name": "Ada"}' --wait    # in a third terminal
```
"""

_FILES = {
    "agent.py": _AGENT,
    "test_agent.py": _TEST,
    "sidecar.toml": _SIDECAR,
    "graph.yaml": _GRAPH,
    "README.md": _README,
}


@app.command()
def agent(
    name: Annotated[str, typer.Argument(help="Name of the agent and of its new folder.")],
    lang: Annotated[str, typer.Option("--lang", help=f"One of: {', '.join(LANGUAGES)}.")] = "python",
) -> None:
    """Write a small, complete agent into a new folder."""
    if lang not in LANGUAGES:
        raise Problem(f"there is no template for {lang!r}", f"use --lang {' or '.join(LANGUAGES)}")
    if not _NAME.fullmatch(name):
        raise Problem(f"{name!r} is not a name for an agent", "use lowercase letters, digits and inner hyphens")
    folder = Path(name)
    files, sdk = _FILES, ""
    if lang == "typescript":
        files, sdk = {**new_typescript.FILES, "graph.yaml": _GRAPH}, json.dumps(str(new_typescript.sdk_folder()))[1:-1]
    elif lang == "go":
        files = {**new_go.files(), "graph.yaml": _GRAPH}
    present = sorted(str(folder / file) for file in files if (folder / file).exists())
    if present:
        raise Problem(f"{', '.join(present)} exists already", "choose another name; nothing is overwritten")
    # A capability is dotted words that begin with a letter.
    family = name if name[0].isalpha() else f"agent-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, template in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        text = Template(template).substitute(name=name, family=family, capability=f"{family}.greet", sdk=sdk)
        (folder / file).write_text(text, "utf-8")
        output.show(str(folder / file))
    output.note(f"Next: cd {name}, and see README.md")
