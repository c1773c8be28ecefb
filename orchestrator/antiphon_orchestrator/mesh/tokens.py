"""Attempt tokens: proof that a request comes from whoever was given the attempt.

A token is a keyed BLAKE2b of the attempt id, so it is checked without being kept; the key lives in the store and never
leaves the orchestrator.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from ..shards.log import settle
from ..store import keys
from ..store.port import Compare, Put, Store, Target, Txn

_KEY = keys.secret("attempt-tokens")


class AttemptTokens:
    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    async def load(cls, store: Store) -> AttemptTokens:
        """The tokens of this installation; makes their key when there is none."""
        made = secrets.token_bytes(32)
        txn = Txn((Compare(_KEY, Target.CREATE_REVISION, 0),), (Put(_KEY, made),), (_KEY,))
        result = await settle(store, txn)
        found = None if result.succeeded else result.observed[_KEY]
        return cls(found.value if found else made)

    def make(self, attempt_id: str) -> tuple[bytes, str]:
        """The token of an attempt, and the span id of its trace, 16 hexadecimal digits."""
        digest = hashlib.blake2b(attempt_id.encode(), key=self._key, digest_size=24).digest()
        return digest[:16], digest[16:].hex()

    def valid(self, attempt_id: str, token: bytes) -> bool:
        return hmac.compare_digest(self.make(attempt_id)[0], token)
