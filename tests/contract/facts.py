"""What exists in the mesh of the cases, by the names of the fields that hold it.

This is all that is said by hand about requests. A field whose name is not here gets a value that keeps its rules, which
is enough for every case; a fact makes a valid request one that has something to do.
"""

from __future__ import annotations

import hashlib

from tests.contract.values import Fact

AGENT, CAPABILITY, GRAPH, TASK = "player", "work.echo@1", "facts", "t"
CONTENT = b"what is kept for the cases that ask for it"
"""Of a payload that was uploaded."""


def fresh(tag: str) -> str:
    """An id of 32 hexadecimal digits, for one purpose."""
    return hashlib.sha256(tag.encode()).hexdigest()[:32]


FACTS: dict[str, Fact] = {
    # What exists.
    "Agent": AGENT,
    "AgentDescription.name": AGENT,
    "Graph": GRAPH,
    "agent": AGENT,
    "capability": CAPABILITY,
    "chunk": CONTENT,
    "digest": hashlib.sha256(CONTENT).hexdigest(),
    "task_id": TASK,
    "version": "1",
    # What is new each time.
    "call_id": fresh,
    "incarnation": fresh,
    "name": lambda tag: f"n{fresh(tag)}",
    "request_id": fresh,
    # Texts in languages of which the contract knows nothing.
    "action": "read",
    "for_each": "[1]",
    "input": '"text"',
    "input_schema": "{}",
    "media_type": "application/json",
    "output": '"text"',
    "output_schema": "{}",
    "principal": "client/ann",
    "resource_id": "r1",
    "resource_kind": "Run",
    "when": "true",
    # What no descriptor says: a stream must begin with its hello.
    "hello": ...,
    # What is left alone: it would have to refer to something else in the request, or to an earlier answer.
    "GraphTask.needs": None,
    "cursor": None,
    "facts": None,
    "member": None,
    "page_token": None,
    # It decides where a value may go, and then some would go nowhere; or makes a caller wait for a run's end.
    "Payload.field_labels": None,
    "Payload.labels": None,
    "wait": None,
}
