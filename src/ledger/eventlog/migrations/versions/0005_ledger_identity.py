"""The identity of the ledger."""

from uuid import uuid4

from alembic import op

from ledger.eventlog.migrations import sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table, and an identity."""
    connection = op.get_bind()
    connection.exec_driver_sql(sql("ledger_identity"))
    insert = "INSERT IGNORE INTO ledger_identity (id, ledger_id) VALUES (1, %s)"
    connection.exec_driver_sql(insert, (uuid4().bytes,))
