"""The keys of the API."""

from alembic import op

from ledger.eventlog.migrations import sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table of the keys."""
    op.get_bind().exec_driver_sql(sql("api_keys"))
