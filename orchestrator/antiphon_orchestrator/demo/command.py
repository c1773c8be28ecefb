"""The command: arguments, the order of the show, exit codes. Every expected failure is one line with a remedy."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antiphon.cli import output
from antiphon.cli.main import INTERRUPTED
from antiphon.cli.problems import FAILED, Problem, describe
from antiphon.cli.text import run_state

from . import languages
from .governance import Governance, denied, entry, withheld
from .mesh import Mesh
from .proof import read_journal
from .report import Report, report_of, write
from .review import Review, review
from .screen import Screen

PROGRAMS = Path(__file__).parent / "compliance"


Agents = Mapping[str, languages.Choice]


@dataclass(frozen=True, slots=True)
class _Options:
    input: Path
    out: Path
    keep: bool
    json: bool
    chaos: bool
    languages: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when all went as promised, 1 when not, 2 when it cannot be run here, 130 on Ctrl-C."""
    options = _options(arguments)
    # A temporary folder of the user may lie deep, and the path of a socket holds 107 bytes.
    place = "/tmp" if Path("/tmp").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="antiphon-demo-", dir=place)).resolve()
    try:
        return asyncio.run(_run(options, folder))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("antiphon: interrupted; everything the demo had started is stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # the last resort: a line for people, and the traceback in a file
        told = describe(error)
        print(told.json() if options.json else output.visible(told.line()), file=sys.stderr)
        return told.exit_code
    finally:
        if options.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _options(arguments: Sequence[str] | None) -> _Options:
    parser = argparse.ArgumentParser(
        prog="antiphon demo",
        description="Review the packages of a Python environment by a whole mesh on this machine: licences, summaries, "
        "contacts. In the middle an agent and the orchestrator are killed.",
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        default=Path(sysconfig.get_path("purelib")),
        help="a site-packages folder (default: that of this Python)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("antiphon-report"), help="where the report goes (%(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder: logs, store, certificates")
    parser.add_argument("--json", action="store_true", help="print facts as JSON, and nothing else")
    parser.add_argument("--no-chaos", dest="chaos", action="store_false", help="kill nothing")
    parser.add_argument(
        "--languages",
        choices=("all", "python"),
        default="all",
        help="all: agents in TypeScript and Go where those are there, which the first time takes a minute to build; "
        "python: nothing but Python (default: %(default)s)",
    )
    return _Options(**vars(parser.parse_args(arguments)))


async def _run(options: _Options, folder: Path) -> int:
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    loop.add_signal_handler(signal.SIGTERM, main.cancel)
    began = time.monotonic()
    site = options.input.resolve()
    if not any(site.glob("*.dist-info")) and not any(site.glob("*.egg-info")):
        raise Problem(f"{options.input} holds no installed packages", "give a site-packages folder with --input")
    options.out.mkdir(parents=True, exist_ok=True)  # before half a minute of work, not after
    screen = Screen(output.silent() if options.json else output.data())
    with screen:
        async with Mesh(folder, PROGRAMS) as mesh:
            agents = await _agents(options.languages, folder, screen)
            done, governed, runtimes = await _show(mesh, site, options.chaos, agents, screen)
            report = report_of(site, done.run, done.tasks)
    paths = [str(path.resolve()) for path in write(report, options.out)]
    seconds = time.monotonic() - began
    if options.json:
        output.show_json(
            {
                **_facts(done, governed, report, paths, seconds),
                "agents": runtimes,
                "not_built": {agent: choice.why_not for agent, choice in agents.items() if choice.why_not},
            }
        )
    else:
        screen.tell(done, governed, report, paths)
    if done.proof is not None and done.proof.ran_again:
        raise Problem("work that had finished ran again: " + ", ".join(done.proof.ran_again), exit_code=FAILED)
    return 0


async def _agents(wanted: str, folder: Path, screen: Screen) -> Agents:
    """How each agent that its sidecar starts is started."""
    if wanted == "python":
        return languages.python(PROGRAMS)
    names = " and ".join(f"{agent} in {language}" for agent, (language, _) in languages.TWINS.items())
    screen.say(f"{names}: building what is not built yet (a minute, the first time)", "…", "cyan")
    chosen = await languages.choose(PROGRAMS, folder)
    for agent, choice in chosen.items():
        if choice.why_not:
            screen.say(f"{agent} runs in Python, not {languages.TWINS[agent][0]}: {choice.why_not}", "!", "yellow")
    return chosen


async def _show(
    mesh: Mesh, site: Path, chaos: bool, agents: Agents, screen: Screen
) -> tuple[Review, Governance, dict[str, str]]:
    mesh.certify()
    screen.say("a certificate authority: root, intermediate, and certificates for one hour each")
    await mesh.serve()
    screen.say(f"an orchestrator with its store, process {mesh.orchestrator.pid}; mutual TLS everywhere")
    runtimes: dict[str, str] = {}
    await mesh.attach({agent: choice.command for agent, choice in agents.items()}, runtimes.__setitem__)
    told = ", ".join(f"{agent} ({runtime})" for agent, runtime in runtimes.items())
    screen.say(f"five agents, each behind a sidecar that joined with a token: {told}")
    async with mesh.client() as client:
        done = await review(mesh, client, PROGRAMS, site, chaos, screen)
        refused = await denied(client)
        screen.say("a text labelled restricted was submitted: policy denied it, and its run failed")
        journal = read_journal(mesh.journal.read_text("utf-8"))
        governed = Governance(withheld(done.attempts, done.subjects, journal), refused, await entry(client))
        return done, governed, runtimes


def _facts(done: Review, governed: Governance, report: Report, paths: Sequence[str], seconds: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "folder": report.folder,
        "run_id": done.run.run_id,
        "packages": len(report.rows),
        "tasks": done.run.totals.total,
        "succeeded": done.run.totals.succeeded,
        "attempts": sum(task.attempt_count for task in done.tasks),
        "events": done.events,
        "by_kind": report.totals["by_kind"],
        "attention": len(report.totals["attention"]),
        "report": paths,
        "seconds": round(seconds, 2),
        "crash": None,
        **_governed(governed),
    }
    if done.crash is not None and done.proof is not None:
        facts["crash"] = {
            "agent_pid": done.crash.agent_pid,
            "orchestrator_pid": done.crash.orchestrator_pid,
            "new_orchestrator_pid": done.crash.new_orchestrator_pid,
            "cursor": done.crash.cursor,
            "orchestrator_back_after": done.crash.orchestrator_back,
            "agent_back_after": done.crash.agent_back,
            "finished_before": done.proof.finished_before,
            "ran_again": list(done.proof.ran_again),
            "begun": done.proof.begun,
            "repeated": done.proof.repeated,
        }
    return facts


def _governed(governed: Governance) -> dict[str, Any]:
    held, refused, kept = governed.withheld, governed.denied, governed.entry
    made, wrote = refused.decision.decision, kept.provenance
    return {
        "withheld": {
            "from": "summarizer",
            "tasks": held.tasks,
            "by_policy": held.by_policy,
            "by_schema": held.by_schema,
            "policies": held.policies,
            "received": held.received,
            "example": {
                "package": held.package,
                "parts": [{"pointer": pointer, "reason": reason} for pointer, reason in held.parts],
            },
        },
        "denied": {
            "run_id": refused.run.run_id,
            "state": run_state(refused.run.state),
            "reason": made.reason,
            "policies": list(made.policies),
            "places": list(refused.decision.places),
            "decision_id": made.decision_id,
            "epoch": made.epoch,
        },
        "context": {
            "key": kept.key,
            "value": json.loads(kept.value.inline),
            "revision": kept.revision,
            "run_id": wrote.run_id,
            "attempt_id": wrote.attempt_id,
            "agent": wrote.agent,
            "labels": [label.key for label in kept.value.labels],
        },
    }
