"""No name can forge another key or leave its prefix."""

from __future__ import annotations

from collections.abc import Callable

from antiphon_orchestrator.store import keys, prefix_end
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.sampled_from("a/%2F5.é\0 ")) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SHARDS = st.integers(0, 0xFFFF)
SEQS = st.integers(0, 2**64 - 1)

ONE = (keys.replica, keys.token, keys.secret)
THREE = (keys.agent, keys.alive, keys.context, keys.graph, keys.claim, keys.context_request)
Spelled = tuple[Callable[..., bytes], tuple[object, ...]]

SPELLINGS: st.SearchStrategy[Spelled] = st.one_of(
    st.tuples(st.sampled_from(ONE), st.tuples(NAMES)),
    st.tuples(st.sampled_from(THREE), st.tuples(NAMES, NAMES, NAMES)),
    st.tuples(st.just(keys.shard_owner), st.tuples(SHARDS)),
    st.tuples(st.just(keys.log), st.tuples(SHARDS, SEQS)),
    st.tuples(st.just(keys.audit), st.tuples(NAMES, SEQS)),
)


@given(SPELLINGS, SPELLINGS)
def test_different_things_have_different_keys(one: Spelled, other: Spelled) -> None:
    assert (one[0](*one[1]) == other[0](*other[1])) == (one == other)


@given(SPELLINGS)
def test_a_key_gives_its_parts_back(spelled: Spelled) -> None:
    function, parts = spelled
    key = function(*parts)
    assert key and b"\xff" not in key
    names = [part for part in parts if isinstance(part, str)]
    assert [part for part in keys.parts(key)[1:]][: len(names)] == names


PREFIXES: tuple[tuple[Callable[..., bytes], Callable[..., bytes], int], ...] = (
    (keys.agent_prefix, keys.agent, 1),
    (keys.alive_prefix, keys.alive, 1),
    (keys.context_prefix, keys.context, 2),
    (keys.graph_prefix, keys.graph, 1),
    (keys.graph_versions_prefix, keys.graph, 2),
)


@given(st.sampled_from(PREFIXES), st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES))
def test_a_prefix_covers_exactly_what_shares_its_parts(
    prefix: tuple[Callable[..., bytes], Callable[..., bytes], int],
    names: tuple[str, str, str],
    others: tuple[str, str, str],
) -> None:
    prefix_of, key_of, count = prefix
    start = prefix_of(*names[:count])
    key = key_of(*others)
    assert (start <= key < prefix_end(start)) == (names[:count] == others[:count])


@given(st.tuples(SHARDS, SEQS), st.tuples(SHARDS, SEQS))
def test_journal_keys_are_ordered_by_number_within_their_shard(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (keys.log(*one) < keys.log(*other)) == (one < other)
    assert keys.log(*one).startswith(keys.LOG)
    assert keys.log(*one).startswith(keys.log_prefix(other[0])) == (one[0] == other[0])


@given(NAMES, SEQS, NAMES, SEQS)
def test_audit_keys_are_ordered_by_number_within_their_writer(one: str, seq: int, other: str, number: int) -> None:
    assert keys.audit(one, seq).startswith(keys.audit_prefix(other)) == (one == other)
    assert (keys.audit(one, seq) < keys.audit(one, number)) == (seq < number)


def test_every_key_is_under_the_prefix_of_its_kind() -> None:
    assert keys.replica("r").startswith(keys.REPLICAS)
    assert keys.shard_owner(1).startswith(keys.SHARDS)
    assert keys.agent("n", "a", "i").startswith(keys.AGENTS)
    assert keys.alive("n", "a", "i").startswith(keys.ALIVE)
    for policy in (keys.policy_current(), keys.policy_epochs(), keys.policy_epoch(1), keys.policy_text(1)):
        assert policy.startswith(keys.POLICIES)
    assert keys.policy_epoch(9).startswith(keys.policy_epochs()) and keys.policy_epoch(9) < keys.policy_epoch(10)
    assert keys.token("t").startswith(keys.TOKENS)
    assert keys.secret("s").startswith(keys.SECRETS)


def test_a_prefix_end_carries_over_full_bytes() -> None:
    assert prefix_end(b"a") == b"b"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") == b"\0"
