"""The suite bites: with a fault planted in a real server, the cases that are about it complain, and for that reason."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.contract.cases import Case, Kind
from tests.contract.contract import Contract
from tests.contract.faults.planted import FAULTS, Fault
from tests.contract.world import World

CONTRACT = Contract()
FOLDER = Path(__file__).parent / "faults"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    monkeypatch.setenv("ANTIPHON_PLANTED_FAULT", fault.name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH")))))
    with World(agents=fault.agents) as world:
        method = CONTRACT.methods[fault.path]
        cases = world.cases.of(method, Kind.VALID if fault.kind == "log" else Kind(fault.kind))
        wrong = world.play([case for case in cases if fault.agents or needs_no_socket(case)])
        found = world.leaks() if fault.kind == "log" else wrong
    assert [line for line in found if fault.complaint in line], wrong


def test_without_a_fault_the_same_cases_have_no_complaint() -> None:
    with World(agents=False) as world:
        for path, kind in sorted({(fault.path, fault.kind) for fault in FAULTS if not fault.agents}):
            cases = world.cases.of(CONTRACT.methods[path], Kind.VALID if kind == "log" else Kind(kind))
            assert world.play([case for case in cases if needs_no_socket(case)]) == [], path
        assert world.leaks() == []


def needs_no_socket(case: Case) -> bool:
    return all(call.listener != "agent_socket" for call in case.calls)


def test_there_are_faults_for_every_kind_of_case() -> None:
    kinds = Counter(fault.kind for fault in FAULTS)
    assert set(kinds) == {*Kind, "log"}
    assert len(FAULTS) >= 20
