"""Page tokens of nobody: whoever makes one up, even with the right digest, is told so and nothing else."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any, cast

import pytest
from antiphon.v1 import run_service_pb2 as api
from antiphon.v1.error_pb2 import ErrorReason
from antiphon_orchestrator.api import paging
from antiphon_orchestrator.api.errors import ApiError
from antiphon_orchestrator.archive import Archive
from antiphon_orchestrator.archive.sqlite import SqliteArchive
from antiphon_orchestrator.runs import listing
from antiphon_orchestrator.runs.listing import InvalidToken, RunListing
from antiphon_orchestrator.shards.host import Host
from hypothesis import example, given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def forged(parts: Any, digest: str) -> str:
    text = json.dumps([digest, *parts] if isinstance(parts, list) else parts)
    return urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@example([1 << 64, 1])
@example([-5, 1])
@example([True, False])
@given(JSON)
def test_a_forged_position_is_one_that_could_be_or_is_refused(parts: Any) -> None:
    request = api.ListTasksRequest(run_id="r")
    request.page_token = forged(parts, paging._digest(request))
    try:
        position = paging.decode_token(request, int, int)
    except ApiError as error:
        assert error.reason == ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID
    else:
        assert position is not None and all(type(part) is int and -1 <= part < 1 << 63 for part in position)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800"])
def test_half_a_letter_is_no_position(text: str) -> None:
    request = api.ListTasksRequest(run_id="r")
    request.page_token = forged([text, 1], paging._digest(request))
    with pytest.raises(ApiError):
        paging.decode_token(request, str, int)
    request.page_token = forged(["\N{MUSICAL SYMBOL G CLEF}", 1], paging._digest(request))
    assert paging.decode_token(request, str, int) == ["\N{MUSICAL SYMBOL G CLEF}", 1]


@given(st.text(max_size=50) | st.binary(max_size=50).map(lambda data: urlsafe_b64encode(data).decode()))
def test_any_other_text_is_refused(token: str) -> None:
    request = api.ListTasksRequest(run_id="r", page_token=token)
    if token:
        with pytest.raises(ApiError):
            paging.decode_token(request, int, int)
        with pytest.raises(InvalidToken):
            listing._parse(token, "digest")


@pytest.mark.parametrize("position", ["9" * 30 + "/r", "-1/r", "9" * 5000 + "/r", "x/r", "1", "1/2/3", "²/r"])
async def test_a_listing_does_not_ask_the_archive_what_no_run_can_have(position: str) -> None:
    request = api.ListRunsRequest()
    token = f"{listing._digest('demo', request)}/{position}"
    request.page_token = urlsafe_b64encode(token.encode()).decode()
    nobody = RunListing(cast(Host, None), cast(Archive, SqliteArchive("sqlite://")))
    with pytest.raises(InvalidToken):
        await nobody.page("demo", request, ())
