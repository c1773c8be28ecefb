"""Runs are found by their labels; what told the version before there were migrations goes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.create_index("runs_by_label", "runs", [sa.text("(labels::jsonb) jsonb_path_ops")], postgresql_using="gin")
    if sa.inspect(bind).has_table("schema_version"):
        op.drop_table("schema_version")
