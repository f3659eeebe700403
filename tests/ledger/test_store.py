"""The store's promises: the fence, uniqueness, and that nothing is ever changed."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from msgspec import structs
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.drift import grants
from ledger.core.decider import Fold
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Head, Record, Submitted
from ledger.eventlog.snapshots import load
from ledger.eventlog.store import Fenced, Store
from ledger.writer import take_over
from projections.views.registry import PROJECTIONS
from tests.submissions import history, opening, orders

from .naive_audit import audit
from .pipeline import Ledger

DENIED = 1142
"""ER_TABLEACCESS_DENIED_ERROR of both servers."""


def composed(head: Head, events: Sequence[Submitted]) -> list[Record]:
    """The records of events that come next."""
    return compose(events, Fold(), head, {}, 1, CustomerKeys({})).records


async def test_an_append_moves_the_head_to_its_last_record(ledger: Ledger) -> None:
    async with ledger.connection() as connection:
        store = Store(connection)
        records = composed(await EventReader(connection).head(), opening())
        head = await store.append(await EventReader(connection).head(), records)
        assert head == Head(2, records[-1].hash, 0)
        assert await EventReader(connection).head() == head
    assert await ledger.records() == records


async def test_a_writer_of_an_older_epoch_appends_nothing(ledger: Ledger) -> None:
    async with ledger.connection() as connection, ledger.connection() as other:
        old = await Store(connection).raise_epoch()
        new = await Store(other).raise_epoch()
        with pytest.raises(Fenced):
            await Store(connection).append(old, composed(old, opening()))
        assert (old.epoch, new.epoch) == (1, 2)
    assert await ledger.head() == new
    assert await ledger.records() == []


@pytest.mark.parametrize("believed", [1, 5])
async def test_a_writer_at_another_position_appends_nothing(ledger: Ledger, believed: int) -> None:
    async with ledger.connection() as connection:
        store = Store(connection)
        head = await EventReader(connection).head()
        astray = structs.replace(head, position=believed)
        with pytest.raises(Fenced):
            await store.append(astray, composed(astray, opening()))
    assert await ledger.head() == head
    assert await ledger.records() == []


async def rows_walked(connection: AsyncConnection) -> int:
    """Rows that this connection read because they came next, not because they were looked up."""
    found = await connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%next'")
    return sum(int(count) for _, count in found)


async def test_the_look_up_of_a_large_batch_does_not_scan_the_ledger(ledger: Ledger) -> None:
    async with ledger.connection() as connection:
        store = Store(connection)
        head = await EventReader(connection).head()
        await store.append(head, composed(head, [*opening(), *orders(5_000)]))
        new = orders(1_200)
        before = await rows_walked(connection)
        event_ids, stream_ids = [e.event_id.bytes for e in new], [e.stream_id.bytes for e in new]
        assert await store.duplicates_and_versions(event_ids, stream_ids) == (set(), {})
        assert await rows_walked(connection) - before < 1_000


async def test_of_two_appends_at_one_head_only_one_is_kept(ledger: Ledger) -> None:
    events = [opening(), opening()]
    async with ledger.connection() as one, ledger.connection() as other:
        head = await Store(one).raise_epoch()
        attempts = [
            Store(connection).append(head, composed(head, each))
            for connection, each in zip((one, other), events, strict=True)
        ]
        answers = await asyncio.gather(*attempts, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, DBAPIError | Fenced)]
    assert len(refused) == 1
    assert len(await ledger.records()) == 2
    assert (await ledger.head()).position == 2


async def test_two_stores_with_no_broker_between_them_never_break_the_ledger(
    ledger: Ledger,
) -> None:
    """The fence alone must hold: here nothing else keeps the two apart."""
    events = orders(40)

    async def append_all(connection: AsyncConnection) -> None:
        for event in events:
            while True:
                try:
                    known = await load(connection)
                    await take_over(connection, known)
                    recorded, _ = await Store(connection).duplicates_and_versions(
                        [event.event_id.bytes], [b""]
                    )
                    if event.event_id.bytes not in recorded:
                        await Store(connection).append(known.head, composed(known.head, [event]))
                    await connection.rollback()
                    break
                except (Fenced, DBAPIError):
                    await connection.rollback()

    async with ledger.connection() as one, ledger.connection() as two:
        await asyncio.gather(append_all(one), append_all(two))
    records = await ledger.records()
    audit(records)
    assert len(records) == 2 * len(events)


async def test_a_takeover_waits_for_a_commit_under_way_and_sees_what_it_wrote(
    ledger: Ledger,
) -> None:
    async with ledger.connection() as old, ledger.connection() as new:
        head = await Store(old).raise_epoch()
        await old.exec_driver_sql("UPDATE ledger_head SET hash = hash, epoch = epoch")
        known = await load(new)
        takeover = asyncio.create_task(take_over(new, known))
        await ledger.until_running("UPDATE ledger_head%", "writer")
        assert not takeover.done()
        await Store(old).append(head, composed(head, opening()))
        await takeover
    assert (known.head.position, known.head.epoch) == (2, 2)


async def test_an_event_id_is_unique_for_ever(ledger: Ledger) -> None:
    first, second = opening()
    again = structs.replace(second, event_id=first.event_id)
    async with ledger.connection() as connection:
        head = await EventReader(connection).head()
        with pytest.raises(IntegrityError, match="events_event_id"):
            await Store(connection).append(head, composed(head, [first, again]))
    assert await ledger.records() == []


async def test_a_version_of_a_stream_is_unique(ledger: Ledger) -> None:
    async with ledger.connection() as connection:
        store = Store(connection)
        head = await EventReader(connection).head()
        one, two = composed(head, opening())
        twice = structs.replace(two, stream_id=one.stream_id)
        with pytest.raises(IntegrityError, match="events_stream"):
            await store.append(head, [one, twice])
    assert await ledger.records() == []


CHANGES = [
    "UPDATE events SET data = '{}'",
    "UPDATE events SET position = position + 10",
    "DELETE FROM events",
    "DELETE FROM events WHERE position = 1",
    "REPLACE INTO events SELECT * FROM events WHERE position = 1",
    "INSERT INTO events SELECT * FROM events e ON DUPLICATE KEY UPDATE meta = ''",
]


async def test_even_the_migrating_account_can_change_nothing(ledger: Ledger) -> None:
    whole = await ledger.write(opening())
    for statement in CHANGES:
        with pytest.raises(DBAPIError, match="append-only"):
            await ledger.execute(statement)
    assert await ledger.records() == whole


async def test_recorded_events_and_the_versions_of_streams_are_told_apart(ledger: Ledger) -> None:
    records = await ledger.write(history(5, 30))
    event_ids = {record.event_id for record in records}
    versions = Counter(record.stream_id for record in records)
    async with ledger.connection() as connection:
        found = await Store(connection).duplicates_and_versions(
            {*event_ids, bytes(16)}, versions.keys()
        )
    assert found == (event_ids, versions)


TABLES = {
    "events": "position",
    "ledger_head": "position",
    "ledger_identity": "ledger_id",
    "snapshots": "position",
    "ledger_migrations": "version_num",
    "customer_keys": "sealing_key",
    "parking_log": "operator",
    "api_keys": "name",
    "checkpoints": "position",
    "rebuilds": "position",
    **{projection.name: "position" for projection in PROJECTIONS},
}
VERBS = {
    "SELECT": "SELECT 1 FROM {table} LIMIT 0",
    "INSERT": "INSERT INTO {table} () VALUES ()",
    "UPDATE": "UPDATE {table} SET {column} = 0 WHERE FALSE",
    "DELETE": "DELETE FROM {table} WHERE FALSE",
    "ALTER": "ALTER TABLE {table} COMMENT 'changed'",
    "CREATE": "CREATE TABLE {table}_copy (id INT)",
    "DROP": "DROP TABLE {table}",
    "TRUNCATE": "TRUNCATE TABLE {table}",
    "INDEX": "CREATE INDEX another ON {table} ({column})",
    "TRIGGER": "CREATE TRIGGER t_{table} BEFORE INSERT ON {table} FOR EACH ROW SET @a = 1",
}


@pytest.mark.parametrize("role", ["writer", "projector", "api", "analyst"])
async def test_an_account_may_do_what_it_was_granted_and_no_more(ledger: Ledger, role: str) -> None:
    granted = {
        table: re.sub(r" \(.*?\)", "", rights)
        for table, rights in grants(role, PROJECTIONS).items()
    }
    allowed: dict[str, str] = {}
    async with ledger.connection(role) as connection:
        for table, column in TABLES.items():
            verbs = []
            for verb, statement in VERBS.items():
                if await may(connection, statement.format(table=table, column=column)):
                    verbs.append(verb)
            if verbs:
                allowed[table] = ", ".join(verbs)
    assert allowed == granted


@pytest.mark.parametrize("column", ["customer_id", "created_at_us"])
async def test_the_writer_may_only_destroy_a_customers_key(ledger: Ledger, column: str) -> None:
    with pytest.raises(DBAPIError, match=f"column '{column}'"):
        await ledger.execute(f"UPDATE customer_keys SET {column} = 0", "writer")


async def may(connection: AsyncConnection, statement: str) -> bool:
    """Whether the account has the right to a statement, be it done or fail for another reason."""
    try:
        await connection.exec_driver_sql(statement)
    except DBAPIError as error:
        return error.orig is None or bool(error.orig.args[0] != DENIED)
    finally:
        await connection.rollback()
    return True


async def test_the_accounts_are_tried_on_every_table(ledger: Ledger) -> None:
    assert {name for (name,) in await ledger.rows("SHOW TABLES")} == set(TABLES)


async def test_the_analyst_reads_the_views_and_nothing_else(ledger: Ledger) -> None:
    """Not the events, no key, no snapshot, no file of the server; and writes nothing."""
    views = {"checkpoints", *(projection.name for projection in PROJECTIONS)}
    schema = ledger.settings.db_name
    granted = [grant for (grant,) in await ledger.rows("SHOW GRANTS", "analyst")]
    everywhere = [grant for grant in granted if " ON *.* " in grant]
    assert all(grant.startswith("GRANT USAGE ON *.* ") for grant in everywhere)
    here = {grant for grant in granted if f"`{schema}`" in grant}
    to = "TO `ledger_analyst`@`%`"
    assert here == {f"GRANT SELECT ON `{schema}`.`{view}` {to}" for view in views}
    for table in set(TABLES) - views:
        with pytest.raises(DBAPIError, match="denied"):
            await ledger.rows(f"SELECT * FROM {table}", "analyst")


async def test_only_the_writer_may_write_events(ledger: Ledger) -> None:
    writers = [
        role
        for role in ("writer", "projector", "api", "analyst")
        if "INSERT" in grants(role, PROJECTIONS).get("events", "")
    ]
    assert writers == ["writer"]
