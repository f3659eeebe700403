"""The record of what operators did with parked messages."""

from alembic import op

from ledger.eventlog.migrations import sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table and what keeps it append-only."""
    connection = op.get_bind()
    for name in ("parking_log", "parking_log_no_update", "parking_log_no_delete"):
        connection.exec_driver_sql(sql(name))
