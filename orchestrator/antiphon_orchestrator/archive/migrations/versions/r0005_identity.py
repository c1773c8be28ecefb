"""An archive has an id, which tells it from any other."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    text = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
    made = op.create_table("archive_id", sa.Column("id", text, primary_key=True))
    op.bulk_insert(made, [{"id": uuid4().hex}])
