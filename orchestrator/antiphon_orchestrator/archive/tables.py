"""The archive's tables, and the statements that Core has no portable words for.

Times are microseconds since 1970 (exact in every database, and what paging compares). Labels are canonical JSON text.
PostgreSQL compares texts by their bytes too (collation "C"): order and letter case are then the same everywhere,
whatever its operating system thinks of a language. A change here is a migration as well (`migrations/`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    column,
    event,
    literal_column,
    table,
)
from sqlalchemy.types import TypeEngine

ROWS_AT_ONCE = (64, 8, 1)
"""Rows of one statement, tried in this order; as few texts as possible, since a database prepares each."""

Row = dict[str, Any]

metadata = MetaData()


def _text(length: int | None = None) -> TypeEngine[str]:
    return String(length).with_variant(String(length, collation="C"), "postgresql")


runs = Table(
    "runs",
    metadata,
    Column("run_id", _text(128), primary_key=True),
    Column("namespace", _text(), nullable=False),
    Column("graph_name", _text(), nullable=False),
    Column("graph_version", _text(), nullable=False),
    Column("state", _text(32), nullable=False),
    Column("principal", _text(), nullable=False),
    Column("request_key", LargeBinary, nullable=False),
    Column("request_digest", LargeBinary, nullable=False),
    Column("parent", _text(), nullable=False),
    Column("labels", _text(), nullable=False),
    Column("failure_text", _text(), nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("end_time", BigInteger),
    Column("last_event_seq", BigInteger, nullable=False),
    Column("failure_kind", BigInteger, nullable=False, server_default="0"),
    Column("failure_code", _text(), nullable=False, server_default=""),
    Index("runs_by_time", "namespace", "create_time", "run_id"),
    Index("runs_by_state", "namespace", "state", "create_time", "run_id"),
    Index("runs_by_graph", "namespace", "graph_name", "create_time", "run_id"),
    Index("runs_by_end", "end_time"),
)

# As text, since an index that names a database's options would load its dialect in every process, some 2 MB.
SEARCHED = {
    "": (
        "CREATE INDEX runs_by_parent ON runs (namespace, parent, create_time, run_id) WHERE parent <> ''",
        "CREATE INDEX runs_by_failure ON runs (namespace, create_time, run_id) WHERE failure_text <> ''",
    ),
    "postgresql": ("CREATE INDEX runs_by_label ON runs USING gin ((labels::jsonb) jsonb_path_ops)",),
    "sqlite": (
        "CREATE TABLE run_labels (namespace VARCHAR NOT NULL, name VARCHAR NOT NULL, value VARCHAR NOT NULL,"
        " create_time BIGINT NOT NULL, run_id VARCHAR(128) NOT NULL,"
        " PRIMARY KEY (namespace, name, value, create_time, run_id)) WITHOUT ROWID",
        "CREATE TRIGGER run_labels_come AFTER INSERT ON runs WHEN new.labels <> '{}' BEGIN"
        " INSERT INTO run_labels SELECT new.namespace, key, value, new.create_time, new.run_id"
        " FROM json_each(new.labels); END",
        "CREATE TRIGGER run_labels_go AFTER DELETE ON runs WHEN old.labels <> '{}' BEGIN"
        " DELETE FROM run_labels WHERE (namespace, name, value, create_time, run_id) IN"
        " (SELECT old.namespace, key, value, old.create_time, old.run_id FROM json_each(old.labels)); END",
    ),
}
"""What a listing finds runs by besides the indexes above, by database ("": any). SQLite has no index over what is in a
text, so each label has a row there, which comes and goes with its run; labels never change."""

for _dialect, _statements in SEARCHED.items():
    for _statement in _statements:
        _made = DDL(_statement).execute_if(dialect=_dialect or None)  # type: ignore[no-untyped-call]
        event.listen(runs, "after_create", _made)

run_labels = table("run_labels", *map(column, ("namespace", "name", "value", "create_time", "run_id")))
"""Of SQLite alone."""

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", _text(128), primary_key=True),
    Column("first_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

audit_pages = Table(
    "audit_pages",
    metadata,
    Column("chain", _text(128), primary_key=True),
    Column("first_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("last_time", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

archive_id = Table("archive_id", metadata, Column("id", _text(32), primary_key=True))
"""One row, made with the tables: tells this archive from any other."""


def newest(rows: Iterable[Row], keys: Sequence[str], newer_by: str) -> list[Row]:
    """One row a key, of several the newest."""
    by_key = {tuple(row[name] for name in keys): row for row in sorted(rows, key=lambda row: row[newer_by])}
    return list(by_key.values())


class Upsert:
    """Inserts or replaces rows by primary key, unless the stored row is newer by the column `newer_by`. For SQLite.

    `final`: a stored row is never replaced.

    SQLAlchemy batches no insert that has ON CONFLICT, so the text is made here. Many rows go in one statement: a thread
    then gives up the interpreter lock once for all of them, where one statement a row has to win it back for each.
    """

    def __init__(self, table: Table, newer_by: str, *, final: bool = False) -> None:
        self._columns = columns = [column.name for column in table.columns]
        self._keys = [column.name for column in table.primary_key.columns]
        self._newer_by = newer_by
        replace = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in self._keys)
        update = f"UPDATE SET {replace} WHERE excluded.{newer_by} >= {table.name}.{newer_by}"
        row = f"({', '.join('?' for _ in columns)})"
        self._statements = {
            count: f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {', '.join([row] * count)}"
            f" ON CONFLICT ({', '.join(self._keys)}) DO {'NOTHING' if final else update}"
            for count in ROWS_AT_ONCE
        }

    def execute(self, connection: Connection, rows: Iterable[Row]) -> None:
        """Writes rows; of several with one key the newest counts."""
        waiting = newest(rows, self._keys, self._newer_by)
        for count, statement in self._statements.items():
            while len(waiting) >= count:
                values = tuple(row[name] for row in waiting[:count] for name in self._columns)
                connection.exec_driver_sql(statement, values)
                del waiting[:count]


def encode_labels(labels: Mapping[str, str]) -> str:
    """JSON, one text for equal labels."""
    return json.dumps(dict(labels), sort_keys=True, separators=(",", ":"))


def called_by(parent: str) -> ColumnElement[bool]:
    """Whether a run came of a call by an attempt, or by any attempt of a run: their ids begin with that of the run."""
    # As the index has it, which is not used for what only means the same.
    known: ColumnElement[bool] = literal_column("parent <> ''")
    if "/" in parent:
        return and_(known, runs.c.parent == parent)
    return and_(known, runs.c.parent >= f"{parent}/", runs.c.parent < f"{parent}0")  # what follows the slash


def failed_with(part: str) -> ColumnElement[bool]:
    """Whether a text occurs in a run's failure; ASCII letters match in either case."""
    return and_(literal_column("failure_text <> ''"), runs.c.failure_text.icontains(part, autoescape=True))
