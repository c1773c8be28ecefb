"""The data plane of Antiphon: a proxy beside agents that attaches to the orchestrators and speaks for them.

Run it with `python -m antiphon_sidecar run`, or `antiphon sidecar run`. Nothing here is a library for others but
`__main__.main`; the wire contracts are antiphon.mesh.v1 (up) and antiphon.v1.AgentService (down).
"""
