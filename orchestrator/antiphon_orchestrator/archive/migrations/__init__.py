"""How the archive's tables became what they are. One file a step, applied in order, never changed once released.

A new step: a file in `versions`, its number in `schema.REVISIONS`, and the same in `tables.py`.
"""
