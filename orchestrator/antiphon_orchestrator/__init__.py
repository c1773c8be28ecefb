"""The Antiphon orchestrator: one control-plane replica.

It turns graphs into tasks, places each task on an agent that can do it, and keeps a durable, governed record of what
happened. `app.py` is the only module that knows every adapter; dependencies point one way, towards the pure engine.
"""
