"""Rows and statements that both databases share: pure, nothing is executed here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Delete, FromClause, Row, Select, delete, exists, func, literal, select, tuple_

from .model import (
    ArchivedRequest,
    ArchivedRun,
    AuditPage,
    EventChunk,
    RunFilter,
    from_micros,
    make_page_token,
    read_page_token,
    to_micros,
)
from .tables import audit_pages, called_by, encode_labels, failed_with, run_events, run_labels, runs

HasLabel = Callable[[str, str], ColumnElement[bool]]


def run_row(run: ArchivedRun) -> dict[str, Any]:
    """A run as a row of `runs`."""
    return {
        "run_id": run.run_id,
        "namespace": run.namespace,
        "graph_name": run.graph_name,
        "graph_version": run.graph_version,
        "state": run.state,
        "principal": run.principal,
        "request_key": run.request_key,
        "request_digest": run.request_digest,
        "parent": run.parent,
        "labels": encode_labels(run.labels),
        "failure_text": run.failure_text,
        "failure_kind": run.failure_kind,
        "failure_code": run.failure_code,
        "create_time": to_micros(run.create_time),
        "end_time": None if run.end_time is None else to_micros(run.end_time),
        "last_event_seq": run.last_event_seq,
    }


def chunk_row(chunk: EventChunk) -> dict[str, Any]:
    """A chunk as a row of `run_events`."""
    return {
        "run_id": chunk.run_id,
        "first_seq": chunk.first_seq,
        "last_seq": chunk.last_seq,
        "data": chunk.data,
    }


def run_of(row: Row[Any]) -> ArchivedRun:
    """The inverse of `run_row`."""
    values = dict(row._mapping)
    values["labels"] = json.loads(row.labels)
    values["create_time"] = from_micros(row.create_time)
    values["end_time"] = None if row.end_time is None else from_micros(row.end_time)
    return ArchivedRun(**values)


def select_run(run_id: str) -> Select[Any]:
    return select(runs).where(runs.c.run_id == run_id)


def select_events(run_id: str, after_seq: int, limit: int) -> Select[Any]:
    later = select(run_events).where(run_events.c.run_id == run_id, run_events.c.last_seq > after_seq)
    return later.order_by(run_events.c.first_seq).limit(limit)


def chunks_of(rows: Sequence[Row[Any]], after_seq: int) -> list[EventChunk]:
    """The chunks of `select_events` that say something new, in order."""
    chunks: list[EventChunk] = []
    for row in rows:
        if row.last_seq > after_seq:  # else an earlier chunk holds all of it
            chunks.append(chunk_of(row))
            after_seq = row.last_seq
    return chunks


def chunk_of(row: Row[Any]) -> EventChunk:
    """The inverse of `chunk_row`."""
    return EventChunk(row.run_id, row.first_seq, row.last_seq, row.data)


def select_page(filter: RunFilter, page_size: int, page_token: str, has_label: HasLabel | None) -> Select[Any]:
    """One row more than the page, which says whether another follows. Raises InvalidPageToken.

    Without `has_label` labels have a table, in the order of which those runs are looked at that have the first of them.
    """
    if page_size <= 0:
        raise ValueError(f"a page holds at least one run, not {page_size}")
    query, labels = select(runs), filter.labels
    time: ColumnElement[int] = runs.c.create_time
    run_id: ColumnElement[str] = runs.c.run_id
    if labels and has_label is None:
        query = query.select_from(run_labels.join(runs, run_labels.c.run_id == runs.c.run_id))
        query = query.where(*_labelled(run_labels, filter.namespace, labels[0]))
        for label in labels[1:]:
            other = run_labels.alias()
            same = (other.c.create_time == run_labels.c.create_time, other.c.run_id == run_labels.c.run_id)
            query = query.where(exists().where(*_labelled(other, filter.namespace, label), *same))
        time, run_id = run_labels.c.create_time, run_labels.c.run_id
    elif has_label is not None:
        query = query.where(*(has_label(key, value) for key, value in labels))
    query = query.where(*_conditions(filter, time))
    if page_token:
        position = tuple_(*(literal(part) for part in read_page_token(filter, page_token)))
        query = query.where(tuple_(time, run_id) < position)
    return query.order_by(time.desc(), run_id.desc()).limit(page_size + 1)


def _labelled(rows: FromClause, namespace: str, label: tuple[str, str]) -> Iterator[ColumnElement[bool]]:
    yield rows.c.namespace == namespace
    yield rows.c.name == label[0]
    yield rows.c.value == label[1]


def page_of(rows: Sequence[Row[Any]], filter: RunFilter, page_size: int) -> tuple[list[ArchivedRun], str]:
    """The page of `select_page`, and the token of the next."""
    page = rows[:page_size]
    more = len(rows) > page_size
    token = make_page_token(filter, page[-1].create_time, page[-1].run_id) if more else ""
    return [run_of(row) for row in page], token


def select_behind(after: tuple[str, int], limit: int) -> Select[Any]:
    """Chunks of all runs, behind a position in their key."""
    key = tuple_(run_events.c.run_id, run_events.c.first_seq)
    behind = key > tuple_(literal(after[0]), literal(after[1]))
    return select(run_events).where(behind).order_by(run_events.c.run_id, run_events.c.first_seq).limit(limit)


def select_ended(time: datetime, limit: int) -> Select[Any]:
    """Ids of the oldest runs that ended before `time`."""
    return select(runs.c.run_id).where(runs.c.end_time < to_micros(time)).order_by(runs.c.end_time).limit(limit)


def select_requests(after: tuple[datetime, str], limit: int) -> Select[Any]:
    """Requests of ended runs, behind a position in the order of their end."""
    key = tuple_(runs.c.end_time, runs.c.run_id)
    behind = key > tuple_(literal(to_micros(after[0])), literal(after[1]))
    some = select(runs.c.run_id, runs.c.request_key, runs.c.request_digest, runs.c.end_time).where(behind)
    return some.order_by(runs.c.end_time, runs.c.run_id).limit(limit)


def request_of(row: Row[Any]) -> ArchivedRequest:
    """A row of `select_requests`."""
    return ArchivedRequest(row.run_id, row.request_key, row.request_digest, from_micros(row.end_time))


def audit_row(page: AuditPage) -> dict[str, Any]:
    """A page as a row of `audit_pages`."""
    return {
        "chain": page.chain,
        "first_seq": page.first_seq,
        "last_seq": page.last_seq,
        "last_time": to_micros(page.last_time),
        "data": page.data,
    }


def audit_page_of(row: Row[Any]) -> AuditPage:
    """The inverse of `audit_row`."""
    return AuditPage(row.chain, row.first_seq, row.last_seq, from_micros(row.last_time), row.data)


def select_audit(chain: str, first: int, last: int, limit: int) -> Select[Any]:
    """Pages that hold any of the records `first` to `last`. The first such is found by its key, not by looking at all
    that are older."""
    key, of_chain = audit_pages.c.first_seq, audit_pages.c.chain == chain
    begins = select(func.coalesce(func.max(key), 0)).where(of_chain, key <= first).scalar_subquery()
    some = select(audit_pages).where(of_chain, key >= begins, key <= last, audit_pages.c.last_seq >= first)
    return some.order_by(key).limit(limit)


def delete_audit(chain: str, last: int, limit: int) -> Delete:
    """Deletes the oldest pages of a chain that hold no record after `last`."""
    key, of_chain = audit_pages.c.first_seq, audit_pages.c.chain == chain
    oldest = select(key).where(of_chain, key <= last, audit_pages.c.last_seq <= last).order_by(key).limit(limit)
    return delete(audit_pages).where(of_chain, key.in_(oldest.scalar_subquery()))


def _conditions(filter: RunFilter, time: ColumnElement[int]) -> Iterator[ColumnElement[bool]]:
    yield runs.c.namespace == filter.namespace
    if filter.graph_name is not None:
        yield runs.c.graph_name == filter.graph_name
    if filter.graph_version:
        yield runs.c.graph_version == filter.graph_version
    if filter.states:
        yield runs.c.state.in_(filter.states)
    if filter.created_after is not None:
        yield time >= to_micros(filter.created_after)
    if filter.created_before is not None:
        yield time < to_micros(filter.created_before)
    if filter.parent:
        yield called_by(filter.parent)
    if filter.failure:
        yield failed_with(filter.failure)
