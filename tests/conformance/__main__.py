"""`python -m tests.conformance --sdk NAME`: the cases on one SDK, or on all of them for the parity table."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from antiphon.conformance.v1 import case_pb2 as cases

from tests.conformance import parity
from tests.conformance.executors import EXECUTORS, Executor
from tests.conformance.runner import load, name_of, play


async def run(executor: Executor, chosen: Sequence[cases.Case]) -> dict[str, bool]:
    """Play the cases, print a line each; whether each passed."""
    results = {}
    async for result in play(executor.command(), chosen):
        known = result.name in executor.known_failing
        word = "passed" if result.passed else "known " if known else "FAILED"
        print(f"{'PASSES' if result.passed and known else word}  {executor.sdk}  {result.name}", flush=True)
        if not result.passed:
            print(f"        {result.complaint}")
        results[result.name] = result.passed
    return results


def main(arguments: Sequence[str]) -> int:
    """0 when exactly the cases that are known to fail have failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--sdk", choices=sorted(EXECUTORS), action="append", help="may be repeated; all by default")
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    parser.add_argument("--parity", action="store_true", help="write what passed into the table of sdk/README.md")
    options = parser.parse_args(arguments)
    chosen = [case for case in load() if not options.case or {case.name, name_of(case)} & {*options.case}]
    if not chosen or (options.case and options.parity):
        parser.error("no such case" if not chosen else "--parity needs all cases")
    unexpected = 0
    table = parity.read()
    for sdk in options.sdk or sorted(EXECUTORS):
        if why := EXECUTORS[sdk].missing():
            print(f"{sdk}: {why}")
            unexpected += sdk in (options.sdk or ())
            continue
        results = asyncio.run(run(EXECUTORS[sdk], chosen))
        known = EXECUTORS[sdk].known_failing
        unexpected += sum(passed is (name in known) for name, passed in results.items())
        table[sdk] = results
        print(f"{sdk}: {sum(results.values())} of {len(results)} passed, {len(known & set(results))} known to fail")
    if options.parity:
        parity.write(table)
    return 1 if unexpected else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
