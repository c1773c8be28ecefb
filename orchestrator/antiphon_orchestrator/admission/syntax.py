"""What a compiled CEL expression refers to, read from the checked syntax tree that the compiler serialises.

The tree is cel.expr.CheckedExpr. No Python package at hand carries its classes, so the fields that matter are declared
here by number, in a descriptor pool of its own: a second copy of the real file in the default pool of a user's process
would be an error. The serialised form is the only one that is right for macros, whose variables hide ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

Path = tuple[str, ...]
"""A chain of selections from a variable, such as ("tasks", "a", "output", "x")."""

ROOTS = frozenset({"input", "tasks", "item", "index"})
_ACCUMULATOR = "@result"

# message: {field: (number, type, repeated)}; the members of the two oneofs are listed below.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "CheckedExpr": {"expr": (4, "Expr", False)},
    "Expr": {
        "const_expr": (3, "Constant", False),
        "ident_expr": (4, "Ident", False),
        "select_expr": (5, "Select", False),
        "call_expr": (6, "Call", False),
        "list_expr": (7, "List", False),
        "struct_expr": (8, "Struct", False),
        "comprehension_expr": (9, "Comprehension", False),
    },
    "Constant": {"string_value": (6, "string", False)},
    "Ident": {"name": (1, "string", False)},
    "Select": {"operand": (1, "Expr", False), "field": (2, "string", False), "test_only": (3, "bool", False)},
    "Call": {"target": (1, "Expr", False), "function": (2, "string", False), "args": (3, "Expr", True)},
    "List": {"elements": (1, "Expr", True)},
    "Struct": {"entries": (2, "Entry", True)},
    "Entry": {"map_key": (3, "Expr", False), "value": (4, "Expr", False)},
    "Comprehension": {
        "iter_var": (1, "string", False),
        "iter_var2": (8, "string", False),
        "iter_range": (2, "Expr", False),
        "accu_var": (3, "string", False),
        "accu_init": (4, "Expr", False),
        "loop_condition": (5, "Expr", False),
        "loop_step": (6, "Expr", False),
        "result": (7, "Expr", False),
    },
}
_ONEOFS = {"Expr": "expr_kind", "Constant": "constant_kind"}


def _checked_expr_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="cel_tree.proto", package="tree", syntax="proto3")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        if message_name in _ONEOFS:
            message.oneof_decl.add(name=_ONEOFS[message_name])
        for name, (number, kind, repeated) in fields.items():
            declared = message.field.add(name=name, number=number)
            declared.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind == "string":
                declared.type = kinds.TYPE_STRING
            elif kind == "bool":
                declared.type = kinds.TYPE_BOOL
            else:
                declared.type = kinds.TYPE_MESSAGE
                declared.type_name = f".tree.{kind}"
            if message_name in _ONEOFS:
                declared.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tree.CheckedExpr"))


_CheckedExpr = _checked_expr_class()


@dataclass(slots=True)
class Facts:
    """What the tree says. `pure` is set when the whole expression is one chain of selections.

    `loops` is how deep its macros nest, `copies` how often parts are joined or put into lists and maps, and
    `range_copies` how many of those make what a macro walks over: together they bound how much a result can grow.
    """

    references: set[Path] = field(default_factory=set)
    pure: Path | None = None
    loops: int = 0
    copies: int = 0
    range_copies: int = 0


def facts_of(serialized: bytes) -> Facts:
    """The facts of an expression as cel_expr_python serialises it."""
    root = _CheckedExpr.FromString(any_pb2.Any.FromString(serialized).value).expr
    facts = Facts()
    _visit(root, frozenset(), 0, False, facts)
    path = _path(root, frozenset())
    if path is not None and not root.select_expr.test_only:
        facts.pure = path
    return facts


def _path(node: Any, hidden: frozenset[str]) -> Path | None:
    """The chain of selections that a node is; None when it is something else. Constant string keys are selections."""
    kind = node.WhichOneof("expr_kind")
    if kind == "ident_expr":
        name: str = node.ident_expr.name
        root = name.removeprefix(".")  # .input is our input even inside a macro that calls its variable so
        return (root,) if root in ROOTS and name not in hidden else None
    if kind == "select_expr":
        operand = _path(node.select_expr.operand, hidden)
        return None if operand is None else (*operand, node.select_expr.field)
    if kind == "call_expr" and node.call_expr.function == "_[_]":
        of, key = node.call_expr.args
        operand = _path(of, hidden)
        if operand is not None and key.const_expr.WhichOneof("constant_kind") == "string_value":
            return (*operand, key.const_expr.string_value)
    return None


def _visit(node: Any, hidden: frozenset[str], depth: int, in_range: bool, facts: Facts) -> None:
    path = _path(node, hidden)
    if path is not None:
        facts.references.add(path)
        return
    if node.WhichOneof("expr_kind") == "comprehension_expr":
        loop = node.comprehension_expr
        facts.loops = max(facts.loops, depth + 1)
        _visit(loop.iter_range, hidden, depth, True, facts)
        _visit(loop.accu_init, hidden, depth, in_range, facts)
        inside = hidden | {loop.iter_var, loop.iter_var2, loop.accu_var}
        for part in (loop.loop_condition, loop.loop_step):
            _visit(part, inside, depth + 1, in_range, facts)
        _visit(loop.result, hidden | {loop.accu_var}, depth, in_range, facts)
        return
    copies = _copies(node)
    facts.copies += copies
    if in_range:
        facts.range_copies += copies
    for child in _children(node):
        _visit(child, hidden, depth, in_range, facts)


def _copies(node: Any) -> int:
    """How many values the node joins besides the first; what a macro collects its results with does not count."""
    kind = node.WhichOneof("expr_kind")
    if kind == "call_expr" and node.call_expr.function == "_+_":
        return 0 if node.call_expr.args[0].ident_expr.name == _ACCUMULATOR else 1
    if kind == "list_expr":
        return max(0, len(node.list_expr.elements) - 1)
    if kind == "struct_expr":
        return max(0, len(node.struct_expr.entries) - 1)
    return 0


def _children(node: Any) -> Iterator[Any]:
    kind = node.WhichOneof("expr_kind")
    if kind == "select_expr":
        yield node.select_expr.operand
    elif kind == "call_expr":
        if node.call_expr.HasField("target"):
            yield node.call_expr.target
        yield from node.call_expr.args
    elif kind == "list_expr":
        yield from node.list_expr.elements
    elif kind == "struct_expr":
        for entry in node.struct_expr.entries:
            if entry.HasField("map_key"):
                yield entry.map_key
            yield entry.value
