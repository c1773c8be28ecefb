"""Most messages of a stream keep their rules; this says so quickly, and leaves every doubt to the library.

A `Shape` holds those rules of a message type that are bounds of a length, a number or a count, or choices that must be
made. `keeps` answers True only for a message that surely keeps all its rules; False means: ask protovalidate, which
has the last word, and the words of a violation. Of a report, this takes less than half of the library's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from .times import is_time

_FAR = 1 << 64


class Shape:
    """The rules of one message type, as `shapes` finds them."""

    def __init__(self) -> None:
        self.lengths: list[tuple[str, int, int]] = []
        self.numbers: list[tuple[str, int, int]] = []
        self.choices: list[tuple[str, bool, dict[str, Shape]]] = []
        """Name of a oneof, whether one must be set, and the shapes of those that are messages."""
        self.messages: list[tuple[str, Shape]] = []
        self.lists: list[tuple[str, int, Shape]] = []
        self.left: list[str] = []
        """Fields whose rules only the library knows, but which keep them while they are not set."""
        self.doubtful = False
        """Only the library can tell, whatever the message holds."""

    def keeps(self, message: Any) -> bool:
        """Whether a message surely keeps every rule of its type and of the types in it."""
        if self.doubtful:
            return False
        for name, shortest, longest in self.lengths:
            if not shortest <= len(getattr(message, name)) <= longest:
                return False
        for name, least, most in self.numbers:
            if not least <= getattr(message, name) <= most:
                return False
        for name, required, shapes in self.choices:
            chosen = message.WhichOneof(name)
            if chosen is None:
                if required:
                    return False
            elif (inner := shapes.get(chosen)) is not None and not inner.keeps(getattr(message, chosen)):
                return False
        for name, shape in self.messages:
            if message.HasField(name) and not shape.keeps(getattr(message, name)):
                return False
        for name, most, shape in self.lists:
            items = getattr(message, name)
            if items and (len(items) > most or not shape.all_keep(items)):
                return False
        if self.left:
            present = {field.name for field, _ in message.ListFields()}
            return present.isdisjoint(self.left)
        return True

    def all_keep(self, messages: Any) -> bool:
        """The same of each of several."""
        for message in messages:  # noqa: SIM110  # compiled, a loop costs half of a generator
            if not self.keeps(message):
                return False
        return True


class Shapes:
    """Shapes by type. `rules` gives the buf.validate rules of a field as a message; `required` says whether one of a
    oneof must be set, `whole` whether a type has rules over several of its fields."""

    def __init__(
        self,
        rules: Callable[[FieldDescriptor], Any],
        required: Callable[[OneofDescriptor], bool],
        whole: Callable[[Descriptor], bool],
    ) -> None:
        self._rules = rules
        self._required = required
        self._whole = whole
        self._known: dict[str, Shape] = {}

    def of(self, descriptor: Descriptor) -> Shape:
        """The shape of a type; a type may hold itself."""
        shape = self._known.get(descriptor.full_name)
        if shape is None:
            shape = self._known[descriptor.full_name] = Shape()
            shape.doubtful = self._whole(descriptor)
            choices: dict[str, dict[str, Shape]] = {oneof.name: {} for oneof in descriptor.oneofs}
            shape.choices = [(oneof.name, self._required(oneof), choices[oneof.name]) for oneof in descriptor.oneofs]
            for field in descriptor.fields:
                group = field.containing_oneof
                self._add(shape, field, self._rules(field), choices[group.name] if group is not None else None)
            shape.choices = [(name, required, inner) for name, required, inner in shape.choices if required or inner]
        return shape

    def _add(self, shape: Shape, field: FieldDescriptor, rules: Any, choice: dict[str, Shape] | None) -> None:
        name, kind = field.name, rules.WhichOneof("type") or ""
        bounds: Any = getattr(rules, kind) if kind else None
        alone = not rules.required and not rules.cel
        told = {option.name for option, _ in bounds.ListFields()} if bounds is not None else set()
        if is_time(field) and alone and not field.is_repeated:
            shape.left.append(name)
        elif field.message_type is not None and not _is_map(field) and alone and told <= {"max_items"}:
            if field.is_repeated:
                most = bounds.max_items if bounds is not None and told else _FAR
                shape.lists.append((name, most, self.of(field.message_type)))
            elif bounds is not None:
                shape.left.append(name)
            elif choice is not None:
                choice[name] = self.of(field.message_type)
            else:
                shape.messages.append((name, self.of(field.message_type)))
        elif field.message_type is not None or field.is_repeated:
            if not alone or told & {"min_items", "min_pairs"}:
                shape.doubtful = True
            elif told or field.message_type is not None:
                shape.left.append(name)
        elif alone and kind in ("string", "bytes") and told <= {"min_len", "max_len"}:
            most = bounds.max_len if bounds.HasField("max_len") else _FAR
            shape.lengths.append((name, 0 if field.has_presence else bounds.min_len, most))
            shape.doubtful |= field.has_presence and bounds.min_len > 0
        elif alone and kind in ("int32", "int64", "uint32", "uint64") and not field.has_presence:
            least = bounds.gte if bounds.HasField("gte") else -_FAR
            shape.numbers.append((name, least, bounds.lte if bounds.HasField("lte") else _FAR))
        elif told or not alone:
            shape.doubtful = True


def _is_map(field: FieldDescriptor) -> bool:
    entry = field.message_type
    return entry is not None and bool(entry.GetOptions().map_entry)
