"""Options that many commands share, spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys, for programs.")]
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", envvar="ANTIPHON_PROFILE", help="Whom to call, and as whom.", show_default="default"),
]
PageLimit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many.")]


def profile_option(name: str) -> str:
    """What a command that is proposed needs after its words for this profile."""
    return "" if name == "default" else f" --profile {name}"
