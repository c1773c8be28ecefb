"""Roles: what people and programs are to a namespace, bound to certificate identities by `roles.toml` of a bundle.

    [demo]                                      # a namespace, or "*" for every one
    developer = ["client/*"]                    # KIND/NAME of an identity of that namespace
    admin = ["operator/olga", "system/operator/*"]   # NAMESPACE/KIND/NAME: of another

Each part of a pattern may end in `*`. A role holds for what is in the namespace it is bound in, so Cedar sees
`principal in Role::"developer"` only where the resource is there. The bindings are part of the bundle and change with
its epoch; the roles themselves are fixed, and a policy that names another one is refused.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

ROLES = ("admin", "approver", "auditor", "developer", "operator", "viewer")
ROLES_FILE = "roles.toml"
MAX_PATTERNS = 1024

_KINDS = ("client", "operator", "sidecar", "orchestrator")
_NAME = re.compile(r"[A-Za-z0-9._-]{0,127}\*?")
_NAMESPACE = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Identities; an empty namespace is that of the resource."""

    namespace: str
    kind: str
    name: str

    def matches(self, resource_namespace: str, namespace: str, kind: str, name: str) -> bool:
        own = self.namespace or resource_namespace
        return _fits(own, namespace) and _fits(self.kind, kind) and _fits(self.name, name)


@dataclass(frozen=True, slots=True)
class Roles:
    """The bindings of a bundle: role and pattern, by namespace."""

    bound: Mapping[str, tuple[tuple[str, Pattern], ...]] = field(default_factory=dict)

    def of(self, resource_namespace: str, namespace: str, kind: str, name: str) -> tuple[str, ...]:
        """The roles of an identity in the namespace of a resource, sorted."""
        bindings = (*self.bound.get("*", ()), *self.bound.get(resource_namespace, ()))
        return tuple(
            sorted({role for role, pattern in bindings if pattern.matches(resource_namespace, namespace, kind, name)})
        )


def read_roles(name: str, text: str) -> tuple[Roles, list[str]]:
    """The bindings of a text, and every problem as `file:line: what`; with problems the bindings are of no use."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        return Roles(), [f"{name}:{found[1] if found else len(text.splitlines())}: cannot be read: {error}"]
    reading = _Reading(name, text.splitlines())
    bound = {namespace: tuple(reading.table(namespace, table)) for namespace, table in tables.items()}
    count = sum(map(len, bound.values()))
    if count > MAX_PATTERNS:
        reading.problems.append(f"{name}:1: holds {count} bindings; {MAX_PATTERNS} are the most")
    return Roles(bound), reading.problems


class _Reading:
    def __init__(self, name: str, lines: list[str]) -> None:
        self._name = name
        self._lines = lines
        self.problems: list[str] = []

    def table(self, namespace: str, table: object) -> Iterator[tuple[str, Pattern]]:
        if not isinstance(table, dict):
            self._problem(namespace, f"{namespace!r} is not a table; write [NAMESPACE], then ROLE = [IDENTITIES]")
            return
        if namespace != "*" and not _NAMESPACE.fullmatch(namespace):
            self._problem(namespace, f'{namespace!r} is no namespace; write its name, or "*" for every one')
        for role, patterns in table.items():
            if role not in ROLES:
                self._problem(role, f"there is no role {role!r}; there are {', '.join(ROLES)}")
            if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
                self._problem(role, f'{role} is not a list of identities; write ["client/*"]')
                continue
            for pattern in patterns:
                if (parsed := self._pattern(pattern)) is not None:
                    yield role, parsed

    def _pattern(self, text: str) -> Pattern | None:
        match text.split("/"):
            case [kind, name]:
                namespace = ""
            case [namespace, kind, name] if namespace == "*" or _NAMESPACE.fullmatch(namespace.removesuffix("*")):
                pass
            case _:
                self._problem(text, f"{text!r} is not KIND/NAME or NAMESPACE/KIND/NAME")
                return None
        if kind not in (*_KINDS, "*"):
            self._problem(text, f"{text!r}: {kind!r} is none of {', '.join(_KINDS)}, *")
            return None
        if not name or not _NAME.fullmatch(name):
            self._problem(text, f"{text!r}: {name!r} is no name; a * may stand at its end")
            return None
        return Pattern(namespace, kind, name)

    def _problem(self, near: str, text: str) -> None:
        line = next((number for number, line in enumerate(self._lines, 1) if near in line), 1)
        self.problems.append(f"{self._name}:{line}: {text}")


def _fits(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
