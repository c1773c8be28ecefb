"""Plays worlds: `python -m tests.simulation.cluster --seeds 0:100`, or one with a trace: `--seed 7 --trace`."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import structlog

from tests.simulation.cluster import outside, planted, sidecar
from tests.simulation.cluster.loop import PROCESS
from tests.simulation.cluster.world import World

HASH_SEED = "0"
"""Python's own chance decides in what order sets are read; with it given, a seed plays the same everywhere."""

ENOUGH = 5
"""Worlds that went wrong after which no more are played."""

FOUND_WITHIN = 400
"""Worlds in which a planted fault has to show itself; most do in the first few."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.cluster")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", help="FIRST:END, of which END is not played")
    which.add_argument("--seed", type=int)
    which.add_argument("--find", nargs="*", choices=planted.FAULTS, help="plant these faults, or all, one at a time")
    parser.add_argument("--trace", action="store_true", help="say what happens")
    return parser.parse_args()


def _tell_nothing() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)


def _tell_all() -> None:
    def show(_logger: Any, _method: str, event: dict[str, Any]) -> str:
        process = PROCESS.get()
        said = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("event", "component"))
        return f"{outside.OUTSIDE.loop.now:9.4f} {process.name if process else '-'} {event['event']} {said}"

    structlog.configure(processors=[structlog.processors.format_exc_info, show])

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            process = PROCESS.get()
            extra = {
                name: getattr(record, name) for name in ("orchestrator", "cause", "agent") if hasattr(record, name)
            }
            print(f"{outside.OUTSIDE.loop.now:9.4f} {process.name if process else '-'} {record.getMessage()} {extra}")
            if record.exc_info:
                print(logging.Formatter().formatException(record.exc_info))

    logging.basicConfig(level=logging.INFO, handlers=[Shown()])


def _play(seed: int, trace: bool, only: Sequence[str] = ()) -> tuple[World, Exception | None]:
    world = World(seed, print if trace else None, only)
    try:
        world.play()
    except Exception as error:
        return world, error
    return world, None


def _play_all(seeds: range, trace: bool) -> int:
    """Plays worlds until some went wrong; whether that is so."""
    began, steps, virtual, broken = time.process_time(), 0, 0.0, 0
    for seed in seeds:
        world, error = _play(seed, trace)
        if error is not None:
            broken += 1
            print(f"seed {seed} at {world.loop.now:.4f} s: {type(error).__name__}: {error}")
            print(f"play it again: python -m tests.simulation.cluster --seed {seed} --trace", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exception(error)
        steps += world.loop.steps
        virtual += world.loop.now
        del world
        if seed % 10 == 9:
            gc.collect()
        if broken == ENOUGH:
            break
    took = time.process_time() - began
    print(f"{len(seeds)} worlds, {steps} steps, {virtual:.0f} s of their time, {took:.1f} s of ours, {broken} broken")
    return 1 if broken else 0


def _find(faults: list[str]) -> int:
    """Plays each fault until a world shows it; whether one was not found."""
    missed = 0
    for name in faults:
        first = planted.FIRST.get(name, 0)
        with planted.FAULTS[name]():
            for seed in range(first, first + FOUND_WITHIN):
                _, error = _play(seed, False, planted.ONLY.get(name, planted.PLAIN))
                if error is not None:
                    print(f"{name}: seed {seed}: {type(error).__name__}: {error}"[:300], flush=True)
                    break
            else:
                print(f"{name}: NOT FOUND", flush=True)
                missed += 1
        gc.collect()
    return 1 if missed else 0


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(sys.executable, [*sys.orig_argv], {**os.environ, "PYTHONHASHSEED": HASH_SEED})
    arguments = _arguments()
    _tell_all() if arguments.trace else _tell_nothing()
    outside.install()
    sidecar.install()
    # Worlds end in the middle of things; what those would still do when they are let go of concerns nobody.
    sys.unraisablehook = lambda unraisable: None
    gc.collect()
    gc.freeze()
    gc.disable()  # what is collected when must not depend on what was played before
    if arguments.find is not None:
        return _find(arguments.find or list(planted.FAULTS))
    if arguments.seed is not None:
        return _play_all(range(arguments.seed, arguments.seed + 1), arguments.trace)
    first, _, end = arguments.seeds.partition(":")
    return _play_all(range(int(first), int(end)), arguments.trace)


if __name__ == "__main__":
    sys.exit(main())
