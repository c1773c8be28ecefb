"""The tree of commands. What other programs carry out is listed here too, so that help shows the whole."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from ..command import DELEGATED
from . import agents, audit, certs, cluster, context, graphs, new, output, policies, runs, verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_groups = {
    "orchestrator": typer.Typer(
        help="The control plane: runs graphs, places tasks, keeps the record.", no_args_is_help=True
    ),
    "sidecar": typer.Typer(help="The data plane: stands beside agents and speaks for them.", no_args_is_help=True),
}


def _delegated() -> None:
    """Never called: `main` has delegated such words before they reach this tree. Here they are for its help."""


for _words, (_, _help) in DELEGATED.items():
    (_groups[_words[0]] if len(_words) == 2 else app).command(_words[-1], help=_help)(_delegated)

app.add_typer(runs.app, name="run")
app.add_typer(graphs.app, name="graph")
app.add_typer(agents.app, name="agent")
app.add_typer(cluster.app, name="cluster")
app.add_typer(policies.app, name="policy")
app.add_typer(context.app, name="context")
app.add_typer(audit.app, name="audit")
app.add_typer(_groups["orchestrator"], name="orchestrator")
app.add_typer(_groups["sidecar"], name="sidecar")
app.add_typer(certs.app, name="certs")
app.add_typer(new.app, name="new")
app.command("verify")(verify.verify)


def _version_alone(wanted: bool) -> None:
    if wanted:
        show_version()
        raise typer.Exit


@app.callback()
def root(
    wants_version: Annotated[
        bool, typer.Option("--version", callback=_version_alone, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Antiphon: a gRPC mesh for AI agents in any language."""


@app.command("version")
def show_version(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the versions of what is installed."""
    found: dict[str, str | None] = {}
    for distribution in ("antiphon", "antiphon-server"):
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = None
    if as_json:
        output.show_json(found)
    else:
        for name, number in found.items():
            output.show(f"{name} {number or 'not installed'}")
