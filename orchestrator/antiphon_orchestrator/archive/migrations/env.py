"""Alembic's way in: runs the steps on the connection that `schema.py` hands over, inside of its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
