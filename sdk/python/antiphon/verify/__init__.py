"""`antiphon verify`: proves that a program, in whatever language, is an agent as the contract describes one.

A reference sidecar starts the program and plays cases on its socket; no orchestrator is needed. What it must never do:
forgive. A case that could not be played is as bad as one that failed.

    stage.py      one agent process and the sidecar it works for: what was assigned, what came of it
    line.py       one Work stream
    ledger.py     what was assigned and answered, and what an agent did besides that no agent may do
    process.py    the program
    inputs.py     values made from JSON Schemas, by a seed
    digest.py     what a report vouches for
    rules.py      what an announcement must keep
    cases/        the cases
    playing.py    plays them and makes the report
    table.py      the report for people
    command.py    the command

Needs jsonschema-rs (in a checkout: `pip install "./sdk/python[verify]"`), all but `digest`; nothing else of the SDK
imports this package.
"""
