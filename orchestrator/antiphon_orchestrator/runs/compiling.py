"""Graphs are compiled where nobody waits for them: a large one, which takes up to seconds, in a thread of its own.

The thread needs the interpreter lock as well, and gives it up every few milliseconds. One graph at a time is compiled
there, so that many large ones leave the event loop its share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from antiphon.v1 import graph_pb2

from ..admission import TRAITS, Compiled, Values, compile_graph

LARGE = 16 * 1024
"""Bytes of a graph from which on it is compiled in the thread; a smaller one takes some 20 ms at most."""

_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="graphs")


async def compile_aside(
    graph: graph_pb2.Graph, *, offered: Callable[[str, str], bool] | None = None, values: Values | None = None
) -> Compiled:
    """`admission.compile_graph`, whose errors it raises. The graph must not change meanwhile."""
    if graph.ByteSize() < LARGE:
        return compile_graph(graph, offered=offered, values=values)
    # Asked here, since what answers it belongs to the event loop.
    known = _answers(graph, offered) if offered is not None else None
    work = partial(compile_graph, graph, offered=known, values=values)
    return await asyncio.get_running_loop().run_in_executor(_thread, work)


def _answers(graph: graph_pb2.Graph, offered: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """The same answers, for what a graph can ask."""
    answers: dict[tuple[str, str], bool] = {}
    for capability in {name for task in graph.tasks for name in (task.capability, task.compensate.capability)}:
        for trait in ("", *TRAITS):
            try:
                answers[capability, trait] = offered(capability, trait)
            except ValueError:
                answers[capability, trait] = False  # it asks for no capability, which is a mistake of the graph
    return lambda capability, trait: answers[capability, trait]
