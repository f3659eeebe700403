"""What `ledger migrate` made and somebody changed is found, named, and mended or explained."""

from collections.abc import AsyncIterator

import pytest

from cli.drift import covers_schema, find_drift
from cli.settings import Settings
from tests.ledger.pipeline import Ledger, running_ledger

from .conftest import Run

# A change, and what must be said of it.
CHANGES = {
    "DROP TRIGGER events_no_update": "the trigger events_no_update is missing",
    "DROP TRIGGER parking_log_no_delete": "the trigger parking_log_no_delete is missing",
    "ALTER TABLE events DROP INDEX events_stream": "events lacks UNIQUE KEY events_stream",
    "ALTER TABLE events DROP INDEX events_event_id, ADD INDEX events_event_id (event_id)": (
        "the table events lacks UNIQUE KEY events_event_id (event_id)"
    ),
    "ALTER TABLE events MODIFY event_id VARBINARY(16) NOT NULL": "lacks event_id binary(16)",
    "ALTER TABLE api_keys MODIFY name VARCHAR(100) NULL": "the table api_keys lacks name",
    "ALTER TABLE ledger_head ADD COLUMN note INT NULL": "the table ledger_head also has note int",
    "ALTER TABLE orders DROP INDEX orders_product": "the table orders lacks KEY orders_product",
    "CREATE TRIGGER other BEFORE INSERT ON events FOR EACH ROW SET NEW.meta = ''": (
        "events has a trigger of others, other"
    ),
    "GRANT SELECT ON {schema}.events TO ledger_analyst": "ledger_analyst also has SELECT on events",
    "GRANT DELETE, UPDATE ON {schema}.events TO ledger_writer": (
        "ledger_writer also has DELETE, UPDATE on events"
    ),
    "GRANT UPDATE (hash) ON {schema}.events TO ledger_api": "also has UPDATE (hash) on events",
    "REVOKE SELECT ON {schema}.events FROM ledger_api": "ledger_api lacks SELECT on events",
}
# What `ledger migrate` gives or makes again; the rest it names, with what to do.
MENDED = ("trigger events", "trigger parking", "lacks SELECT", "lacks KEY orders")


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    async with running_ledger(settings) as running:
        yield running


async def test_nothing_differs_after_migrate(ledger: Ledger) -> None:
    assert await find_drift(ledger.settings) == []


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_named_by_status_and_verify_and_mended_or_named_by_migrate(
    ledger: Ledger, run: Run, change: str
) -> None:
    await ledger.execute(change.format(schema=f"`{ledger.settings.db_name}`"))
    for command in ("status", "verify"):
        done = await run(command)
        assert done.status == 1
        assert CHANGES[change] in " ".join(done.err.split())
    migrated = await run("migrate")
    is_mended = any(part in CHANGES[change] for part in MENDED)
    assert (CHANGES[change] in " ".join(migrated.err.split())) is not is_mended, migrated.err
    assert migrated.status == (0 if is_mended else 1)
    assert ((await find_drift(ledger.settings)) == []) is is_mended


async def test_a_missing_table_is_named_by_status(ledger: Ledger, run: Run) -> None:
    await ledger.execute("DROP TABLE api_keys")
    done = await run("status")
    assert done.status == 1
    assert "the table api_keys is missing: restore it" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("granted_on", "is_covered"),
    [
        ("*", True),
        ("%", True),
        ("ledger", True),
        ("ledge_", True),
        (r"ledger\_%", False),
        ("le%", True),
        ("shop", False),
        ("ledger.", False),
    ],
)
def test_a_grant_on_other_schemas_counts_where_its_pattern_covers_this_one(
    granted_on: str, is_covered: bool
) -> None:
    assert covers_schema(granted_on, "ledger") is is_covered
