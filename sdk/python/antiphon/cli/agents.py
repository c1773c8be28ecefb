"""`antiphon agent`: who is there, and taking agents out of work and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Group, RenderableType
from rich.text import Text

from .. import Client
from ..v1 import registry_pb2 as pb
from ..v1.registry_pb2 import Agent
from ..v1.verify_pb2 import VerifyReport
from . import output
from .connection import first, with_client
from .options import AsJson, PageLimit, ProfileName
from .problems import Problem
from .text import agent_state, breaker_state, spell_moment, spell_proto_duration

app = typer.Typer(help="Agents as the registry knows them.", no_args_is_help=True)

AgentName = Annotated[str, typer.Argument(help="Name of the agent.", metavar="NAME")]


@app.command("list")
def list_agents(as_json: AsJson = False, profile: ProfileName = None, limit: PageLimit = 500) -> None:
    """List the agents of the namespace."""
    agents = with_client(profile, lambda client: first(limit, client.list_agents()))
    if as_json:
        output.show_json({"agents": agents})
    elif agents:
        output.show(
            output.table(("AGENT", "STATE", ">INSTANCES", ">IN USE", "OFFERS", "RUNTIME"), map(agent_row, agents))
        )
    else:
        output.note("No agent has ever attached. Start one with: antiphon sidecar run -- python my_agent.py")


@app.command()
def show(name: AgentName, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Show an agent, its capabilities and its live instances."""
    agent = with_client(profile, lambda client: client.get_agent(name))
    if as_json:
        output.show_json(agent)
    else:
        output.show(agent_details(agent))


@app.command()
def drain(name: AgentName, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Let an agent finish what it has, and give it no more."""
    _change(lambda client: client.drain_agent(name), as_json, profile)


@app.command()
def suspend(name: AgentName, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Stop new work for an agent until it is resumed, across restarts."""
    _change(lambda client: client.suspend_agent(name), as_json, profile)


@app.command()
def resume(name: AgentName, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Give work again to an agent that was drained or suspended."""
    _change(lambda client: client.resume_agent(name), as_json, profile)


reports = typer.Typer(help="Reports of antiphon verify.", no_args_is_help=True)
app.add_typer(reports, name="verify-report")


@reports.command()
def upload(
    file: Annotated[Path, typer.Argument(help="What antiphon verify --report has written.", metavar="FILE")],
    profile: ProfileName = None,
) -> None:
    """Vouch for an agent: policy finds this version of it, with these capabilities, verified when it registers."""
    try:
        report = json_format.Parse(file.read_text("utf-8"), VerifyReport())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise Problem(f"{file} is no report: {error}", "write one: antiphon verify --report FILE -- COMMAND") from None
    with_client(profile, lambda client: client.put_verify_report(report))
    output.note(f"{report.agent} {report.version or 'without a version'} is verified as announced")


def _change(call: Callable[[Client], Awaitable[Agent]], as_json: bool, profile: str | None) -> None:
    agent = with_client(profile, call)
    if as_json:
        output.show_json(agent)
    else:
        output.show(Text(f"{agent.name}  ").append_text(output.state(agent_state(agent.state))))


def agent_row(agent: Agent) -> list[RenderableType]:
    broken = sum(one.breaker.state in (pb.BREAKER_STATE_OPEN, pb.BREAKER_STATE_HALF_OPEN) for one in agent.instances)
    in_use = f"{sum(one.in_use for one in agent.instances)}/{sum(one.slots for one in agent.instances)}"
    return [
        agent.name,
        output.state(agent_state(agent.state)),
        str(len(agent.instances)) + (f", {broken} broken" if broken else ""),
        in_use,
        ", ".join(f"{offered.name}@{offered.version}" for offered in agent.description.capabilities),
        agent.description.runtime,
    ]


def agent_details(agent: Agent) -> RenderableType:
    said = agent.description
    parts: list[RenderableType] = [
        Text(agent.name, "bold").append("  ").append_text(output.state(agent_state(agent.state))),
        f"runtime {said.runtime or 'unknown'}, version {said.version or 'unknown'}, "
        f"works on {said.concurrency} at once, since {spell_moment(agent.create_time)}",
    ]
    if said.labels:
        parts.append("labels  " + ", ".join(f"{key}={value}" for key, value in sorted(said.labels.items())))
    for offered in said.capabilities:
        parts.append(Text(f"{offered.name}@{offered.version}", "cyan").append(f"  {offered.description}", "none"))
    rows = [
        [
            one.instance_id,
            f"{one.in_use}/{one.slots}",
            spell_proto_duration(one.smoothed_latency) if one.HasField("smoothed_latency") else "",
            str(one.completed),
            str(one.failed),
            breaker_state(one.breaker.state) if one.HasField("breaker") else "",
            spell_moment(one.attach_time),
        ]
        for one in agent.instances
    ]
    if rows:
        parts.append("")
        parts.append(output.table(("INSTANCE", ">IN USE", ">LATENCY", ">DONE", ">FAILED", "BREAKER", "SINCE"), rows))
        for one in agent.instances:
            if one.breaker.state == pb.BREAKER_STATE_OPEN:
                again = spell_moment(one.breaker.retry_time)
                parts.append(f"{one.instance_id} gets no work until {again}: {one.breaker.reason}")
    return Group(*parts)
