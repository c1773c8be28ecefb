"""How full the store is, and what follows from it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from antiphon_orchestrator.runs import room as rooms
from antiphon_orchestrator.runs.room import WATERMARKS, Level, StoreRoom, level_of
from antiphon_orchestrator.telemetry import Metrics, configure_logging, logger
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 1 << 20


class Sized:
    """A store of which nothing but its size matters."""

    def __init__(self) -> None:
        self.share = 0.0

    async def size(self) -> int:
        return int(LIMIT * self.share)


async def test_each_watermark_is_told_once_and_the_last_refuses_new_runs(tmp_path: Path) -> None:
    store: Any = Sized()
    metrics, short = Metrics(), list[bool]()
    room = StoreRoom(store, tmp_path, LIMIT, metrics, short.append, lambda: 0)
    seen = []
    for store.share in (0.1, 0.61, 0.65, 0.71, 0.79, 0.81, 0.79, 0.61, 0.59, 0.5):
        await room.look()
        seen.append((room.level.name, room.admit(1)))
    assert seen == [
        ("ROOMY", True),
        ("FILLING", True),
        ("FILLING", True),
        ("TIGHT", True),
        ("TIGHT", True),
        ("FULL", False),
        ("FULL", True),  # what was refused is taken as soon as it fits; the alarm stays until there is some slack
        ("FILLING", True),
        ("FILLING", True),
        ("ROOMY", True),
    ]
    assert short == [True, True, True, True, False]
    value = metrics.registry.get_sample_value
    assert (value("antiphon_store_level"), value("antiphon_store_bytes")) == (0, LIMIT // 2)
    assert value("antiphon_store_limit_bytes") == LIMIT


async def test_which_of_the_two_limits_it_is_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that has hardly begun, on a disk that has no room for it."""
    store: Any = Sized()
    log = io.StringIO()
    configure_logging(stream=log)
    monkeypatch.setattr(rooms, "log", logger("store"))  # the module's own may be bound to another test's
    room = StoreRoom(store, tmp_path, LIMIT, Metrics(), lambda short: None, lambda: 0)
    store.share = 0.9
    await room.look()
    store.share, total = 0.1, 3 << 20
    await room.look()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=total))
    await room.look()
    full, _, crowded = map(json.loads, log.getvalue().splitlines())
    assert (full["state"], full["bytes"], full["limit"]) == ("FULL", int(LIMIT * 0.9), LIMIT)
    assert full["free"] > LIMIT and full["cause"].startswith("943718 of 1048576 bytes are in use")
    assert (crowded["state"], crowded["bytes"], crowded["free"]) == ("FULL", int(LIMIT * 0.1), total)
    assert "disk of the data folder has 3145728 bytes free, and 67108864 are kept back" in crowded["cause"]
    assert not room.admit(1) and room.cause == crowded["cause"]


async def test_runs_that_were_admitted_since_the_last_look_count(tmp_path: Path) -> None:
    store: Any = Sized()
    room = StoreRoom(store, tmp_path, LIMIT, Metrics(), lambda short: None, lambda: 0)
    await room.look()
    assert room.admit(LIMIT // 2) and not room.admit(LIMIT // 2)


@pytest.mark.parametrize(("size", "written"), [(100, 1_720), (2_000, 5_448), (20_000, 41_820)])
async def test_whoever_submits_quickly_does_not_fill_what_is_kept_for_runs_to_end(
    tmp_path: Path, size: int, written: int
) -> None:
    """`written`: bytes that an embedded store took for a run of one task, measured over a hundred of them."""
    store: Any = Sized()
    room = StoreRoom(store, tmp_path, LIMIT, Metrics(), lambda short: None, lambda: 0)
    await room.look()
    count = 0
    while room.admit(size):
        count += 1
    assert 1 < count <= LIMIT * WATERMARKS[Level.FULL] / written + 1


async def test_what_large_fan_outs_will_still_write_is_not_there_for_new_runs(tmp_path: Path) -> None:
    store: Any = Sized()
    promised = [LIMIT // 2]
    room = StoreRoom(store, tmp_path, LIMIT, Metrics(), lambda short: None, promised.pop)
    await room.look()
    assert room.level is Level.ROOMY, "nothing is full yet"
    assert room.admit(LIMIT // 4) and not room.admit(LIMIT // 8)


@given(st.floats(0, 2), st.sampled_from(Level))
def test_a_level_is_that_of_its_watermark_or_of_the_one_it_has_hardly_left(share: float, before: Level) -> None:
    fresh, level = level_of(share, Level.ROOMY), level_of(share, before)
    assert fresh <= level <= max(fresh, before)
    assert level == level_of(share, level)


@pytest.mark.parametrize(("share", "level"), [(0.59, "ROOMY"), (0.6, "FILLING"), (0.7, "TIGHT"), (0.8, "FULL")])
def test_the_watermarks_are_where_they_are_said_to_be(share: float, level: str) -> None:
    assert level_of(share, Level.ROOMY).name == level
