"""Admission: graphs are checked whole and compiled before anything runs.

    compile_graph(graph) → Compiled(plan, warnings)   or   GraphInvalid with every mistake

The plan carries the evaluator of its expressions. `SchemaSet` checks payloads against the schemas of capabilities and
shares its memory of parsed payloads, `Values`, with the evaluators. Nothing here knows a store, a socket or a clock.
"""

from .compile import TRAITS, Compiled, compile_graph
from .inheriting import Inheriting
from .mistakes import Code, GraphInvalid, Mistake
from .schemas import Reduced, SchemaInvalid, SchemaSet, SchemaViolation, difference
from .values import Unusable, Values, in_utf8, label_keys
from .versions import Requirement, Version

__all__ = [
    "TRAITS",
    "Code",
    "Compiled",
    "GraphInvalid",
    "Inheriting",
    "Mistake",
    "Reduced",
    "Requirement",
    "SchemaInvalid",
    "SchemaSet",
    "SchemaViolation",
    "Unusable",
    "Values",
    "Version",
    "compile_graph",
    "difference",
    "in_utf8",
    "label_keys",
]
