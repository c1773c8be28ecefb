"""Finished runs and their events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", _text(128), primary_key=True),
        sa.Column("namespace", _text(), nullable=False),
        sa.Column("graph_name", _text(), nullable=False),
        sa.Column("graph_version", _text(), nullable=False),
        sa.Column("state", _text(32), nullable=False),
        sa.Column("principal", _text(), nullable=False),
        sa.Column("request_key", sa.LargeBinary, nullable=False),
        sa.Column("request_digest", sa.LargeBinary, nullable=False),
        sa.Column("parent", _text(), nullable=False),
        sa.Column("labels", _text(), nullable=False),
        sa.Column("failure_text", _text(), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger),
        sa.Column("last_event_seq", sa.BigInteger, nullable=False),
    )
    op.create_index("runs_by_time", "runs", ["namespace", "create_time", "run_id"])
    op.create_index("runs_by_state", "runs", ["namespace", "state", "create_time", "run_id"])
    op.create_index("runs_by_graph", "runs", ["namespace", "graph_name", "create_time", "run_id"])
    op.create_index("runs_by_end", "runs", ["end_time"])
    op.create_table(
        "run_events",
        sa.Column("run_id", _text(128), primary_key=True),
        sa.Column("first_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
