"""Every RPC against its contract, on real processes: the cases are generated, none is listed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.cases import Cases, Kind
from tests.contract.contract import Contract
from tests.contract.world import World

CONTRACT = Contract()
NO_FACTS = Cases(CONTRACT, {})
# Which cases there are does not hang on facts; what they hold does, so they are made again once the facts are there.
PLAYED = [
    pytest.param(path, kind, id=f"{path.rpartition('.')[2]}-{kind}")
    for path, method in CONTRACT.methods.items()
    for kind in Kind
    if NO_FACTS.of(method, kind)
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One mesh for all cases."""
    with World() as made:
        yield made


@pytest.mark.parametrize(("path", "kind"), PLAYED)
def test_a_method_keeps_its_contract(world: World, path: str, kind: Kind) -> None:
    wrong = world.play(world.cases.of(CONTRACT.methods[path], kind))
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_no_log_shows_a_secret_or_content(world: World) -> None:
    assert world.leaks() == []
