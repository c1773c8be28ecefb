"""A script without asyncio: which of some words is nearest to a first one?"""

import sys
from pathlib import Path

from antiphon import load_graph, output_of, sync

word, *others = sys.argv[1:]
graph = load_graph(Path(__file__).with_name("graph.yaml")).graph
with sync.Client.connect() as client:
    run = client.submit(graph, {"texts": [word, *others]}, wait=True)
    first, *vectors = [one["values"] for one in output_of(run)]


def likeness(vector: list[float]) -> float:
    return sum(a * b for a, b in zip(first, vector, strict=True))


print(max(zip(others, vectors, strict=True), key=lambda pair: likeness(pair[1]))[0])
