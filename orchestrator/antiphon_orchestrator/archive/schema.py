"""Brings a database to the tables of `tables.py`, or says why it will not. Synchronous; the caller has the lock.

An empty database gets the newest tables at once, so that a first start need not load Alembic (9 MB that would stay);
an older one goes through the migrations. A test holds that both ways end alike.
"""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, inspect, select, text

from .model import ArchiveIncompatible
from .tables import archive_id, metadata

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every migration, oldest first; the files in `migrations/versions` say what each does."""

NEWEST = REVISIONS[-1]

_marks = MetaData()
_mark = Table(
    "alembic_version",
    _marks,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def revision(connection: Connection) -> str | None:
    """The migration a database is at; None: it has none of our tables. Raises ArchiveIncompatible for a newer one."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    elif "schema_version" in tables:  # what there was before migrations
        found = f"{connection.scalar(text('SELECT version FROM schema_version')):04}"
    elif tables & set(metadata.tables):
        raise ArchiveIncompatible("the archive's database has other tables of the same names: give it one of its own")
    else:
        return None
    if found not in REVISIONS:
        raise ArchiveIncompatible(
            f"the archive is at migration {found}, and this antiphon knows none after {NEWEST}:"
            " use the version that migrated it or a newer one, or restore the backup from before"
        )
    return str(found)


def migrate(connection: Connection) -> str | None:
    """Makes or migrates the tables, inside of the caller's transaction. Returns where the database was before."""
    before = revision(connection)
    if before is None:
        metadata.create_all(connection)
        _marks.create_all(connection)
        connection.execute(archive_id.insert().values(id=uuid4().hex))
        connection.execute(_mark.insert().values(version_num=NEWEST))
    elif before != NEWEST:
        _upgrade(connection, before)
    return before


def identity(connection: Connection) -> str:
    """See `Archive.identity`."""
    if not inspect(connection).has_table(archive_id.name):
        return ""
    return connection.scalar(select(archive_id.c.id)) or ""


def described(place: str, at: str | None) -> str:
    """For people: what `revision` said of a place."""
    if at is None:
        return f"{place}: none yet, migration {NEWEST} when it is first used"
    return f"{place}: at migration {at}" + ("" if at == NEWEST else f", {NEWEST} when an orchestrator starts")


def _upgrade(connection: Connection, before: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", f"{__package__}:migrations")
    config.attributes["connection"] = connection
    if "alembic_version" not in inspect(connection).get_table_names():
        command.stamp(config, before)
    command.upgrade(config, NEWEST)
