"""What each setting means, in the words of its own source: the text below a field says it once, for whoever reads the
code, for `--help`, and for docs/reference/settings.md.
"""

from __future__ import annotations

import ast
import sys
from itertools import pairwise
from pathlib import Path


def meanings(section: type) -> dict[str, str]:
    """The text below each field of a dataclass, on one line, by the field's name. Fields without one are left out.

    Read from the source, which lies beside a compiled module as well. Raises OSError where there is none.
    """
    module = sys.modules[section.__module__]
    source = Path(module.__file__ or "").parent / f"{section.__module__.rpartition('.')[2]}.py"
    (body,) = (
        node.body
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    found = {}
    for declared, text in pairwise(body):
        if (
            isinstance(declared, ast.AnnAssign)
            and isinstance(declared.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[declared.target.id] = " ".join(str(text.value.value).split())
    return found
