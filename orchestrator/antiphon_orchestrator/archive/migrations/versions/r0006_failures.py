"""Lists say of a failure what kind it is of, and which code it has. Of runs that are there already nobody knows: their
events would have to be read."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
    # With defaults, since replicas of the version before write their rows until they are replaced.
    op.add_column("runs", sa.Column("failure_kind", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("failure_code", text, nullable=False, server_default=""))
