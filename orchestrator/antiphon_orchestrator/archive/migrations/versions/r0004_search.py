"""Runs are found by who called for them, by the text of their failure and, in SQLite too, by their labels."""

from alembic import op

revision = "0004"
down_revision = "0003"

_EVERYWHERE = (
    "CREATE INDEX runs_by_parent ON runs (namespace, parent, create_time, run_id) WHERE parent <> ''",
    "CREATE INDEX runs_by_failure ON runs (namespace, create_time, run_id) WHERE failure_text <> ''",
)
_SQLITE = (
    "CREATE TABLE run_labels (namespace VARCHAR NOT NULL, name VARCHAR NOT NULL, value VARCHAR NOT NULL,"
    " create_time BIGINT NOT NULL, run_id VARCHAR(128) NOT NULL,"
    " PRIMARY KEY (namespace, name, value, create_time, run_id)) WITHOUT ROWID",
    "INSERT INTO run_labels SELECT namespace, key, value, create_time, run_id FROM runs, json_each(runs.labels)"
    " WHERE labels <> '{}'",
    "CREATE TRIGGER run_labels_come AFTER INSERT ON runs WHEN new.labels <> '{}' BEGIN"
    " INSERT INTO run_labels SELECT new.namespace, key, value, new.create_time, new.run_id"
    " FROM json_each(new.labels); END",
    "CREATE TRIGGER run_labels_go AFTER DELETE ON runs WHEN old.labels <> '{}' BEGIN"
    " DELETE FROM run_labels WHERE (namespace, name, value, create_time, run_id) IN"
    " (SELECT old.namespace, key, value, old.create_time, old.run_id FROM json_each(old.labels)); END",
)


def upgrade() -> None:
    for statement in _EVERYWHERE:
        op.execute(statement)
    if op.get_bind().dialect.name == "sqlite":
        for statement in _SQLITE:
            op.execute(statement)
