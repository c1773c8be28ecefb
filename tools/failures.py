"""Writes docs/failures.md: what is promised for each failure, and the tests that prove it.

`make gen` calls it; `--check` (in `make check`) fails on a difference instead. The promises are a table in
tests/robustness/promises.py; tests name those they prove with `@pytest.mark.proves("…")`, which is read from their
source, so that no test has to be imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/failures.md")
TESTS = Path("tests")

_HEAD = """\
# When something breaks

What is promised for each failure, and the tests that prove it, nearly all on real processes. `make test` runs their
short forms, `make robust` the long ones. Made by `make gen` from the tests; a row that says *not yet kept* is a goal.

| event | promise | proven by |
|---|---|---|
"""
_TAIL = """
Not promised: that an agent's code runs exactly once. A task may run again; its effect on the run happens once. All
attempts of a task carry the same idempotency key, so that a sink that takes it sees one effect.
"""


def page(promises: dict[str, str], marks: list[tuple[str, str, str]]) -> str:
    """The whole page. `marks`: (row, file from the root, test). Raises ValueError for a row that is not there."""
    proofs: dict[str, list[str]] = {row: [] for row in promises}
    for row, file, test in marks:
        if row not in proofs:
            raise ValueError(f"{file}: {test} proves {row!r}, which tests/robustness/promises.py does not have")
        proofs[row].append(f"[{_words(test)}](../{file})")
    rows = [
        f"| {row} | {promise} | {'; '.join(proofs[row]) or '*not yet kept*'} |" for row, promise in promises.items()
    ]
    return _HEAD + "\n".join(rows) + "\n" + _TAIL


def marks(root: Path) -> Iterator[tuple[str, str, str]]:
    """Every mark in the tests below `root`, in the order of files and lines."""
    for path in sorted((root / TESTS).rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.proves":
                        for argument in decorator.args:
                            yield str(ast.literal_eval(argument)), str(path.relative_to(root)), node.name


def promised(root: Path) -> dict[str, str]:
    """The table, in its order."""
    tree = ast.parse((root / TESTS / "robustness/promises.py").read_text())
    (table,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    found: dict[str, str] = ast.literal_eval(table)
    return found


def _words(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def main(arguments: list[str]) -> int:
    text = page(promised(ROOT), list(marks(ROOT)))
    path = ROOT / PAGE
    if path.exists() and path.read_text() == text:
        print(f"{PAGE} is up to date")
        return 0
    if "--check" in arguments:
        print(f"{PAGE} differs from what the tests say; run: make gen")
        return 1
    path.write_text(text)
    print(f"{PAGE} is written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
