"""`antiphon cluster`: the orchestrator replicas and what each of them does."""

from __future__ import annotations

from collections.abc import Iterable

import typer
from rich.console import RenderableType

from ..v1.cluster_service_pb2 import GetClusterResponse, ReplicaStatus, Shard
from . import output
from .connection import with_client
from .options import AsJson, ProfileName
from .text import spell_moment

app = typer.Typer(help="The orchestrator replicas.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The orchestrator replicas."""


@app.command()
def status(as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Show the replicas, the shards that each of them owns, and what waits."""
    cluster = with_client(profile, lambda client: client.get_cluster())
    if as_json:
        output.show_json(cluster)
        return
    head = ("REPLICA", "ADDRESS", "VERSION", "SINCE", ">SIDECARS", ">RUNS", ">INBOX", ">ARCHIVE LAG", "SHARDS")
    output.show(output.table(head, [_row(replica, cluster.shards) for replica in cluster.replicas]))
    epochs = sorted({shard.epoch for shard in cluster.shards})
    span = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else "".join(map(str, epochs)) or "none"
    output.show(f"{len(cluster.shards)} shards, epochs {span}; store {cluster.store_size / 1e6:.1f} MB")
    for line in _moving(cluster):
        output.show(line)


def _row(replica: ReplicaStatus, shards: Iterable[Shard]) -> list[RenderableType]:
    load = replica.load if replica.HasField("load") else None
    owned = [shard.shard for shard in shards if shard.replica_id == replica.replica_id and not shard.successor_id]
    return [
        replica.replica_id,
        f"{replica.address} (leaving)" if replica.leaving else replica.address,
        replica.version,
        spell_moment(replica.start_time),
        *(
            map(str, (load.sidecar_count, load.run_count, load.inbox_size, load.archive_lag))
            if load is not None
            else ("?", "?", "?", "?")
        ),
        f"{len(owned)}: {spell_numbers(owned)}" if owned else "0",
    ]


def spell_numbers(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs as ranges: 0-3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _moving(cluster: GetClusterResponse) -> list[str]:
    there = {replica.replica_id for replica in cluster.replicas}
    lines = []
    for shard in cluster.shards:
        if shard.successor_id:
            lines.append(f"shard {shard.shard} goes from {shard.replica_id} to {shard.successor_id}")
        elif shard.replica_id not in there:
            lines.append(f"shard {shard.shard} has lost its owner {shard.replica_id} and is about to be taken")
    return lines
