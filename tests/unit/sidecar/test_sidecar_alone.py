"""What is to be made alone, and others that wait for their own calls meanwhile: nobody waits for ever."""

from __future__ import annotations

from test_sidecar_inflight import Bench


def calls(bench: Bench, attempt_id: str) -> None:
    assert bench.core.called(bench.core.held[attempt_id], "c", "request", 10, lambda response: None)


def test_what_is_to_be_alone_does_not_wait_for_those_that_wait_for_their_calls() -> None:
    bench = Bench(concurrency=2, prefetch=4)
    bench.offer("parent")
    bench.offer("other")
    assert bench.take() == ["parent", "other"]
    calls(bench, "parent")
    bench.offer("suspect", alone=True)
    bench.offer("child")  # of the parent
    assert bench.take() == [], "the other one is at work"
    bench.end("other")
    assert bench.take() == ["suspect"]
    assert bench.take() == [], "nothing begins beside it"
    bench.end("suspect")
    assert bench.take() == ["child"]


def test_one_that_is_alone_may_wait_for_another_that_is_to_be_alone() -> None:
    bench = Bench(concurrency=2, prefetch=4)
    bench.offer("parent", alone=True)
    assert bench.take() == ["parent"]
    bench.offer("child", alone=True)
    bench.offer("other")
    assert bench.take() == []
    calls(bench, "parent")
    assert bench.take() == ["child"]
    assert bench.take() == []
    calls(bench, "child")
    assert bench.take() == ["other"], "whom it waits for may be anybody"
    bench.end("other")
    bench.core.answered("child", "c", "response")
    bench.offer("late")
    assert bench.take() == [], "it works again"
    bench.end("child")
    bench.core.answered("parent", "c", "response")
    assert bench.take() == []
    bench.end("parent")
    assert bench.take() == ["late"]
