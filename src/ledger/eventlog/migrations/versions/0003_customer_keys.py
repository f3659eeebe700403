"""The keys that the names in events are sealed with."""

from alembic import op

from ledger.eventlog.migrations import sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table of the keys."""
    op.get_bind().exec_driver_sql(sql("customer_keys"))
