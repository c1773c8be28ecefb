"""Policies: who may submit, see and operate what, and where labelled data may flow.

The rest of the orchestrator knows `PolicyPort` and the words of `model.py`; only the composition root names
`CedarPolicies`. A decision is never made anywhere else, and nothing loaded means everything is denied.
"""

from antiphon_orchestrator.policy.bundle import PolicyBundle, PolicyError, PolicyFile, dev_profile, load_folder
from antiphon_orchestrator.policy.cedar import CedarPolicies, Recent, would_decide
from antiphon_orchestrator.policy.model import (
    Action,
    Decision,
    Limit,
    Obligation,
    Outcome,
    PolicyPort,
    Request,
    ResourceKind,
)
from antiphon_orchestrator.policy.rules import compile_bundle
from antiphon_orchestrator.policy.schema import FactInvalid, facts_of, schema_json

__all__ = [
    "Action",
    "CedarPolicies",
    "Decision",
    "FactInvalid",
    "Limit",
    "Obligation",
    "Outcome",
    "PolicyBundle",
    "PolicyError",
    "PolicyFile",
    "PolicyPort",
    "Recent",
    "Request",
    "ResourceKind",
    "compile_bundle",
    "dev_profile",
    "facts_of",
    "load_folder",
    "schema_json",
    "would_decide",
]
