"""Several replicas on one store: who is there, who owns which shard, and how a call reaches the owner.

`assignment.py` decides and is pure; `membership.py` follows the store; `steward.py` carries out what was decided;
`peers.py` calls other replicas; `routing.py` finds the replica that answers a call.
"""
