"""Logs hold nothing that was not meant for them; metrics are made once."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys

import pytest
from antiphon_orchestrator import telemetry


def logged(level: str = "info") -> tuple[telemetry.FilteringBoundLogger, io.StringIO]:
    stream = io.StringIO()
    telemetry.configure_logging(level, stream)
    return telemetry.logger("test"), stream


def test_a_line_is_json_with_event_time_level_and_component() -> None:
    log, stream = logged()
    log.info("listening", address="127.0.0.1:1", port=1)
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["level"], entry["component"], entry["port"]) == ("listening", "info", "test", 1)
    assert entry["time"].endswith("Z")


def test_a_field_that_nobody_declared_is_hidden() -> None:
    log, stream = logged()
    log.info("joined", secret="hunter2", payload={"name": "Ann"}, agent="a")
    entry = json.loads(stream.getvalue())
    assert (entry["secret"], entry["payload"], entry["agent"]) == ("***", "***", "a")
    assert "hunter2" not in stream.getvalue() and "Ann" not in stream.getvalue()


def test_the_end_of_a_traceback_is_kept_and_values_are_bounded() -> None:
    log, stream = logged()
    try:
        raise ValueError("x" * 100_000 + "the end")
    except ValueError as error:
        log.error("failed", exc_info=error, cause="y" * 100_000)
    entry = json.loads(stream.getvalue())
    assert entry["exception"].endswith("the end") and len(entry["exception"]) <= 16384
    assert len(entry["cause"]) == 2048


def test_lower_levels_are_left_out() -> None:
    log, stream = logged("warning")
    log.info("unheard")
    assert stream.getvalue() == ""


async def test_what_lasts_is_told_when_it_begins_and_then_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    log, stream = logged()
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    for second in range(0, 25):
        now = 1000.0 + second
        telemetry.tell_seldom(log.error, "store_takes_no_writes", seq=second)
        telemetry.tell_seldom(log.error, "store_takes_no_writes", seq=-1)
        if second == 4:
            telemetry.tell_seldom(log.warning, "lease_not_renewed", seq=second)
    said = [(entry["event"], entry["seq"]) for entry in map(json.loads, stream.getvalue().splitlines())]
    assert said == [("store_takes_no_writes", 0), ("lease_not_renewed", 4)] + [
        ("store_takes_no_writes", n) for n in (10, 20)
    ]


def test_counting_adds_up_by_label() -> None:
    metrics = telemetry.Metrics()
    metrics.count_run("FAILED")
    value = metrics.registry.get_sample_value
    assert value("antiphon_runs_total", {"state": "FAILED"}) == 1


def test_what_an_alarm_looks_for_is_there_before_the_first() -> None:
    value = telemetry.Metrics().registry.get_sample_value
    assert value("antiphon_internal_errors_total") == 0 and value("antiphon_serving") == 0


def test_metrics_that_nobody_fetches_are_counted_without_their_library() -> None:
    count = (
        "import sys; from antiphon_orchestrator.telemetry import Metrics; metrics = Metrics(fetched=False);"
        "metrics.count_run('FAILED'); metrics.streams.set(1); metrics.turn_inputs.observe(2);"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
