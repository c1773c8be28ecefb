"""Writing to the store from a handler: the identical transaction again until the answer is definite.

An unclear answer may mean committed, so whoever compares for absence finds his own record at the second try; callers
look at what is there and treat a record equal to theirs as success.
"""

from __future__ import annotations

import asyncio
import random

from antiphon_orchestrator.store.port import CommitResult, Store, StoreUnavailable, Txn

_ATTEMPTS = 9
_FIRST_WAIT = 0.02
_LONGEST_WAIT = 1.0
"""Together some three seconds: longer than a cluster takes to elect another leader."""


async def settle(store: Store, txn: Txn) -> CommitResult:
    """The result of the transaction. Raises what the store raises; `StoreUnavailable` only after the last attempt.

    The call's own deadline cancels it at any moment.
    """
    for attempt in range(_ATTEMPTS - 1):
        try:
            return await store.commit(txn)
        except StoreUnavailable:
            await asyncio.sleep(min(_FIRST_WAIT * (1 << attempt), _LONGEST_WAIT) * random.uniform(0.5, 1))
    return await store.commit(txn)
