"""`antiphon graph`: checking graphs, with the place of every mistake, and keeping them on the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Group
from rich.text import Text

from .. import LoadedGraph, Mistake, load_graph
from ..v1.graph_pb2 import Graph
from ..v1.graph_service_pb2 import GraphMistake, RegisteredGraph
from . import output
from .connection import first, with_client
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
    found, warnings = [Finding.of(one) for one in loaded.mistakes], []
    if not found:
        found, warnings = (sorted(Finding.at(loaded, one) for one in some) for some in _check(loaded.graph, profile))
    elif _is_whole(loaded):
        mistakes, _ = _admit(loaded.graph) or ([], [])
        misspelt = {_part(one.field) for one in loaded.mistakes}
        found += [Finding.at(loaded, one) for one in mistakes if _part(one.field) not in misspelt]
        found.sort()
    if as_json:
        output.show_json(
            {"mistakes": [one._asdict() for one in found], "warnings": [one._asdict() for one in warnings]}
        )
    else:
        for one in found:
            print(f"{file}:{one}")
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


class Finding(NamedTuple):
    """A mistake or a warning, and where it stands."""

    line: int
    column: int
    field: str
    message: str
    code: str

    def __str__(self) -> str:
        """As compilers spell it and editors read it, but for the file."""
        return f"{self.line}:{self.column}: {self.field + ': ' if self.field else ''}{self.message} [{self.code}]"

    @classmethod
    def of(cls, one: Mistake) -> Finding:
        return cls(one.line, one.column, one.field, one.message, one.code)

    @classmethod
    def at(cls, loaded: LoadedGraph, one: GraphMistake) -> Finding:
        """At the place of its field, or of the nearest part around it that the file spells out."""
        field = one.field
        while field and field not in loaded.positions:
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return cls(*loaded.positions.get(field, (1, 1)), one.field, one.message, one.code)


def read_graph(file: Path) -> Graph:
    """The graph in a file that is to be sent. Raises `Problem` with every mistake of its spelling."""
    loaded = load_graph(file)
    if loaded.mistakes:
        lines = "\n".join(f"{file}:{Finding.of(one)}" for one in loaded.mistakes)
        raise Problem(f"{file} is not a graph:\n{lines}", exit_code=FAILED)
    return loaded.graph


def _is_whole(loaded: LoadedGraph) -> bool:
    """Whether no task was lost to a mistake: then the others can be judged, and their numbers are right."""
    tasks = loaded.graph.tasks
    return bool(tasks) and all(task.id for task in tasks) and f"tasks[{len(tasks)}]" not in loaded.positions


def _part(field: str) -> str:
    """The task or the field of the graph that a path is in. A misspelt one is judged no further: it is half read."""
    return field.partition(".")[0]


def _check(graph: Graph, profile: str | None) -> tuple[list[GraphMistake], list[GraphMistake]]:
    """Mistakes and warnings of a rightly spelled graph: by the server's own code if it is here, else by a server."""
    found = _admit(graph)
    if found is None:
        answer = with_client(profile, lambda client: client.validate_graph(graph))
        return list(answer.mistakes), list(answer.warnings)
    return found


def _admit(graph: Graph) -> tuple[list[GraphMistake], list[GraphMistake]] | None:
    """What the server's own code says; None where it is not installed."""
    try:
        from antiphon_orchestrator.admission import GraphInvalid, compile_graph
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("antiphon_orchestrator"):
            raise
        return None
    try:
        compiled = compile_graph(graph)
    except GraphInvalid as invalid:
        return [GraphMistake(field=one.field, message=one.message, code=one.code) for one in invalid.mistakes], []
    return [], [GraphMistake(field=one.field, message=one.message, code=one.code) for one in compiled.warnings]


def _row(registered: RegisteredGraph) -> list[str]:
    graph = registered.graph
    creator = registered.creator.rpartition("/ns/")[2]
    return [graph.name, graph.version, str(len(graph.tasks)), spell_moment(registered.create_time), creator]
