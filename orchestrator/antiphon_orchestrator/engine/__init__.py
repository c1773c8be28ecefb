"""The pure engine: what a run is, what may happen to it and what should happen next.

It imports the standard library only and knows no clock, no network and no chance; `states.py` holds every transition,
`run.apply` is the only mutator, `decide.py` answers events. Held by the import contracts in `make check`.
"""
