"""`antiphon graph`: checking graphs, with the place of every mistake, and keeping them on the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Group
from rich.text import Text

from .. import load_graph
from ..v1.graph_pb2 import Graph
from ..v1.graph_service_pb2 import GraphMistake, RegisteredGraph
from . import output
from .connection import first, with_client
from .graph_findings import Finding, admit, mistakes_of
from .options import AsJson, PageLimit, ProfileName
from .problems import FAILED, Problem
from .text import parse_version, spell_moment

app = typer.Typer(help="Graphs: check, register and read them.", no_args_is_help=True)

GraphFile = Annotated[Path, typer.Argument(help="A graph in YAML or JSON.", metavar="FILE")]
GraphName = Annotated[str, typer.Argument(help="NAME, or NAME@VERSION.", metavar="NAME")]


@app.command()
def validate(file: GraphFile, as_json: AsJson = False, profile: ProfileName = None) -> int:
    """Report every mistake of a graph, with its line. Offline where the server package is installed."""
    loaded = load_graph(file)
    warnings: list[Finding] = []
    if loaded.mistakes:
        found = mistakes_of(loaded)
    else:
        found, warnings = (sorted(Finding.at(loaded, one) for one in some) for some in _check(loaded.graph, profile))
    if as_json:
        output.show_json(
            {"mistakes": [one._asdict() for one in found], "warnings": [one._asdict() for one in warnings]}
        )
    else:
        for one in found:
            output.show_line(f"{file}:{one}")
        for one in warnings:
            output.note(f"{file}:{one} (a warning)")
        if not found:
            output.note(f"{file}: {loaded.graph.name} is right, {len(loaded.graph.tasks)} tasks")
    return FAILED if found else 0


@app.command()
def register(file: GraphFile, as_json: AsJson = False, profile: ProfileName = None) -> int:
    """Check a graph and keep it under its name and version, for ever."""
    graph = read_graph(file)
    answer = with_client(profile, lambda client: client.register_graph(graph))
    if as_json:
        output.show_json(answer)
    else:
        output.show(f"{graph.name}@{graph.version}")
    return 0


@app.command()
def convert(file: GraphFile) -> None:
    """Write a graph file as the JSON of protobuf, for programs that build no graphs."""
    # Unlike answers, without what is not said: it is read by people as well, who keep it beside their code.
    said = MessageToDict(read_graph(file), preserving_proto_field_name=True)
    output.show_json(said)


@app.command("list")
def list_graphs(as_json: AsJson = False, profile: ProfileName = None, limit: PageLimit = 500) -> None:
    """List the registered versions."""
    graphs = with_client(profile, lambda client: first(limit, client.list_graphs()))
    if as_json:
        output.show_json({"graphs": graphs})
    elif graphs:
        output.show(output.table(("GRAPH", "VERSION", ">TASKS", "REGISTERED", "BY"), map(_row, graphs)))
    else:
        output.note("No graph is registered. Register one with: antiphon graph register FILE")


@app.command()
def show(name: GraphName, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Show a registered graph."""
    graph_name, version = parse_version(name)
    registered = with_client(profile, lambda client: client.get_graph(graph_name, version))
    if as_json:
        output.show_json(registered)
        return
    graph = registered.graph
    heading = Text(f"{graph.name}@{graph.version}", "bold").append(f"  {registered.digest[:12]}", "dim")
    rows = [
        [task.id, task.capability, ", ".join(task.needs), task.for_each or "", task.when or ""] for task in graph.tasks
    ]
    output.show(
        Group(heading, graph.description, output.table(("TASK", "ASKS FOR", "NEEDS", "FOR EACH", "WHEN"), rows))
    )


def read_graph(file: Path) -> Graph:
    """The graph in a file that is to be sent. Raises `Problem` with every mistake of one that is misspelt."""
    loaded = load_graph(file)
    if loaded.mistakes:
        lines = "\n".join(f"{file}:{one}" for one in mistakes_of(loaded))
        raise Problem(f"{file} is not a graph:\n{lines}", exit_code=FAILED)
    return loaded.graph


def _check(graph: Graph, profile: str | None) -> tuple[Sequence[GraphMistake], Sequence[GraphMistake]]:
    """Mistakes and warnings of a rightly spelled graph: by the server's own code if it is here, else by a server."""
    found = admit(graph)
    if found is None:
        answer = with_client(profile, lambda client: client.validate_graph(graph))
        return answer.mistakes, answer.warnings
    return found


def _row(registered: RegisteredGraph) -> list[str]:
    graph = registered.graph
    creator = registered.creator.rpartition("/ns/")[2]
    return [graph.name, graph.version, str(len(graph.tasks)), spell_moment(registered.create_time), creator]
