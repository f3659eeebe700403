"""The first version: events with its triggers, the head, the snapshots."""

from alembic import op

from ledger.eventlog.migrations import sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table of the ledger."""
    connection = op.get_bind()
    for name in (
        "events",
        "events_no_update",
        "events_no_delete",
        "ledger_head",
        "ledger_head_row",
        "snapshots",
    ):
        connection.exec_driver_sql(sql(name))
