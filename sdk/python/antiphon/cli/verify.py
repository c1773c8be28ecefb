"""`antiphon verify`: does a program, in whatever language, keep the contract of agents?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .problems import Problem


def verify(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="What starts the agent, after --.", metavar="-- COMMAND", show_default=False),
    ] = None,
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; may be repeated.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=(1 << 63) - 1, help="Makes the same inputs again.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report there, as JSON.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="An input that the agent can work with, for one version with @VERSION; may be repeated.",
            metavar="CAPABILITY[@VERSION]=JSON",
        ),
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(
            "--answer", help="What a capability it calls answers; may be repeated.", metavar="CAPABILITY=JSON"
        ),
    ] = None,
    patience: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds to wait for each outcome.")] = 10.0,
    boot: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds to wait for its first hello.")] = 30.0,
    list_them: Annotated[bool, typer.Option("--list", help="List the cases.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Play the contract's cases on an agent, which is started for that and works on inputs made from its schemas."""
    from ..verify import command as verifier

    if list_them:
        verifier.list_cases()
        return 0
    if not command:
        raise Problem("which agent?", "write the command that starts it after --: antiphon verify -- python agent.py")
    return verifier.run(
        command,
        names=case or (),
        seed=seed,
        report_file=report,
        as_json=as_json,
        inputs=given or (),
        answers=answer or (),
        patience=patience,
        boot=boot,
    )
