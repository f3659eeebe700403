"""What Alembic runs: the migrations, on the connection that `upgrade` was given."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], version_table="ledger_migrations"
)
with context.begin_transaction():
    context.run_migrations()
