"""The store stays small: what has ended leaves nothing in it but the newest request ids and audit records."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Sample
from tests.harness.etcd import StartEtcd

TASKS = 4_000
"""Each a run, with two audit records: they leave the store seven times or more."""

AT_REST = 2 << 20
"""Bytes: of an empty store 0.1 MB, request ids 0.4 MB, and 600 to 1,100 audit records; all of these would be 5 MB."""

ONE_SHARD = ("--shards", "1")


async def test_the_embedded_store_holds_next_to_nothing_of_thousands_of_runs(tmp_path: Path) -> None:
    samples, rest = await soak.soak(tmp_path, TASKS, length=1, settings=ONE_SHARD)
    assert rest.tasks == TASKS and samples
    assert rest.sizes["in use"] < AT_REST


async def test_etcd_holds_next_to_nothing_of_thousands_of_runs(start_etcd: StartEtcd, tmp_path: Path) -> None:
    etcd = start_etcd(tls=False, quota=64 << 20)
    _, rest = await soak.soak(tmp_path, TASKS, etcd=etcd.endpoints[0], length=1, settings=ONE_SHARD)
    assert rest.sizes["keys"] < AT_REST


def growing(by: float) -> list[Sample]:
    """Sizes that go up and down as the log does, and grow by so many bytes a task."""
    return [Sample(n, {"in use": 4_000_000 + n * 7919 % 4_000_000 + int(n * by)}) for n in range(0, 100_001, 400)]


@pytest.mark.parametrize(("by", "fine"), [(0.0, True), (100.0, False)])
def test_a_store_that_grows_is_told_from_one_that_goes_up_and_down(by: float, fine: bool) -> None:
    assert soak.verdict(growing(by), 100_000)["in use"][2] is fine


def test_a_soak_that_is_too_short_says_so() -> None:
    with pytest.raises(ValueError, match="too few samples"):
        soak.verdict(growing(0.0)[:3], 100_000)
