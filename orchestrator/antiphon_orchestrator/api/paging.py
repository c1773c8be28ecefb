"""Page tokens: where the next page begins, bound to the query they were given for.

A token holds no secret and grants nothing; its query's digest only catches a token that is used with other filters,
which would silently skip or repeat items.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence

from antiphon.v1.error_pb2 import ErrorReason
from google.protobuf.message import Message

from ..admission import in_utf8
from .errors import ApiError

Position = Sequence[str | int]

_MOST = 1 << 62


def encode_token(request: Message, position: Position) -> str:
    """The token of the page after `position`, for the same request."""
    text = json.dumps([_digest(request), *position], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_token(request: Message, *kinds: type[str] | type[int]) -> list[str | int] | None:
    """The position in the request's `page_token`, whose parts are of these types; None on the first page.

    Raises `ApiError` (PAGE_TOKEN_INVALID) for a token of another query, or of nobody.
    """
    token = getattr(request, "page_token")  # noqa: B009 - of any request that has pages
    if not token:
        return None
    try:
        digest, *position = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, TypeError, RecursionError):
        digest, position = None, []
    sound = digest == _digest(request) and [type(part) for part in position] == list(kinds)
    # What is beyond comes from nobody but a forger, and no database takes it; nor half a surrogate pair.
    if not sound or not all(map(_storable, position)):
        raise ApiError(ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID)
    return list(position)


def _storable(part: str | int) -> bool:
    return 0 <= part + 1 <= _MOST if isinstance(part, int) else in_utf8(part) == part


def _digest(request: Message) -> str:
    query = type(request)()
    query.CopyFrom(request)
    query.ClearField("page_token")
    query.ClearField("page_size")
    data = request.DESCRIPTOR.full_name.encode() + b"\0" + query.SerializeToString(deterministic=True)
    return hashlib.blake2b(data, digest_size=6).hexdigest()
