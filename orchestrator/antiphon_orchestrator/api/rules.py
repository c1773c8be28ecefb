"""Most messages of a stream keep their rules; this says so quickly, and leaves every doubt to the library.

A `Shape` holds those rules of a message type that are bounds of a length, a number or a count, or choices that must be
made. `keeps` answers True only for a message that surely keeps all its rules; False means: ask protovalidate, which
has the last word, and the words of a violation. Of a report, this takes less than half of the library's time.

No rule says that a time must be one: seconds and nanoseconds may hold what no duration and no timestamp is, and then
every conversion raises. So `Times` looks at those of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

_FAR = 1 << 64
_LONGEST = 315_576_000_000
_NANOS = 1_000_000_000
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_TIMES = ("google.protobuf.Duration", "google.protobuf.Timestamp")


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
        if _is_time(field) and alone and not field.is_repeated:
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


class Times:
    """Finds durations and timestamps that are none."""

    def __init__(self) -> None:
        self._known: dict[str, list[FieldDescriptor]] = {}

    def wrong(self, message: Any) -> Iterator[tuple[str, str]]:
        """The path of each, and what is wrong with it."""
        for field in self._leading(message.DESCRIPTOR):
            value = getattr(message, field.name)
            if not field.is_repeated and not message.HasField(field.name):
                continue
            for index, inner in enumerate(value if field.is_repeated else (value,)):
                path = f"{field.name}[{index}]" if field.is_repeated else field.name
                if not _is_time(field):
                    yield from ((f"{path}.{rest}", wrong) for rest, wrong in self.wrong(inner))
                elif field.message_type.name == "Duration" and not _is_duration(inner.seconds, inner.nanos):
                    yield (
                        path,
                        "must be a duration of at most 10,000 years, its nanoseconds with the sign of its seconds",
                    )
                elif field.message_type.name == "Timestamp" and not _is_timestamp(inner.seconds, inner.nanos):
                    yield path, "must be a time in the years 1 to 9999"

    def _leading(self, descriptor: Descriptor) -> list[FieldDescriptor]:
        """The fields that are times, or in which there may be some."""
        name = descriptor.full_name
        if name not in self._known:
            self._known[name] = []  # a type that holds itself leads nowhere new by that
            self._known[name] = [field for field in descriptor.fields if _is_time(field) or self._leads(field)]
        return self._known[name]

    def _leads(self, field: FieldDescriptor) -> bool:
        return field.message_type is not None and not _is_map(field) and bool(self._leading(field.message_type))


def _is_time(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name in _TIMES


def _is_duration(seconds: int, nanos: int) -> bool:
    return -_LONGEST <= seconds <= _LONGEST and -_NANOS < nanos < _NANOS and (seconds * nanos >= 0)


def _is_timestamp(seconds: int, nanos: int) -> bool:
    return _FIRST <= seconds <= _LAST and 0 <= nanos < _NANOS


def _is_map(field: FieldDescriptor) -> bool:
    entry = field.message_type
    return entry is not None and bool(entry.GetOptions().map_entry)
