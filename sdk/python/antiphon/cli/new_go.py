"""What `antiphon new agent --lang go` writes. The module finds the SDK by a path in its go.mod, and what the SDK needs
in the versions it was tested with, so that it builds without asking anybody.
"""

from __future__ import annotations

from pathlib import Path

from .problems import Problem

_MODULE = "antiphon.dev/antiphon"
_CHECKOUT = Path(__file__).resolve().parents[3] / "go"

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

_GRAPH = """name: greet
version: "1"
tasks:
  - id: greet
    capability: $capability@1
    input:
      name: $${input.name}
"""

_README = """# $name

An Antiphon agent in Go. `main.go` offers `$capability@1`. Where its SDK is says `replace` in `go.mod`.

```sh
go build && go test                     # the handler alone
antiphon verify -- ./$name              # the agent, against its contract

antiphon dev                            # in another terminal: a whole mesh on this machine
export ANTIPHON_TOKEN=$$(antiphon certs token --profile operator \\
    --kind sidecar --name $name --agent $name --capability '$capability')
antiphon sidecar run --config sidecar.toml

antiphon run submit graph.yaml --input '{"name": "Ada"}' --wait    # in a third terminal
```
"""


def files(sdk: Path | None) -> dict[str, str]:
    """Templates by file name. `sdk` is the folder of the SDK, the checkout's by default. Raises `Problem`."""
    home = (sdk or _CHECKOUT).resolve()
    try:
        module, sums = (home / "go.mod").read_text("utf-8"), (home / "go.sum").read_text("utf-8")
    except OSError as error:
        raise Problem(
            f"there is no Go SDK in {home}: {error.strerror}",
            "give the folder sdk/go of a checkout of Antiphon: --sdk PATH",
        ) from None
    if not module.startswith(f"module {_MODULE}\n"):
        raise Problem(f"{home} holds another module than {_MODULE}", "give the folder sdk/go of a checkout: --sdk PATH")
    return {
        "main.go": _AGENT,
        "main_test.go": _TEST,
        "go.mod": _go_mod(home, module),
        "go.sum": sums.replace("$", "$$"),
        "sidecar.toml": _SIDECAR,
        "graph.yaml": _GRAPH,
        "README.md": _README,
        ".gitignore": "/$name\n",
    }


def _go_mod(home: Path, module: str) -> str:
    """As `go mod tidy` would write it: what the SDK needs is an indirect need here."""
    lines = [line.strip().removeprefix("require ") for line in module.splitlines()]
    needs = [line.removesuffix("// indirect").strip() for line in lines if " v" in line]
    version = next(line for line in lines if line.startswith("go "))
    indirect = "".join(f"\t{need} // indirect\n" for need in sorted(needs))
    # A quoted path may hold blanks; the module's name is that of the program.
    return (
        f"module $name\n\n{version}\n\nrequire {_MODULE} v0.0.0\n\nrequire (\n{indirect})\n\n"
        f'replace {_MODULE} => "{home.as_posix().replace("$", "$$")}"\n'
    )
