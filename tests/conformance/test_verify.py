"""`antiphon verify` passes agents that keep the contract, and fails each that does not for what it does wrong.

Every program in `broken/` is an agent on raw stubs with one fault. All are verified once, a few at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from antiphon.v1 import verify_pb2 as pb
from antiphon.verify.cases import ALL, Play
from antiphon.verify.playing import BROKEN, FAILED, GATES, PASSED, verify
from antiphon.verify.stage import Stage
from google.protobuf import json_format

FOLDER = Path(__file__).with_name("broken")
AT_ONCE = 2
ANTIPHON = str(Path(sys.executable).with_name("antiphon"))

FAULTS: dict[str, tuple[str, str]] = {
    "says_nothing": ("hello", "no stream with a hello"),
    "never_dials": ("hello", "no stream with a hello"),
    "result_first": ("hello", "the first message is not a hello"),
    "bad_name": ("hello", "'Sum Add' is not a dotted lower-case name"),
    "other_version": ("hello", "protocol_version is 7, not 1"),
    "no_schema": ("schemas", "output_schema of sum.ask@1"),
    "refuses_valid": ("valid-input", "it refused all 4 inputs, the first with a failure INVALID_INPUT: not today"),
    "refuses_example": ("valid-input", 'too large for {"a": 1000000}'),
    "dies_of_edges": ("boundary-input", "exit code 3"),
    "takes_anything": ("invalid-input", "success for"),
    "dies_of_input": ("invalid-input", "exit code 3"),
    "draws_lots": ("pure", "different outcomes"),
    "knows_all": ("unknown-capability", "success of verify.nobody-offers-this@1"),
    "garbage": ("unknown-capability", "it sent bytes that are no message"),
    "ignores_unknown": ("unknown-capability", "2 had none"),
    "small_messages": ("large-payload", "2 had none"),
    "needs_inline": ("unknown-media", "exit code 3"),
    "late_is_silent": ("deadline", "8 had none"),
    "absent_is_zero": ("no-deadline", "TIMEOUT: no time left without a timeout"),
    "cancels_silently": ("cancel", "8 had none"),
    "dies_of_cancel": ("cancel", "exit code 3"),
    "cancelled_is_transient": ("cancel", "TRANSIENT: interrupted"),
    "works_twice": ("duplicate-offer", "2 outcomes of one attempt"),
    "key_is_attempt": ("duplicate-offer", "/2 of sum.add@1"),
    "strict_parser": ("unknown-fields", "PERMANENT: an unknown field"),
    "loses_overload": ("back-pressure", "12 had none"),
    "gives_up_waiting": ("slow-consumer", "16 had none"),
    "one_stream": ("reattach", "exit code 1"),
    "another_on_reattach": ("reattach", "other capabilities"),
    "remembers_too_well": ("reattach", "had none, the first verify-reattach"),
    "impatient": ("late-sidecar", "no socket"),
    "ignores_drain": ("drain", "it did not come"),
    "drain_drops": ("drain", "had none"),
    "ignores_sigterm": ("terminate", "the program runs"),
    "wrong_output": ("output-schema", 'is not of type "integer"'),
    "not_json": ("output-schema", "not JSON"),
    "not_json_at_all": ("output-schema", "an output of text/html, which fits no schema"),
    "not_finite": ("output-schema", "NaN is no JSON"),
    "too_large_a_number": ("output-schema", "a number is too large"),
    "not_utf8": ("output-schema", "'utf-8' codec can't decode"),
    "empty_output": ("output-schema", "Expecting value"),
    "always_fails": ("output-schema", "sum.ask@1 never succeeded"),
    "answers_twice": ("outcomes", "a second outcome"),
    "answers_others": ("outcomes", "never assigned"),
    "hello_twice": ("outcomes", "hello came twice"),
    "plays_orchestrator": ("failures", "kind LOST"),
    "says_no_kind": ("failures", "kind UNSPECIFIED"),
    "says_no_more": ("failures", "has no message"),
    "beyond_one": ("limits", "progress of 7"),
    "talks_too_much": ("limits", "300 progress in one message"),
    "answers_too_much": ("limits", "bytes inline"),
    "made_up_token": ("attempt-token", "a token that is not that attempt's"),
    "unary_token": ("attempt-token", "unary progress"),
    "others_token": ("attempt-token", "a token that is not that attempt's"),
}
"""What each broken agent must fail, and a part of what is seen."""


async def _verify(program: Path, gate: asyncio.Semaphore) -> pb.VerifyReport:
    async with gate:
        # Generous: other tests may run at the same time.
        stage = Stage([sys.executable, str(program)], patience=8.0, boot=20.0)
        return await verify(Play(stage, seed=1), ALL)


@pytest.fixture(scope="module")
def reports() -> dict[str, pb.VerifyReport]:
    async def all_of_them() -> list[pb.VerifyReport]:
        gate = asyncio.Semaphore(AT_ONCE)
        return await asyncio.gather(*(_verify(FOLDER / f"{name}.py", gate) for name in FAULTS))

    return dict(zip(FAULTS, asyncio.run(all_of_them()), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_agent_fails_the_case_of_its_fault_and_no_other(
    name: str, reports: dict[str, pb.VerifyReport]
) -> None:
    case, seen = FAULTS[name]
    wrong = {one.name: one for one in reports[name].cases if one.outcome != PASSED}
    assert seen in wrong[case].seen, wrong[case].seen
    assert wrong[case].expected
    if wrong[case].outcome == FAILED:
        assert wrong[case].contract
    others = {one.outcome for other, one in wrong.items() if other != case}
    # What cannot be played after a hello that is wrong is not green either.
    assert others == ({BROKEN} if case in GATES else set()), {other: one.seen for other, one in wrong.items()}


def test_every_case_has_an_agent_that_fails_it_and_every_program_is_one() -> None:
    assert {case for case, _ in FAULTS.values()} == {case.name for case in ALL}
    assert {path.stem for path in FOLDER.glob("*.py")} == {*FAULTS, "raw"}


def test_the_agent_that_the_broken_ones_are_made_from_passes_everything() -> None:
    report = asyncio.run(_verify(FOLDER / "raw.py", asyncio.Semaphore(1)))
    assert {one.name: one.seen for one in report.cases if one.outcome != PASSED} == {}
    assert report.complete and report.agent == "raw" and len(report.capabilities_digest) == 64


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_agent_may_have_rules_that_no_schema_tells(seed: int) -> None:
    stage = Stage([sys.executable, str(Path(__file__).with_name("correct") / "says_more.py")], patience=8.0, boot=20.0)
    report = asyncio.run(verify(Play(stage, seed=seed), ALL))
    assert {one.name: one.seen for one in report.cases if one.outcome != PASSED} == {}


def test_what_was_seen_is_not_unseen_because_it_is_over_by_then() -> None:
    async def body() -> None:
        stage = Stage([sys.executable, str(FOLDER / "raw.py")], patience=8.0, boot=20.0)
        try:
            await stage.line()
            looks = iter([True])
            await stage.until(lambda: next(looks, False), "it is seen once", "none")
        finally:
            await stage.close()

    asyncio.run(body())


# The command


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run([ANTIPHON, *words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.fixture
def fresh_agent(tmp_path: Path) -> Iterator[Path]:
    assert run("new", "agent", "greeter", cwd=tmp_path).returncode == 0
    yield tmp_path / "greeter"


def test_what_antiphon_new_writes_passes_at_once_with_a_report_for_programs(fresh_agent: Path) -> None:
    done = run("verify", "--seed", "7", "--report", "report.json", "--", sys.executable, "agent.py", cwd=fresh_agent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == ["passed"] * len(ALL)
    report = json_format.Parse((fresh_agent / "report.json").read_text(), pb.VerifyReport())
    assert report.complete and report.seed == 7 and report.agent == "greeter"
    assert [case.name for case in report.cases] == [case.name for case in ALL]


def test_a_failure_says_what_was_expected_what_was_seen_and_where_the_contract_says_so() -> None:
    done = run("verify", "--case", "pure", "--seed", "1", "--", sys.executable, str(FOLDER / "draws_lots.py"))
    assert done.returncode == 1
    first, expected, seen, contract, last = done.stdout.splitlines()
    assert first.startswith("FAILED  pure")
    assert "declared pure, answers the same input the same way" in expected
    assert "different outcomes" in seen
    assert "protos/antiphon/v1/capability.proto: EFFECT_PURE" in contract
    assert last.startswith("raw: 0 passed, 1 failed; seed 1")


def test_an_agent_that_cannot_start_says_why_and_what_cannot_be_played_is_one_line(tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text("print('first')\nprint('x\\n' * 13 + 'SetupError: no KEY', 'Node.js v20', sep='\\n')\nexit(1)\n")
    report = tmp_path / "report.json"
    done = run("verify", "--report", str(report), "--", sys.executable, str(program))
    assert done.returncode == 1
    first, _, seen, *written, contract, others, last = done.stdout.splitlines()
    assert first.startswith("FAILED  hello") and contract.split()[0] == "contract"
    ended = r"in the [\d.]+ s until the program ended; the program ended with exit code 1; it wrote last:"
    assert re.fullmatch(f" +seen +no stream with a hello {ended}", seen), seen
    assert [line.strip() for line in written] == ["x"] * 13 + ["SetupError: no KEY", "Node.js v20"]
    count = len(ALL) - 1
    assert others.split(maxsplit=3)[:3] == ["BROKEN", str(count), "others"] and "hello" in others
    assert last.startswith(f"the agent: 0 passed, 1 failed, {count} broken; seed ")
    assert [case["name"] for case in json.loads(report.read_text())["cases"]] == [case.name for case in ALL]


def test_a_choice_of_cases_is_no_complete_report() -> None:
    done = run("verify", "--case", "hello", "--json", "--", sys.executable, str(FOLDER / "raw.py"))
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert [case["name"] for case in report["cases"]] == ["hello"]
    assert report["complete"] is False


def test_an_agent_that_needs_others_passes_with_what_they_answer(tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(
        "from antiphon import Agent, TaskContext\n"
        "agent = Agent('asker')\n"
        "@agent.capability('ask.other@1')\n"
        "async def ask(question: str, task: TaskContext) -> str:\n"
        "    return await task.call('other.answer@1', question, returns=str)\n"
        "agent.run()\n"
    )
    words = ("verify", "--case", "output-schema", "--", sys.executable, str(program))
    alone = run(*words)
    assert alone.returncode == 1 and "ask.other@1 never succeeded" in alone.stdout
    assert run(words[0], "--answer", 'other.answer="42"', *words[1:]).returncode == 0


def test_an_input_that_was_given_is_to_be_taken(tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(
        "from antiphon import Agent, InvalidInput\n"
        "agent = Agent('secrets')\n"
        "@agent.capability('secrets.tell@1')\n"
        "async def tell(word: str) -> str:\n"
        "    if word != 'sesame':\n"
        "        raise InvalidInput('not the word')\n"
        "    return 'hello'\n"
        "agent.run()\n"
    )
    words = ("verify", "--case", "valid-input", "--", sys.executable, str(program))

    def given(value: str) -> subprocess.CompletedProcess[str]:
        return run(words[0], "--input", f"secrets.tell={value}", *words[1:])

    alone = run(*words)
    assert alone.returncode == 1 and "give one: --input secrets.tell=JSON" in alone.stdout
    assert given('"sesame"').returncode == 0
    other = given('"simsim"')
    assert other.returncode == 1 and 'INVALID_INPUT: not the word for "simsim"' in other.stdout
    unfit = given("7")
    assert unfit.returncode == 1 and "an --input that the schema of secrets.tell refuses: the value: 7" in unfit.stdout


def test_an_input_is_for_the_version_it_names_or_for_those_that_take_it(tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(
        "from antiphon import Agent, InvalidInput\n"
        "agent = Agent('secrets')\n"
        "@agent.capability('secrets.tell@1')\n"
        "async def one(word: str) -> str:\n"
        "    if word != 'sesame':\n"
        "        raise InvalidInput('not the word')\n"
        "    return 'hello'\n"
        "@agent.capability('secrets.tell@2')\n"
        "async def two(words: list[str]) -> str:\n"
        "    return await one(' '.join(words))\n"
        "agent.run()\n"
    )

    def given(*inputs: str) -> subprocess.CompletedProcess[str]:
        options = [word for text in inputs for word in ("--input", f"secrets.tell{text}")]
        return run("verify", "--case", "valid-input", *options, "--", sys.executable, str(program))

    assert given('@1="sesame"', '@2=["sesame"]').returncode == 0
    assert given('="sesame"', '=["sesame"]').returncode == 0
    other = given('@2="sesame"')
    assert other.returncode == 1 and 'the schema of secrets.tell@2 refuses: the value: "sesame"' in other.stdout
    neither = given("=7")
    assert neither.returncode == 1 and "an --input that the schema of secrets.tell refuses" in neither.stdout
    nowhere = given('@3="sesame"')
    assert nowhere.returncode == 1 and "an --input for secrets.tell@3, which the agent does not offer" in nowhere.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify"], "which agent?"),
        (["verify", "--", "no-such-program-anywhere"], "there is no program no-such-program-anywhere"),
        (["verify", "--case", "hallo", "--", "true"], "there is no case 'hallo'; use one of: hello"),
        (["verify", "--input", "a.b", "--", "true"], "--input a.b is no pair; write --input CAPABILITY=JSON"),
        (["verify", "--answer", "a.b=no", "--", "true"], "--answer a.b=no: not JSON"),
        (["verify", "--input", "a.b=NaN", "--", "true"], "--input a.b=NaN: not JSON"),
        (["verify", "--report", "/no/folder/report.json", "--", "true"], "give --report a file in a folder"),
    ],
)
def test_a_command_that_is_written_wrongly_says_what_to_write(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_without_what_it_needs_the_command_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['jsonschema_rs'] = None\n"
        "from antiphon.cli.main import main; sys.exit(main(['verify', '--', 'true']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    remedy = 'in a checkout of Antiphon, run: pip install "./sdk/python[verify]"'
    assert done.stderr == f"antiphon: jsonschema-rs is not installed; {remedy}\n"


def test_the_cases_are_listed_with_their_meaning() -> None:
    listed = run("verify", "--list").stdout
    assert all(case.name in listed and case.meaning in listed for case in ALL)
