"""The same scripts by our client and by the package `etcd3`: the same results, and each reads what the other wrote.

The oracle needs protobuf 3, so it runs in an environment of its own below `.cache/etcd`.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from antiphon_orchestrator.store import UP_TO_LAST, Compare, Delete, Operator, Put, Target, Txn, WatchEvent, prefix_end
from antiphon_orchestrator.store.etcd import EtcdAddress, EtcdStore

from tests.harness.etcd import Etcd
from tests.harness.etcd_binary import CACHE

PACKAGES = ("etcd3==0.12.0", "protobuf==3.20.3", "grpcio", "six", "tenacity")
CHILD = Path(__file__).parent / "oracle_child.py"
KEYS = [b"a", b"b", b"b/1", b"c", b"\xff"]
VALUES = [b"", b"x", b"y" * 600]
LENGTH = 250


def oracle_python() -> str:
    """The interpreter of the oracle's environment, made at the first call."""
    folder = CACHE / "oracle"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "oracle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            venv.create(folder, with_pip=True, clear=True)
            environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_CONSTRAINT")}
            command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *PACKAGES]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
            if done.returncode:
                missing = f"not run: etcd3, the oracle, cannot be installed: {done.stderr.strip()[-200:]}"
                if os.environ.get("CI") == "true":
                    pytest.fail(missing, pytrace=False)
                pytest.skip(missing)
            (folder / "complete").touch()
    return str(folder / "bin/python")


class Oracle:
    """A process with etcd's client; keys go below a prefix."""

    def __init__(self, endpoint: str, prefix: bytes) -> None:
        self._prefix = prefix
        self._process = subprocess.Popen(
            [oracle_python(), str(CHILD), endpoint.rpartition(":")[2]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "GRPC_VERBOSITY": "NONE"},
        )
        assert self._answer() == "ready"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def txn(self, txn: Txn) -> tuple[bool, dict[bytes, tuple[bytes, int] | None]]:
        """Whether it succeeded, and else value and version of what it read."""
        compares = [
            (self._key(c.key), c.target.value, c.op.value, c.value.hex() if isinstance(c.value, bytes) else c.value)
            for c in txn.compares
        ]
        operations = [
            ("put", self._key(op.key), op.value.hex())
            if isinstance(op, Put)
            else ("delete", self._key(op.key), self._end(op.range_end))
            for op in txn.ops
        ]
        done, observed = self._ask("txn", compares, operations, [self._key(key) for key in txn.otherwise_get])
        return done, {
            bytes.fromhex(key).removeprefix(self._prefix): (bytes.fromhex(found[0]), found[1]) if found else None
            for key, found in observed.items()
        }

    def read(self, prefix: bytes) -> list[tuple[bytes, bytes, int, int, int, int]]:
        """Everything below a prefix, without it."""
        rows = self._ask("range", prefix.hex())
        return [(bytes.fromhex(row[0]).removeprefix(prefix), bytes.fromhex(row[1]), *row[2:]) for row in rows]

    def _key(self, key: bytes) -> str:
        return (self._prefix + key).hex()

    def _end(self, end: bytes) -> str:
        if not end:
            return ""
        return (prefix_end(self._prefix) if end == UP_TO_LAST else self._prefix + end).hex()

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@pytest.fixture
def oracle(etcd_debian: Etcd) -> Iterator[Oracle]:
    made = Oracle(etcd_debian.endpoints[0], b"oracle/theirs/")
    yield made
    made.close()


def script(dice: random.Random) -> Txn:
    """A transaction that etcd takes, of a kind that the port knows."""
    compares = []
    for _ in range(dice.choice([0, 1, 1, 2])):
        key, op = dice.choice(KEYS), dice.choice(list(Operator))
        if dice.random() < 0.5:
            compares.append(Compare(key, Target.VALUE, dice.choice(VALUES), op))
        else:
            target = dice.choice([Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION])
            compares.append(Compare(key, target, dice.randrange(4) if target is Target.VERSION else 0, op))
    if dice.random() < 0.25:
        key = dice.choice(KEYS)
        end = dice.choice([b"", UP_TO_LAST, *(other for other in KEYS if other > key)])
        ops: list[Put | Delete] = [Delete(key, end)]
    else:
        ops = [Put(key, dice.choice(VALUES)) for key in dice.sample(KEYS, dice.randrange(4))]
    return Txn(tuple(compares), tuple(ops), tuple(dice.sample(KEYS, 2)))


def told(event: WatchEvent) -> tuple[Any, ...]:
    return event.type, event.kv.key, event.kv.value, event.kv.version


@pytest.mark.parametrize("seed", range(2))
async def test_both_do_the_same_and_read_what_the_other_wrote(etcd_debian: Etcd, oracle: Oracle, seed: int) -> None:
    dice = random.Random(seed)
    endpoints = etcd_debian.endpoints
    async with (
        EtcdStore(EtcdAddress(endpoints, b"oracle/ours/"), unwatched=()) as ours,
        EtcdStore(EtcdAddress(endpoints, b"oracle/theirs/"), unwatched=()) as theirs,
    ):
        watches = [store.watch(b"") for store in (ours, theirs)]
        for _ in range(LENGTH):
            txn = script(dice)
            mine = await ours.commit(txn)
            observed = {key: (kv.value, kv.version) if kv else None for key, kv in mine.observed.items()}
            assert oracle.txn(txn) == (mine.succeeded, observed), txn
        last = Txn(ops=(Put(b"last", b""),))
        await ours.commit(last)
        oracle.txn(last)

        for store, prefix in ((ours, b"oracle/ours/"), (theirs, b"oracle/theirs/")):
            found = (await store.range(b"", UP_TO_LAST)).kvs
            rows = [(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in found]
            assert rows == oracle.read(prefix)
            assert len(rows) > 1
        events: list[list[tuple[Any, ...]]] = []
        for watch in watches:
            events.append([])
            async for batch in watch:
                events[-1] += map(told, batch.events)
                if events[-1][-1][1] == b"last":
                    break
        assert events[0] == events[1]
        assert len(events[0]) > LENGTH // 2
        await ours.commit(Txn(ops=(Delete(b"\0", UP_TO_LAST),)))
        await theirs.commit(Txn(ops=(Delete(b"\0", UP_TO_LAST),)))


def test_the_oracle_is_not_this_environment() -> None:
    assert Path(oracle_python()).parent != Path(sys.executable).parent
