"""Every key of the store, spelled here and nowhere else.

A key is `kind/part/part…`. Parts that users choose are percent-escaped where they hold a "/" or "%", so no name can
forge another key or reach out of its prefix. Numbers are fixed-width hexadecimal, so key order is number order.
A prefix ends with "/" and covers exactly the keys that begin with its parts.
"""

from __future__ import annotations

LOG = b"log/"
"""Prefix of the journal of all shards: nobody watches it, so backends may keep no history for it."""

AUDIT = b"audit/"
"""Prefix of the records of all audit chains, which nobody watches either."""

AUDIT_HEADS = b"audit-head/"

REQUESTS = b"requests/"
"""Prefix of the request ids of archived runs of all shards; nobody watches them."""

UNWATCHED = (LOG, AUDIT, AUDIT_HEADS, REQUESTS)

AGENTS = b"agent/"
ALIVE = b"alive/"
REPLICAS = b"replica/"
SHARDS = b"shard/"
POLICIES = b"policy/"
TOKENS = b"token/"
REVOCATIONS = b"revocation/"
CONTEXT = b"context/"
CLAIMS = b"claim/"
CONTEXT_REQUESTS = b"context-request/"
SECRETS = b"secret/"

STORE_MARK = b"store/mark"
"""What replicas put to mark a revision that history may be forgotten before."""


def replica(replica_id: str) -> bytes:
    """Leased marker and addresses of a live orchestrator replica."""
    return _spell("replica", replica_id)


def common() -> bytes:
    """What all replicas on the store have in common."""
    return b"cluster/common"


def shard_count() -> bytes:
    """How many shards the store is divided into, for all its life."""
    return b"shard/count"


def shard_owner(shard: int) -> bytes:
    """Who owns a shard, and with which epoch."""
    return b"shard/%04x/owner" % shard


def log(shard: int, seq: int) -> bytes:
    """One journal record of a shard; key order is `seq` order."""
    return b"log/%04x/%016x" % (shard, seq)


def log_prefix(shard: int) -> bytes:
    """All journal records of a shard."""
    return b"log/%04x/" % shard


def request(principal: str, request_id: str) -> bytes:
    """A request id of a call that belongs to no shard."""
    return _spell("request", principal, request_id)


def request_prefix(principal: str) -> bytes:
    """All such request ids of one caller."""
    return _spell("request", principal) + b"/"


def requests(shard: int, seq: int) -> bytes:
    """Request ids of archived runs of a shard; key order is `seq` order."""
    return b"requests/%04x/%016x" % (shard, seq)


def requests_prefix(shard: int) -> bytes:
    """All retained request ids of a shard."""
    return b"requests/%04x/" % shard


def agent(namespace: str, name: str, instance: str) -> bytes:
    """The registry record of an agent instance: a fact, never leased."""
    return _spell("agent", namespace, name, instance)


def agent_prefix(namespace: str) -> bytes:
    """All agent instances of a namespace."""
    return _spell("agent", namespace) + b"/"


def verified(namespace: str, name: str) -> bytes:
    """Which versions of an agent were proven."""
    return _spell("verified", namespace, name)


def alive(namespace: str, name: str, instance: str) -> bytes:
    """Leased, empty marker that an agent instance is attached."""
    return _spell("alive", namespace, name, instance)


def alive_prefix(namespace: str) -> bytes:
    """All markers of attached agent instances of a namespace."""
    return _spell("alive", namespace) + b"/"


def context(namespace: str, scope: str, key: str) -> bytes:
    """One entry of shared context."""
    return _spell("context", namespace, scope, key)


def context_prefix(namespace: str, scope: str) -> bytes:
    """All entries of a scope."""
    return _spell("context", namespace, scope) + b"/"


def policy_current() -> bytes:
    """Which policy epoch is in force."""
    return b"policy/current"


def policy_epoch(epoch: int) -> bytes:
    """The record of one policy epoch; key order is epoch order."""
    return b"policy/epoch/%016x" % epoch


def policy_epochs() -> bytes:
    """The records of all kept policy epochs."""
    return b"policy/epoch/"


def policy_text(epoch: int) -> bytes:
    """The texts of one policy epoch."""
    return b"policy/text/%016x" % epoch


def context_range(namespace: str, scope: str, prefix: str) -> bytes:
    """The entries of a scope whose keys begin with `prefix`. It ends where that does, so it covers longer names too."""
    return context_prefix(namespace, scope) + _escape(prefix).encode()


def claim(namespace: str, scope: str, name: str) -> bytes:
    """Who holds a claim of a scope."""
    return _spell("claim", namespace, scope, name)


def context_request(namespace: str, caller: str, request_id: str) -> bytes:
    """A request id of a write to shared context."""
    return _spell("context-request", namespace, caller, request_id)


def graph(namespace: str, name: str, version: str) -> bytes:
    """One immutable version of a registered graph. The newest is the one with the highest create revision."""
    return _spell("graph", namespace, name, version)


def graph_prefix(namespace: str) -> bytes:
    """All versions of all graphs of a namespace."""
    return _spell("graph", namespace) + b"/"


def graph_versions_prefix(namespace: str, name: str) -> bytes:
    """All versions of one graph."""
    return _spell("graph", namespace, name) + b"/"


def token(token_id: str) -> bytes:
    """The record of a join token; its secret is stored only as a hash."""
    return _spell("token", token_id)


def revoked_identity(namespace: str, kind: str, name: str) -> bytes:
    """What was revoked of an identity."""
    return _spell("revocation", namespace, "identity", kind, name)


def revoked_serial(namespace: str, serial: str) -> bytes:
    """A certificate that was revoked by its serial number, hexadecimal."""
    return _spell("revocation", namespace, "serial", serial)


def secret(name: str) -> bytes:
    """Key material that replicas share."""
    return _spell("secret", name)


def audit(chain: str, seq: int) -> bytes:
    """A page of an audit chain, by the number of its first record; key order is `seq` order."""
    return _spell("audit", chain) + b"/%016x" % seq


def audit_prefix(chain: str) -> bytes:
    """All pages of one audit chain."""
    return _spell("audit", chain) + b"/"


def audit_head(chain: str) -> bytes:
    """Where an audit chain ends."""
    return _spell("audit-head", chain)


def parts(key: bytes) -> tuple[str, ...]:
    """The kind and the unescaped parts of a key that this module spelled; numbers stay hexadecimal text."""
    return tuple(part.replace("%2F", "/").replace("%25", "%") for part in key.decode().split("/"))


def _spell(kind: str, *names: str) -> bytes:
    return "/".join((kind, *map(_escape, names))).encode()


def _escape(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")
