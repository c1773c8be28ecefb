"""The run folder: one sidecar at a time, sockets for whom they are meant, paths that fit."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest
from antiphon_sidecar.config import SocketConfig
from antiphon_sidecar.socket import RunFolder, SocketError, default_folder


def test_a_second_sidecar_is_refused_while_the_first_lives_and_leftovers_are_cleared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", SocketConfig())
    with folder.locked():
        left = socket.socket(socket.AF_UNIX)
        left.bind(folder.agent("echo"))
        left.close()
        with pytest.raises(SocketError, match="another sidecar"), RunFolder(tmp_path / "run", SocketConfig()).locked():
            pass
        assert Path(folder.agent("echo")).exists(), "the refused one touched the sockets of the other"
    with folder.locked():
        assert not Path(folder.agent("echo")).exists()


def test_the_folder_is_closed_unless_sockets_are_opened_to_others(tmp_path: Path) -> None:
    for mode, expected in ((0o600, 0o700), (0o660, 0o710), (0o666, 0o711)):
        folder = RunFolder(
            tmp_path / oct(mode), SocketConfig(mode, group=grp.getgrgid(os.getgid()).gr_name if mode == 0o660 else None)
        )
        with folder.locked():
            assert stat.S_IMODE(folder.path.stat().st_mode) == expected


def test_a_group_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with (
        pytest.raises(SocketError, match="no-such-group"),
        RunFolder(tmp_path, SocketConfig(0o660, "no-such-group")).locked(),
    ):
        pass


def test_a_socket_gets_its_mode(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", SocketConfig(0o666))
    with folder.locked():
        path = Path(folder.agent("echo"))
        path.touch(0o600)
        folder.open_to_others(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with pytest.raises(SocketError, match="cannot be given"):
        RunFolder(tmp_path, SocketConfig(group="no-such-group")).open_to_others(str(tmp_path / "none"))


def test_a_path_that_is_too_long_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="set a shorter run_folder"):
        RunFolder(tmp_path / ("x" * 90), SocketConfig()).agent("echo")


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 12_345, 12_345)
    with (
        pytest.raises(SocketError, match="not a folder of this user"),
        RunFolder(tmp_path / "run", SocketConfig()).locked(),
    ):
        pass


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(SocketError, match="not a folder of this user"),
        RunFolder(tmp_path / "run", SocketConfig()).locked(),
    ):
        pass


def test_the_default_folder_is_short_and_always_the_same_for_an_owner() -> None:
    first = default_folder("spiffe://mesh.test/ns/a/sidecar/b", {})
    assert first == default_folder("spiffe://mesh.test/ns/a/sidecar/b", {})
    assert first != default_folder("spiffe://mesh.test/ns/a/sidecar/c", {})
    assert len(str(first / f"{'a' * 63}.sock")) <= 107
    assert str(default_folder("x", {"XDG_RUNTIME_DIR": "/run/user/1"})).startswith("/run/user/1/antiphon/")
