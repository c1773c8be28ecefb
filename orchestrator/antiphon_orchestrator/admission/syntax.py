"""What a compiled CEL expression refers to, read from the checked syntax tree that the compiler serialises.

The tree is cel.expr.CheckedExpr. No Python package at hand carries its classes, so the fields that matter are declared
here by number, in a descriptor pool of its own: a second copy of the real file in the default pool of a user's process
would be an error. The serialised form is the only one that is right for macros, whose variables hide ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

Path = tuple[str, ...]
"""A chain of selections from a variable, such as ("tasks", "a", "output", "x")."""

ROOTS = frozenset({"input", "tasks", "context", "item", "index", "iteration", "previous", "output", "other"})
_ACCUMULATOR = "@result"
_ENDLESS = 2**32

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
    "Constant": {
        "bool_value": (2, "bool", False),
        "int64_value": (3, "int64", False),
        "uint64_value": (4, "uint64", False),
        "string_value": (6, "string", False),
    },
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
_KINDS = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _KINDS.TYPE_STRING,
    "bool": _KINDS.TYPE_BOOL,
    "int64": _KINDS.TYPE_INT64,
    "uint64": _KINDS.TYPE_UINT64,
}


def _checked_expr_class() -> Any:
    kinds = _KINDS
    file = descriptor_pb2.FileDescriptorProto(name="cel_tree.proto", package="tree", syntax="proto3")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        if message_name in _ONEOFS:
            message.oneof_decl.add(name=_ONEOFS[message_name])
        for name, (number, kind, repeated) in fields.items():
            declared = message.field.add(name=name, number=number)
            declared.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _SCALARS:
                declared.type = _SCALARS[kind]
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

    The rest bounds how much a result can grow: `loops` is how deep the macros nest, and `maps` how deep those do that
    make new values; `copies` is how often parts are joined or put into lists and maps; `widening` is how many times
    larger that makes what a macro walks over; `literal_items` is the size of the largest list that is written out.
    `alike_keys`: a map that is written out has keys of which Python keeps one, as 1, 1u and true.
    """

    references: set[Path] = field(default_factory=set)
    pure: Path | None = None
    loops: int = 0
    maps: int = 0
    copies: int = 0
    widening: int = 1
    literal_items: int = 0
    alike_keys: bool = False


def facts_of(serialized: bytes) -> Facts:
    """The facts of an expression as cel_expr_python serialises it."""
    root = _CheckedExpr.FromString(any_pb2.Any.FromString(serialized).value).expr
    facts = Facts()
    _Walk(facts).visit(root, frozenset(), _Place())
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


class _Place(NamedTuple):
    """Where a node stands: inside how many macros, and inside what a macro walks over or not."""

    loops: int = 0
    maps: int = 0
    in_range: bool = False


class _Walk:
    """Visits every node once and collects the facts."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def visit(self, node: Any, hidden: frozenset[str], place: _Place) -> None:
        path = _path(node, hidden)
        if path is not None:
            self._facts.references.add(path)
        elif node.WhichOneof("expr_kind") == "comprehension_expr":
            self._visit_loop(node.comprehension_expr, hidden, place)
        else:
            self._count(node, place)
            for child in _children(node):
                self.visit(child, hidden, place)

    def _visit_loop(self, loop: Any, hidden: frozenset[str], place: _Place) -> None:
        inside = place._replace(loops=place.loops + 1, maps=place.maps + _makes_values(loop))
        self._facts.loops = max(self._facts.loops, inside.loops)
        self._facts.maps = max(self._facts.maps, inside.maps)
        self.visit(loop.iter_range, hidden, place._replace(in_range=True))
        self.visit(loop.accu_init, hidden, place)
        body = hidden | {loop.iter_var, loop.iter_var2, loop.accu_var}
        self.visit(loop.loop_condition, body, inside)
        self.visit(loop.loop_step, body, inside)
        self.visit(loop.result, hidden | {loop.accu_var}, place)

    def _count(self, node: Any, place: _Place) -> None:
        parts = _joined_parts(node)
        self._facts.copies += max(0, parts - 1)
        if place.in_range and parts > 1:
            self._facts.widening = min(self._facts.widening * parts, _ENDLESS)
        self._facts.alike_keys |= _has_alike_keys(node.struct_expr)
        self._facts.literal_items = max(self._facts.literal_items, len(node.list_expr.elements))


def _joined_parts(node: Any) -> int:
    """How many values a node joins into one; constants and what a macro collects its results with do not count."""
    kind = node.WhichOneof("expr_kind")
    if kind == "call_expr" and node.call_expr.function == "_+_":
        return 0 if node.call_expr.args[0].ident_expr.name == _ACCUMULATOR else 2
    if kind == "list_expr":
        return sum(not item.HasField("const_expr") for item in node.list_expr.elements)
    if kind == "struct_expr":
        return sum(not entry.value.HasField("const_expr") for entry in node.struct_expr.entries)
    return 0


def _has_alike_keys(written: Any) -> bool:
    constants = [entry.map_key.const_expr for entry in written.entries]
    kinds = [(constant, constant.WhichOneof("constant_kind")) for constant in constants]
    keys = [getattr(constant, kind) for constant, kind in kinds if kind is not None]
    return len(set(keys)) < len(keys)


def _makes_values(loop: Any) -> bool:
    """Whether a macro collects anything but the items it walks over; only map does, alone or with a condition."""
    step = loop.loop_step.call_expr
    if step.function == "_?_:_":
        step = step.args[1].call_expr
    if step.function != "_+_" or step.args[0].ident_expr.name != loop.accu_var:
        return False
    collected = step.args[1].list_expr.elements
    return any(item.ident_expr.name != loop.iter_var for item in collected)


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
