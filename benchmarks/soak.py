"""`python -m benchmarks.soak`: many runs through a real orchestrator, and whether its store grows with them.

Chains of ten tasks by one stream, a few hundred at a time, while the size of the store is sampled. How much is under
way in one moment depends on the pace of machine and archive, so quarters are compared by their medians: what stays of
runs raises those. Of etcd two sizes are looked at: all its keys with their values, and the pages in use, which hold
history.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from antiphon import DeadlineExceeded
from antiphon.cli.problems import Problem
from antiphon_orchestrator.dev_cluster import etcd_program
from antiphon_orchestrator.store import UP_TO_LAST, Store
from antiphon_orchestrator.store.etcd import EtcdStore, parse

from tools import wheel

from . import identity, mesh, workload
from .process import ProcessFailed, child

IN_FLIGHT = 256
BEGINNING = 0.2
"""Share of the tasks after which what stays is expected to be there."""
SHARE = 0.25
"""By how much the last quarter may exceed the first after the beginning."""
LEAST = 1 << 20
"""The same in bytes, for a store that is nearly empty."""
EVERY = 0.5
"""Seconds between two samples."""
RESTS = 10
"""So many equal samples, one after the other, are a store at rest."""
REST = 120
"""Samples after which it is taken for at rest."""
QUOTA = 256
"""MiB of etcd: with less history is forgotten sooner, which shows in shorter soaks."""
_PAGE = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """`tasks`: how many had ended. `sizes`: bytes by what was looked at."""

    tasks: int
    sizes: Mapping[str, int]


def verdict(samples: Sequence[Sample], tasks: int) -> dict[str, tuple[int, int, bool]]:
    """By what was looked at: the median of the first quarter after the beginning, that of the last, and whether it has
    not grown. Pure. Raises ValueError for too few samples."""
    begun = BEGINNING * tasks
    length = (tasks - begun) / 4
    first = [one.sizes for one in samples if begun <= one.tasks < begun + length]
    last = [one.sizes for one in samples if one.tasks >= tasks - length]
    if not first or not last:
        raise ValueError("too few samples: take more tasks")
    found = {}
    for name in first[0]:
        before, after = (int(median(sizes[name] for sizes in quarter)) for quarter in (first, last))
        found[name] = (before, after, after <= before + max(LEAST, SHARE * before))
    return found


async def soak(
    folder: Path,
    tasks: int,
    *,
    etcd: str = "",
    length: int = workload.CHAIN,
    settings: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[list[Sample], Sample]:
    """Runs so many tasks on a mesh in `folder`, its store in a file or in etcd at HOST:PORT.

    `length`: tasks of a run, 1 or 10. `settings`: further flags of the orchestrator. Returns what was sampled
    meanwhile, and at rest afterwards.
    """
    identity.make(folder)
    settings = (*settings, *(("--store", f"etcd://{etcd}/soak") if etcd else ()))
    samples: list[Sample] = []
    async with contextlib.AsyncExitStack() as stack:
        store: Store | None = None
        if etcd:
            store = await stack.enter_async_context(EtcdStore(parse(f"etcd://{etcd}/soak", None)))
        product = await stack.enter_async_context(mesh.running(folder, environ or {}, settings=settings))
        graph = workload.reference(workload.chain(length))
        left = count = tasks // length
        ended = 0

        async def look() -> None:
            product.check()
            try:
                sizes = {"in use": (await product.operator.get_cluster()).store_size}
            except DeadlineExceeded:
                return  # a machine that is too busy gives a sample less
            if store is not None:
                sizes["keys"] = await keys_size(store)
            samples.append(Sample(ended * length, sizes))

        async def keep_looking() -> None:
            while True:
                await look()
                await asyncio.sleep(EVERY)

        async with product.client.submitter(IN_FLIGHT) as submitter, asyncio.TaskGroup() as group:

            async def keep_submitting() -> None:
                nonlocal left, ended
                while left:
                    left -= 1
                    workload.check(await (await submitter.submit(graph, workload.INPUT, wait=True)))
                    ended += 1

            looking = group.create_task(keep_looking())
            async with asyncio.TaskGroup() as submitters:
                for _ in range(min(IN_FLIGHT, count)):
                    submitters.create_task(keep_submitting())
            looking.cancel()
        under_load = list(samples)
        for _ in range(REST):
            await look()
            if len({tuple(one.sizes.values()) for one in samples[-RESTS:]}) == 1:
                break
            await asyncio.sleep(EVERY)
    return under_load, samples[-1]


async def keys_size(store: Store) -> int:
    """Bytes of all keys of a store with their values, as they are now."""
    size, start = 0, b"\0"
    while True:
        found = await store.range(start, UP_TO_LAST, limit=_PAGE)
        size += sum(len(kv.key) + len(kv.value) for kv in found.kvs)
        if not found.more:
            return size
        start = found.kvs[-1].key + b"\0"


@asynccontextmanager
async def etcd_running(folder: Path, quota: int) -> AsyncIterator[str]:
    """An etcd of one member with fsync on; its HOST:PORT. `quota` in bytes."""
    with socket.create_server(("127.0.0.1", 0)) as client, socket.create_server(("127.0.0.1", 0)) as peer:
        here, there = (f"127.0.0.1:{one.getsockname()[1]}" for one in (client, peer))
    urls = [f"--{name}=http://{here}" for name in ("listen-client-urls", "advertise-client-urls")]
    urls += [f"--{name}=http://{there}" for name in ("listen-peer-urls", "initial-advertise-peer-urls")]
    settings = [f"--initial-cluster=default=http://{there}", f"--quota-backend-bytes={quota}", "--log-level=warn"]
    data = f"--data-dir={folder / 'etcd'}"
    async with child("etcd", [data, *urls, *settings], folder / "etcd.log", program=etcd_program()) as etcd:
        await etcd.until(lambda: _listens(here), "it does not listen")
        yield here


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=0.2):
        return True
    return False


async def _measure(tasks: int, store: str, quota: int, environ: Mapping[str, str]) -> tuple[list[Sample], Sample]:
    with tempfile.TemporaryDirectory(prefix="antiphon-soak-") as name:
        folder = Path(name)
        if store == "embedded":
            return await soak(folder, tasks, environ=environ)
        async with etcd_running(folder, quota) as address:
            return await soak(folder, tasks, etcd=address, environ=environ)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 the store does not grow, 1 it does, or a process failed, 2 the command line is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Does the store grow with its runs?")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="how many, in chains of ten (1,000,000)")
    parser.add_argument(
        "--store", choices=("embedded", "etcd"), default="embedded", help="where the store is (embedded)"
    )
    parser.add_argument("--quota", type=int, default=QUOTA, help=f"of etcd, in MiB ({QUOTA})")
    parser.add_argument("--pure", action="store_true", help="run the source, not the compiled wheel")
    given = parser.parse_args(arguments)
    if given.tasks < 1000:
        parser.error("--tasks: give 1,000 or more")
    begun = time.monotonic()
    try:
        environ = {} if given.pure else wheel.unpacked().environ()
        samples, rest = asyncio.run(_measure(given.tasks, given.store, given.quota << 20, environ))
        found = verdict(samples, given.tasks)
    except (ProcessFailed, wheel.BuildFailed, Problem, ValueError, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    spent = time.monotonic() - begun
    print(f"{given.tasks:,} tasks on the {given.store} store in {spent:,.0f} s, {len(samples)} samples")
    for one in samples[:: max(1, len(samples) // 20)]:
        print(f"{one.tasks:>12,} tasks  " + "  ".join(f"{name} {size:>12,}" for name, size in one.sizes.items()))
    runs = given.tasks // workload.CHAIN
    for name, (before, after, fine) in found.items():
        print(f"{name}: {before:,} bytes in the first quarter, {after:,} in the last: {_said(fine)}")
        print(f"{name} at rest: {rest.sizes[name]:,} bytes, {rest.sizes[name] / runs:,.0f} for each run")
    return 0 if all(fine for _, _, fine in found.values()) else 1


def _said(fine: bool) -> str:
    return "does not grow" if fine else f"GROWS by more than {SHARE:.0%}"


if __name__ == "__main__":
    raise SystemExit(main())
