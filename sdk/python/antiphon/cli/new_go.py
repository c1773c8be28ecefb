"""What `antiphon new agent --lang go` writes. The module finds the SDK by the path of the checkout that this command
runs from, and what the SDK needs in the versions it was tested with, so that it builds without asking anybody.
"""

from __future__ import annotations

import json
from pathlib import Path

from .problems import Problem

_MODULE = "antiphon.dev/antiphon"

_AGENT = """// An agent that greets. It offers one capability; its sidecar gives it work.
package main

import "antiphon.dev/antiphon"

// Person is who is greeted.
type Person struct {
	Name string `json:"name"`
}

// Greeting is what is said.
type Greeting struct {
	Text string `json:"text"`
}

func greet(task *antiphon.Task, person Person) (Greeting, error) {
	return Greeting{"Hello, " + person.Name + "!"}, nil
}

func main() {
	agent := antiphon.NewAgent("$name")
	antiphon.Handle(agent, "$capability@1", greet,
		antiphon.Pure, antiphon.Idempotent, antiphon.Description("Greets a person by name."))
	agent.Main()
}
"""

_TEST = """package main

import "testing"

// The handler is a plain function: test it as one.
func TestAPersonIsGreetedByName(t *testing.T) {
	greeting, err := greet(nil, Person{"Ada"})
	if err != nil || greeting.Text != "Hello, Ada!" {
		t.Error(greeting, err)
	}
}
"""

_SIDECAR = """# Read by: antiphon sidecar run --config sidecar.toml
# The first start needs a join token as well (ANTIPHON_TOKEN); later ones use the certificate kept in the state folder.

[[agent]]
name = "$name"
command = ["./$name"]
"""

_README = """# $name

An Antiphon agent in Go. `main.go` offers `$capability@1`. Where its SDK is says `replace` in `go.mod`.

```sh
go build && go test                     # the handler alone
antiphon verify -- ./$name              # the agent, against its contract

antiphon dev                            # in another terminal: a whole mesh on this machine
export ANTIPHON_TOKEN=$$(antiphon certs token --profile operator \\
    --kind sidecar --name $name --agent $name --capability '$family.*')
antiphon sidecar run --config sidecar.toml

antiphon run submit graph.yaml --input '{"name": "Ada"}' --wait    # in a third terminal
```
"""


def files() -> dict[str, str]:
    """Templates by file name, but for the graph. Raises `Problem`."""
    folder = Path(__file__).resolve().parents[3] / "go"
    try:
        module, sums = (folder / "go.mod").read_text("utf-8"), (folder / "go.sum").read_text("utf-8")
    except FileNotFoundError:
        raise Problem("the Go SDK is not here", "run the command from a checkout of Antiphon") from None
    return {
        "main.go": _AGENT,
        "main_test.go": _TEST,
        "go.mod": _go_mod(folder, module),
        "go.sum": sums.replace("$", "$$"),
        "sidecar.toml": _SIDECAR,
        "README.md": _README,
        ".gitignore": "/$name\n",
    }


def _go_mod(sdk: Path, module: str) -> str:
    """As `go mod tidy` would write it: what the SDK needs is an indirect need here."""
    lines = [line.strip().removeprefix("require ") for line in module.splitlines()]
    needs = [line.removesuffix("// indirect").strip() for line in lines if " v" in line]
    version = next(line for line in lines if line.startswith("go "))
    indirect = "".join(f"\t{need} // indirect\n" for need in sorted(needs))
    # A quoted path may hold blanks; the module's name is that of the program.
    return (
        f"module $name\n\n{version}\n\nrequire {_MODULE} v0.0.0\n\nrequire (\n{indirect})\n\n"
        f"replace {_MODULE} => {json.dumps(sdk.as_posix(), ensure_ascii=False).replace('$', '$$')}\n"
    )
