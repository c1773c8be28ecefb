"""The orchestrator's side of MeshService: streams of sidecars, and what goes out and comes in on them."""
