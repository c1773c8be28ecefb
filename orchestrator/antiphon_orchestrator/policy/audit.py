"""What is kept of a decision, and how it is told to a person.

The shard journals the records beside what they decided; their wire form is the journal's business.
"""

from typing import NamedTuple

from antiphon_orchestrator.policy.model import Decision, Request, Value


class AuditRecord(NamedTuple):
    """One decision and what it was about; the ids are empty where there is no run or task. Time is the journal's."""

    request: Request
    decision: Decision
    run_id: str = ""
    task_id: str = ""


def explain(decision: Decision, request: Request) -> str:
    """The decision and every fact it rests on, a line each."""
    facts = [
        ("reason", decision.reason),
        ("decision", f"{decision.decision_id} (policy epoch {decision.epoch})"),
        ("policies", ", ".join(decision.policies) or "none"),
        ("principal", f"{request.principal} ({request.principal_kind})"),
        *(("obligation", " ".join((obligation.name, *obligation.params))) for obligation in decision.obligations),
        *((name, _shown(value)) for name, value in request.attributes),
    ]
    title = f"{decision.outcome} {request.action} on {request.resource_kind} {request.namespace}/{request.resource_id}"
    return "\n".join([title, *(f"  {name:<16} {text}" for name, text in facts)])


def _shown(value: Value) -> str:
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "none"
    return str(value)
