"""The spool of a sidecar: what one life leaves the next one finds, within bounds, whatever happened to the files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from antiphon.v1 import agent_service_pb2
from antiphon_sidecar import spool as module
from antiphon_sidecar.attempts import Attempt, State
from antiphon_sidecar.spool import MOST_BYTES, OLDEST, PAUSE, Spool, sync


class Life:
    """One life of a sidecar, as far as its spool sees it; `turn` ends a turn of its event loop."""

    def __init__(self, folder: Path, name: str) -> None:
        self.now = 0.0
        self._soon: list[Callable[[], None]] = []
        self.spool = Spool(folder, name, self._soon.append, lambda: self.now)
        self.found = {outcome.result.attempt_id: (outcome, place) for outcome, place in self.spool.former()}

    def keep(self, attempt_id: str, output: bytes = b"1") -> Attempt:
        attempt = Attempt(attempt_id, 3, "echo")
        attempt.state, attempt.busy = State.REPORTED, 0.25
        attempt.result = agent_service_pb2.Result(attempt_id=attempt_id)
        attempt.result.output.inline = output
        self.spool.keep(attempt)
        return attempt

    def turn(self) -> None:
        due, self._soon[:] = list(self._soon), []
        for call in due:
            call()

    def verdict(self, attempt: Attempt) -> None:
        attempt.state = State.ABSENT
        if attempt.spooled is not None:
            self.spool.forget(attempt)

    def killed(self) -> None:
        """Its files stay as they are; the system takes its locks."""
        for segment in self.spool._segments:
            os.close(segment.descriptor)
        self.spool._segments.clear()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_what_had_no_verdict_when_the_process_was_killed_is_found_by_the_next_one(tmp_path: Path) -> None:
    life = Life(tmp_path, "one")
    life.keep("a", b"x" * 70_000)
    failed = life.keep("b")
    failed.result.failure.message = "no"
    life.turn()
    life.keep("never written")
    life.killed()
    found = Life(tmp_path, "two").found
    assert list(found) == ["a", "b"]
    outcome = found["a"][0]
    assert (outcome.shard, outcome.agent, outcome.busy, len(outcome.result.output.inline)) == (
        3,
        "echo",
        250_000,
        70_000,
    )
    assert found["b"][0].result.failure.message == "no"


def test_what_has_its_verdict_leaves_no_file_behind(tmp_path: Path) -> None:
    life = Life(tmp_path, "one")
    attempts = [life.keep(str(number)) for number in range(10)]
    life.turn()
    assert files(tmp_path)
    for attempt in attempts:
        life.verdict(attempt)
    life.spool.close()
    assert files(tmp_path) == []


def test_a_clean_end_leaves_what_nobody_has_taken(tmp_path: Path) -> None:
    life = Life(tmp_path, "one")
    life.keep("a")
    life.spool.close()
    assert list(Life(tmp_path, "two").found) == ["a"]


def test_a_verdict_that_is_quicker_than_the_disk_saves_the_writing(tmp_path: Path) -> None:
    life = Life(tmp_path, "one")
    life.verdict(life.keep("a"))
    life.turn()
    assert files(tmp_path) == []


def test_what_a_former_life_left_stays_until_its_verdict_also_through_another_crash(tmp_path: Path) -> None:
    first = Life(tmp_path, "one")
    first.keep("a")
    first.keep("b")
    first.turn()
    first.killed()
    second = Life(tmp_path, "two")
    second.spool.let_go(second.found["a"][1])
    second.killed()
    third = Life(tmp_path, "three")
    assert list(third.found) == ["a", "b"]  # a file goes as a whole; the owner knows that it had one
    for _, place in third.found.values():
        third.spool.let_go(place)
    assert files(tmp_path) == []


def test_files_are_the_identitys_own(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    life = Life(folder, "one")
    life.keep("a")
    life.turn()
    (path,) = files(folder)
    assert (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)


def test_the_files_of_a_sidecar_that_lives_are_left_alone(tmp_path: Path) -> None:
    alive = Life(tmp_path, "one")
    alive.keep("a")
    alive.turn()
    assert Life(tmp_path, "two").found == {}
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["torn", "changed", "strange", "empty"])
def test_a_damaged_file_gives_what_is_whole_in_it(tmp_path: Path, damage: str) -> None:
    life = Life(tmp_path, "one")
    life.keep("a")
    life.turn()
    life.keep("b")
    life.turn()
    life.killed()
    (path,) = files(tmp_path)
    data = path.read_bytes()
    path.write_bytes({"torn": data[:-3], "changed": data[:-3] + b"???", "strange": b"x" + data, "empty": b""}[damage])
    found = Life(tmp_path, "two").found
    assert list(found) == (["a"] if damage in ("torn", "changed") else [])
    assert bool(files(tmp_path)) == bool(found)


def test_files_that_are_too_old_are_dropped(tmp_path: Path) -> None:
    life = Life(tmp_path, "one")
    life.keep("a")
    life.turn()
    life.killed()
    (path,) = files(tmp_path)
    os.utime(path, (path.stat().st_mtime - OLDEST - 60,) * 2)
    assert Life(tmp_path, "two").found == {}
    assert files(tmp_path) == []


def test_files_follow_each_other_and_each_goes_with_the_last_verdict_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1_000)
    life = Life(tmp_path, "one")
    attempts = []
    for number in range(4):
        attempts.append(life.keep(str(number), b"x" * 1_000))
        life.turn()
    assert len(files(tmp_path)) == 4
    life.verdict(attempts[1])
    assert len(files(tmp_path)) == 3
    for attempt in (attempts[0], attempts[2], attempts[3]):
        life.verdict(attempt)
    assert len(files(tmp_path)) == 1  # the one that is written to
    life.killed()
    assert list(Life(tmp_path, "two").found) == ["3"]


def test_a_file_in_which_nothing_is_left_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REWIND_BYTES", 100)
    life = Life(tmp_path, "one")
    for number in range(50):
        attempt = life.keep(str(number), b"x" * 1_000)
        life.turn()
        life.verdict(attempt)
    (path,) = files(tmp_path)
    assert path.stat().st_size < 100
    life.keep("last")
    life.turn()
    life.killed()
    assert list(Life(tmp_path, "two").found) == ["last"]


def test_the_spool_takes_no_more_than_its_bound_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 5_000)
    life = Life(tmp_path, "one")
    attempts = [life.keep(str(number), b"x" * 1_000) for number in range(4)]
    life.turn()
    life.keep("too much", b"x" * 1_000)
    life.turn()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 5_000
    assert "outcomes are not kept on disk" in caplog.text
    for attempt in attempts:
        life.verdict(attempt)
    life.now += PAUSE
    life.keep("fits again")
    life.turn()
    life.killed()
    assert "fits again" in Life(tmp_path, "two").found
    assert MOST_BYTES > 5_000


def test_a_disk_that_takes_nothing_stops_no_work_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path, "one")
    life.keep("before")
    life.turn()
    whole = os.write
    pieces = iter((5, 0))

    def full(descriptor: int, data: memoryview) -> int:
        if left := next(pieces):
            return whole(descriptor, data[:left])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        torn = life.keep("torn")
        life.turn()
        life.verdict(torn)
        life.keep("not even tried")
        life.turn()
    assert any("No space left on device" in vars(record)["cause"] for record in caplog.records)
    life.now += PAUSE
    life.keep("after")
    life.turn()
    life.killed()
    assert set(Life(tmp_path, "two").found) == {"before", "after"}


def test_a_disk_that_is_full_is_left_without_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    life = Life(tmp_path, "one")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        life.keep("a")
        life.turn()
    assert files(tmp_path) == [] and life.spool._segments == []


def test_what_was_written_is_forced_to_the_disk_once(tmp_path: Path) -> None:
    life = Life(tmp_path, "one")
    attempt = life.keep("a")
    life.turn()
    descriptors = life.spool.unsynced()
    assert len(descriptors) == 1
    sync(descriptors)
    assert life.spool.unsynced() == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[0])
    life.keep("b")
    life.turn()
    life.verdict(attempt)
    sync(life.spool.unsynced())


def test_a_disk_that_can_neither_shorten_nor_delete_keeps_no_verdict_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "REWIND_BYTES", 100)
    life = Life(tmp_path, "one")
    attempt = life.keep("told", b"x" * 1_000)
    life.turn()
    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", broken)
        patched.setattr(Path, "unlink", broken)
        life.verdict(attempt)
    assert {vars(record)["cause"] for record in caplog.records} == {
        "Input/output error",
        f"Input/output error: {tmp_path}",
    }
    life.now += PAUSE
    life.keep("later")
    life.turn()
    life.killed()
    assert set(Life(tmp_path, "two").found) == {"told", "later"}
