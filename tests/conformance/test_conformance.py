"""Every SDK passes the conformance cases, save those it is known to fail; and the runner notices what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from antiphon.conformance.v1 import case_pb2 as cases
from google.protobuf import json_format

from tests.conformance import parity
from tests.conformance.__main__ import main
from tests.conformance.executors import EXECUTORS, KNOWN_FAILING, Executor
from tests.conformance.matching import mismatch
from tests.conformance.runner import FOLDER, load, name_of, play

CASES = load()
MISSING = {sdk: executor.missing() for sdk, executor in sorted(EXECUTORS.items())}
SDKS = [sdk for sdk, why in MISSING.items() if not why]


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str], cases.CaseResult]:
    """Of every case on every SDK that can be run here."""

    async def of(sdk: str) -> list[cases.CaseResult]:
        return [result async for result in play(EXECUTORS[sdk].command(), CASES)]

    return {(sdk, result.name): result for sdk in SDKS for result in asyncio.run(of(sdk))}


@pytest.mark.parametrize("sdk", sorted(EXECUTORS))
def test_an_sdk_can_be_run_here(sdk: str) -> None:
    if MISSING[sdk]:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING[sdk])


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("case", [name_of(case) for case in CASES])
def test_an_sdk_does_what_the_case_says(sdk: str, case: str, results: dict[tuple[str, str], cases.CaseResult]) -> None:
    result = results[sdk, case]
    if case in EXECUTORS[sdk].known_failing:
        assert not result.passed, f"it passes: take it out of known_failing/{sdk}.txt"
    else:
        assert result.passed, result.complaint


def test_the_parity_table_is_what_the_cases_gave(results: dict[tuple[str, str], cases.CaseResult]) -> None:
    table = parity.read()
    for sdk in SDKS:
        table[sdk] = {case: result.passed for (of, case), result in results.items() if of == sdk}
    assert parity.written() == parity.rendered(table), "run: python -m tests.conformance --parity"


def test_lists_of_known_failures_name_cases_and_sdks_that_there_are() -> None:
    names = {name_of(case) for case in CASES}
    for path in KNOWN_FAILING.glob("*.txt"):
        assert path.stem in EXECUTORS
        assert EXECUTORS[path.stem].known_failing <= names


# The runner


def agent_case(name: str) -> cases.Case:
    return json_format.Parse((FOLDER / "agent" / f"{name}.json").read_text(), cases.Case())


def client_case(name: str) -> cases.Case:
    return json_format.Parse((FOLDER / "client" / f"{name}.json").read_text(), cases.Case())


async def complaint_of(case: cases.Case, command: tuple[str, ...] | None = None) -> str:
    (result,) = [one async for one in play(command or EXECUTORS["python"].command(), [case])]
    assert result.passed is not bool(result.complaint)
    return result.complaint


async def test_another_output_is_a_complaint_with_its_step_and_place() -> None:
    case = agent_case("typed")
    case.agent.steps[1].await_result.output_json = '{"fine": false}'
    assert await complaint_of(case) == "step 2, await_result: run-1/task/0/1: /fine is true, not false"


async def test_an_outcome_that_no_step_awaits_is_a_complaint() -> None:
    case = agent_case("next-attempt")
    del case.agent.steps[3:]
    case.agent.steps.add().CopyFrom(agent_case("output").agent.steps[0])
    case.agent.steps[-1].assign.attempt_id = "run-3/task/0/1"
    case.agent.steps.add(await_result=cases.AwaitResult(attempt_id="run-3/task/0/1", output_json="{}"))
    assert await complaint_of(case) == "run-1/task/0/2 had 1 outcomes, not 0"


async def test_a_call_too_many_and_an_exchange_too_many_are_complaints() -> None:
    case = client_case("retry")
    del case.client.exchanges[2]
    assert "SubmitRun was called once more than expected" in await complaint_of(case)
    case = client_case("get-run")
    case.client.exchanges.append(case.client.exchanges[0])
    assert await complaint_of(case) == "antiphon.v1.RunService/GetRun: 1 exchanges were not used"


async def test_another_request_and_another_error_are_complaints() -> None:
    case = client_case("get-run")
    case.client.exchanges[0].request_json = '{"run_id": "s"}'
    assert await complaint_of(case) == 'the request of antiphon.v1.RunService/GetRun: /run_id is "r", not "s"'
    case = client_case("not-found")
    case.client.steps[0].error_json = '{"remedy": "RETRY"}'
    assert '/remedy is "FIX_REQUEST", not "RETRY"' in await complaint_of(case)
    case.client.steps[0].answer_json = "{}"
    assert "error instead of answer" in await complaint_of(case)


@pytest.mark.parametrize("name", ["agent/output", "client/get-run"])
async def test_an_executor_that_does_nothing_has_failed_every_case(name: str) -> None:
    case = next(case for case in CASES if name_of(case) == name)
    assert await complaint_of(case, ("true",)) != ""


def test_a_case_that_passes_although_it_is_known_to_fail_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "python.txt").write_text("# why\nagent/output\n")
    monkeypatch.setattr("tests.conformance.executors.KNOWN_FAILING", tmp_path)
    assert Executor("python", lambda: ()).known_failing == {"agent/output"}
    assert main(["--sdk", "python", "--case", "agent/output"]) == 1
    assert "PASSES  python  agent/output" in capsys.readouterr().out
    assert main(["--sdk", "python", "--case", "agent/typed"]) == 0


@pytest.mark.parametrize(
    ("expected", "seen", "said"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, ""),
        ({"a": 1}, {}, "/a is missing in {}"),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, "/a is [1, 2, 3], not [1, 2]"),
        ({"a": 1}, {"a": True}, "/a is true, not 1"),
        ({"a": {}}, {"a": 1}, "/a is 1, not an object"),
        ({"x_json": '{"a": 1}'}, {"x_json": '{ "a":1}'}, ""),
        ({"x_json": "1"}, {"x_json": "{"}, "/x_json: '{' is not JSON"),
    ],
)
def test_what_is_named_must_be_there_and_equal(expected: object, seen: object, said: str) -> None:
    assert mismatch(json.loads(json.dumps(expected)), json.loads(json.dumps(seen))) == said
