"""`ledger verify` finds whatever was changed, says where, and finds nothing where nothing was."""

import pytest
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from bench.fill import fill
from bench.history import Shop
from cli.connections import connection
from cli.main import app
from cli.settings import Settings
from ledger.core.decider import CustomerState
from ledger.eventlog import reader, snapshots
from ledger.eventlog.encryption import KEY_BYTES
from projections.views.registry import PROJECTIONS
from tests.harness import free_port
from tests.ledger.built_ledgers import forged
from tests.ledger.pipeline import Ledger, running_ledger
from tests.submissions import opening, orders

from .conftest import Run
from .damage import damaged, filled, project, rewrite, verified, wrong

NAMES = [projection.name for projection in PROJECTIONS]


async def test_an_intact_ledger_and_its_views_pass(run: Run, settings: Settings) -> None:
    async with filled(settings, with_triggers=True) as ledger:
        head = await ledger.head()
        done = await run("verify", "--json")
        assert (done.status, done.err) == (0, "")
        shown = done.json
        assert shown["ledger"] == {
            "position": head.position,
            "hash": head.hash.hex(),
            "since": 0,
        }
        assert [view["name"] for view in shown["views"]] == NAMES
        for view in shown["views"]:
            (counted,) = await ledger.rows(f"SELECT COUNT(*) FROM {view['name']}")
            assert (view["position"], view["rows"]) == (head.position, *counted)
        done = await run("verify")
    assert done.status == 0
    assert f"up to position {head.position}" in done.out
    assert head.hash.hex() in done.out


@pytest.mark.parametrize("arguments", [(), ("--quick",)])
async def test_an_empty_ledger_passes(run: Run, arguments: tuple[str, ...]) -> None:
    done = await run("verify", "--json", *arguments)
    assert (done.status, done.err) == (0, "")
    assert done.json["ledger"] == {"position": 0, "hash": "00" * 32, "since": 0}
    assert {view["rows"] for view in done.json["views"]} <= {0}


async def test_pages_may_end_anywhere(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAGE", 2)
    async with filled(settings) as ledger:
        found = await verified(ledger)
        assert found.ledger
        assert found.ledger.position == (await ledger.head()).position
        await ledger.execute("UPDATE events SET occurred_at_us = 5 WHERE position = 20")
        await ledger.execute("UPDATE events SET occurred_at_us = 5 WHERE position = 21")
        assert (await wrong(ledger)).position == 20


async def test_views_may_be_at_different_checkpoints(settings: Settings) -> None:
    async with filled(settings) as ledger:
        behind = (await ledger.head()).position
        await ledger.write(orders(3))
        assert {view.position for view in (await verified(ledger)).views} == {behind}
        await ledger.execute("DELETE FROM wallets")
        await ledger.execute("UPDATE checkpoints SET position = 0 WHERE name = 'wallets'")
        found = {view.name: view for view in (await verified(ledger)).views}
        assert (found["wallets"].position, found["wallets"].rows) == (0, 0)
        assert found["orders"].position == behind


HEAD_TOO = "UPDATE ledger_head SET position = (SELECT MAX(position) FROM events), hash ="
HEAD_TOO += " (SELECT hash FROM events ORDER BY position DESC LIMIT 1)"
SWAP = (
    "UPDATE events SET position = 1000000 WHERE position = 4",
    "UPDATE events SET position = 4 WHERE position = 6",
    "UPDATE events SET position = 6 WHERE position = 1000000",
)
COPY = (
    "INSERT INTO events SELECT position + 1, REPEAT('x', 16), REPEAT('x', 16), 1, type,"
    " schema_version, cause_position, occurred_at_us, recorded_at_us, meta, data, hash FROM events"
    " ORDER BY position DESC LIMIT 1"
)
SHIFT = "UPDATE events SET position = position + 1 WHERE position >= 6 ORDER BY position DESC"
SQUEEZE = (
    "INSERT INTO events SELECT 6, REPEAT('x', 16), REPEAT('x', 16), 1, type, schema_version,"
    " cause_position, occurred_at_us, recorded_at_us, meta, data, hash FROM events"
    " WHERE position = 5"
)

IN_EVENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one byte of the data": (4, ("UPDATE events SET data = REPLACE(data, '2', '3')"
        " WHERE position = 4",)),
    "one byte of the hash": (4, ("UPDATE events SET hash = INSERT(hash, 9, 1, '?')"
        " WHERE position = 4",)),
    "a deleted row": (6, ("DELETE FROM events WHERE position = 6", HEAD_TOO)),
    "the first row": (1, ("DELETE FROM events WHERE position = 1",)),
    "two rows swapped": (4, SWAP),
    "a row after the last": (-1, (COPY,)),
    "a row after the last, and the head": (-1, (COPY, HEAD_TOO)),
    "a row squeezed in": (6, (SHIFT, SQUEEZE, HEAD_TOO)),
    "the last row gone": (-2, ("DELETE FROM events ORDER BY position DESC LIMIT 1",)),
    "all rows gone": (1, ("DELETE FROM events",)),
    "a view ahead": (-1, ("UPDATE checkpoints SET position = position + 9",)),
    "the head's hash": (-2, ("UPDATE ledger_head SET hash = REPEAT('x', 32)",)),
    "the head ahead": (-1, ("UPDATE ledger_head SET position = position + 1",)),
    "the head behind": (-2, ("UPDATE ledger_head SET position = position - 1",)),
    "the head gone": (1, ("DELETE FROM ledger_head",)),
}  # fmt: skip
"""What was done, and where it shows: -1 stands for what is after the last record, -2 for that."""


async def test_any_change_in_events_or_head_is_found(settings: Settings) -> None:
    async with filled(settings) as ledger:
        last = (await ledger.head()).position
        for change, (position, statements) in IN_EVENTS.items():
            async with damaged(ledger, *statements):
                found = await wrong(ledger)
            expected = {-1: last + 1, -2: last}.get(position, position)
            assert found.position == expected, f"{change}: {found}"
        await verified(ledger)


async def test_truncated_events_are_found_by_a_view_that_is_ahead(
    settings: Settings,
) -> None:
    async with filled(settings) as ledger:
        last = (await ledger.head()).position
        async with damaged(ledger, f"DELETE FROM events WHERE position = {last}", HEAD_TOO):
            found = await wrong(ledger)
    assert (found.position, "a view shows the ledger up to" in found.detail) == (last, True)


AMOUNTS = {
    "stock": "stock",
    "wallets": "balance_minor",
    "orders": "total_minor",
    "journal": "credit",
}
TIMES = {"journal": "recorded_at"}


def in_rows(name: str, key: str, one: str, other: str) -> dict[str, tuple[str, ...]]:
    """What may be done to a view of which these are two rows."""
    spare = f"{key} = 99" if name == "journal" else f"{key} = x'{'ff' * 16}'"
    unique = ", placed_position = 99" if name == "orders" else ""
    time, amount = TIMES.get(name, "updated_at"), AMOUNTS[name]
    return {
        "a value": (f"UPDATE {name} SET {amount} = {amount} + 1 WHERE {amount} > 0 LIMIT 1",),
        "a time": (f"UPDATE {name} SET {time} = NOW(6) WHERE {one}",),
        "a row gone": (f"DELETE FROM {name} WHERE {other}",),
        "all rows gone": (f"DELETE FROM {name}",),
        "a row more": (
            f"CREATE TABLE copied AS SELECT * FROM {name} WHERE {one}",
            f"UPDATE copied SET {spare}{unique}",
            f"INSERT INTO {name} SELECT * FROM copied",
            "DROP TABLE copied",
        ),
        "two rows swapped": (
            f"UPDATE {name} SET {spare} WHERE {one}",
            f"UPDATE {name} SET {one.partition(' AND ')[0]} WHERE {other}",
            f"UPDATE {name} SET {other.partition(' AND ')[0]} WHERE {spare}",
        ),
        "no checkpoint": (f"DELETE FROM checkpoints WHERE name = '{name}'",),
        "its checkpoint behind": (f"UPDATE checkpoints SET position = 1 WHERE name = '{name}'",),
        "another version": (
            f"UPDATE checkpoints SET view_version = view_version + 1 WHERE name = '{name}'",
        ),
    }


async def two_rows(ledger: Ledger, name: str, key: str) -> tuple[str, str]:
    """What is true of one row of a view each."""
    if name == "journal":
        ((last,),) = await ledger.rows("SELECT MAX(position) FROM journal")
        return f"line = 1 AND position = {last}", f"line = 2 AND position = {last}"
    ((one, other),) = await ledger.rows(f"SELECT MIN({key}), MAX({key}) FROM {name}")
    return f"{key} = x'{one.hex()}'", f"{key} = x'{other.hex()}'"


@pytest.mark.parametrize("name", NAMES)
async def test_any_change_in_a_view_is_found(settings: Settings, name: str) -> None:
    (view,) = (each for each in PROJECTIONS if each.name == name)
    key = view.key_columns[-1]
    async with filled(settings) as ledger:
        last = (await ledger.head()).position
        for change, statements in in_rows(name, key, *await two_rows(ledger, name, key)).items():
            async with damaged(ledger, *statements):
                found = await wrong(ledger)
            assert name in found.detail, f"{change}: {found}"
            assert 1 <= found.position <= last, f"{change}: {found}"
        await verified(ledger)


async def test_a_key_that_is_not_the_names_is_found_where_its_customer_registered(
    settings: Settings,
) -> None:
    async with filled(settings) as ledger:
        rows = await ledger.rows(
            "SELECT MIN(e.position) AS first, k.customer_id FROM customer_keys k"
            " JOIN events e ON e.stream_id = k.customer_id WHERE e.type = 'customer.registered'"
            " GROUP BY k.customer_id ORDER BY first DESC LIMIT 1"
        )
        position, customer_id = rows[0]
        assert position > 1
        await ledger.execute(
            "UPDATE customer_keys SET sealing_key = %s WHERE customer_id = %s",
            "migrate",
            bytes(KEY_BYTES),
            customer_id,
        )
        assert (await wrong(ledger)).position == position


async def test_the_first_position_of_two_wrong_views_is_named(settings: Settings) -> None:
    async with filled(settings) as ledger:
        ((journal,),) = await ledger.rows("SELECT MAX(position) FROM journal")
        async with damaged(
            ledger,
            f"DELETE FROM journal WHERE position = {journal}",
            "UPDATE stock SET base_price_minor = 7",
        ):
            found = await wrong(ledger)
            ((first,),) = await ledger.rows("SELECT MIN(position) FROM stock")
        assert found.position == first < journal


async def test_a_failure_is_one_sentence_and_status_1_or_json(run: Run, settings: Settings) -> None:
    async with filled(settings) as ledger:
        await ledger.execute("UPDATE wallets SET username = 'Ann Other', balance_minor = 7")
        ((position,),) = await ledger.rows("SELECT MIN(position) FROM wallets")
        done = await run("verify")
        assert (done.status, done.out) == (1, "")
        said = done.said_one_sentence()
        assert f"position {position}: wallets differs in the row of customer_id " in said
        assert "another username; balance_minor is 7, must be" in said
        assert "Ann" not in said
        shown = await run("verify", "--json")
        assert (shown.status, shown.json["wrong"]["position"]) == (1, position)
        await ledger.execute("UPDATE events SET data = '{' WHERE position = 3")
        assert "position 3: the hash is not" in (await run("verify")).said_one_sentence()


async def test_quick_checks_the_chain_and_no_decision(settings: Settings) -> None:
    async with filled(settings) as ledger:
        records = await ledger.records()
        refused = next(r for r in records if r.type == "order.cancel-refused")
        await rewrite(ledger, forged(records, refused.position, data=b'{"reason":"NOT_COMPLETED"}'))
        found = await verified(ledger, quick=True)
        assert [*map(_first_words, found.unchecked)] == ["decisions, invariants"]
        assert (await wrong(ledger)).position == refused.position
        await ledger.execute("UPDATE events SET meta = '{}' WHERE position = 2")
        assert (await wrong(ledger, quick=True)).position == 2


async def test_records_before_since_position_are_trusted(settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await fill(ledger.engine("writer"), Shop(5, 3, 3, 1000).events(), 300, 100, 20)
        await project(ledger)
        await ledger.execute("DROP TRIGGER events_no_update")
        at = [p for (p,) in await ledger.rows("SELECT DISTINCT position FROM snapshots")]
        await ledger.execute("UPDATE events SET meta = '{}' WHERE position = 2")
        assert (await wrong(ledger)).position == 2
        for quick, since in ((False, min(at)), (True, 150)):
            found = await verified(ledger, since_position=150, quick=quick)
            assert found.ledger
            assert (found.ledger.since, found.views) == (since, [])
        assert (await wrong(ledger, since_position=min(at) - 1)).position == 2
        await ledger.execute("UPDATE events SET occurred_at_us = 5 WHERE position = 220")
        for quick in (False, True):
            found = await wrong(ledger, since_position=150, quick=quick)
            assert found.position == 220


def _first_words(phrase: str) -> str:
    return phrase.partition(", the")[0].partition(" (")[0]


async def test_what_an_option_left_out_is_said(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await fill(ledger.engine("writer"), Shop(5, 3, 3, 1000).events(), 300, 100, 20)
        await project(ledger)
    whole = await run("verify")
    assert (whole.status, whole.err) == (0, "")
    quick = await run("verify", "--quick")
    assert "not checked: decisions, invariants, the contents of snapshots, and views" in quick.out
    since = await run("verify", "--since-position", "150")
    assert (quick.status, since.status) == (0, 0)
    for left_out in ("everything up to position 1", "the snapshot at position 1", "views"):
        assert f"not checked: {left_out}" in since.out
    as_json = await run("verify", "--since-position", "150", "--quick", "--json")
    assert len(as_json.json["unchecked"]) == 2


async def test_a_snapshot_that_is_not_sealed_is_told_and_passed_over(
    run: Run, settings: Settings
) -> None:
    async with running_ledger(settings) as ledger:
        await fill(ledger.engine("writer"), Shop(5, 3, 3, 1000).events(), 300, 100, 20)
        await project(ledger)
        (newest,) = (await ledger.rows("SELECT MAX(position) FROM snapshots"))[0]
        forged = "UPDATE snapshots SET body = CONCAT('x', body) WHERE position = %s"
        await ledger.execute(forged, "migrate", newest)
    done = await run("verify")
    assert (done.status, f"nobody believes, at position {newest}:" in done.err) == (0, True)
    assert (await run("verify", "--json")).json["refused_snapshots"] == [newest]


async def test_it_runs_beside_writer_and_projector(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.put_events(opening())
        async with ledger.writing(snapshot_every=50) as writer, ledger.projecting():
            for _ in range(3):
                await ledger.put_events(*([event] for event in orders(60)))
                done = await run("verify", "--json")
                assert (done.status, done.err) == (0, "")
            assert writer.progress.messages > 1
        last = (await ledger.head()).position
        assert (await run("verify", "--json")).json["ledger"]["position"] == last


async def test_it_can_not_write(settings: Settings) -> None:
    async with filled(settings), connection(settings, "projector", read_only=True) as reading:
        with pytest.raises(DBAPIError, match="READ ONLY"):
            await reading.exec_driver_sql("UPDATE checkpoints SET position = 0")


async def test_one_view_can_be_compared_without_the_ledger(run: Run, settings: Settings) -> None:
    async with filled(settings) as ledger:
        await ledger.execute("UPDATE events SET meta = '{}' WHERE position = 1")
        done = await run("verify", "--view", "stock", "--view", "journal", "--json")
        assert (done.status, done.json["ledger"]) == (0, None)
        assert [view["name"] for view in done.json["views"]] == ["stock", "journal"]
        await ledger.execute("DELETE FROM stock")
        assert (await run("verify", "--view", "stock")).status == 1
        done = await run("verify", "--view", "wallets")
        assert (done.status, done.out.partition(":")[0]) == (0, "wallets")


async def test_a_snapshot_that_is_not_what_the_events_make_is_found(settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await fill(ledger.engine("writer"), Shop(5, 3, 3, 1000).events(), 300, 100, 20)
        await project(ledger)
        await verified(ledger)
        async with ledger.connection() as connection:
            snapshot = await snapshots.nearest(connection, 10**9)
        for key in snapshot.fold.customers:
            snapshot.fold.customers[key] = CustomerState(7)
        await snapshots.save(ledger.engine("writer"), snapshot)
        found = await wrong(ledger)
        assert (found.position, "snapshot" in found.detail) == (snapshot.head.position, True)


async def test_a_database_that_is_away_is_status_3(run: Run) -> None:
    done = await run("verify", LEDGER_DB_PORT=str(free_port()))
    assert done.status == 3
    done.said_one_sentence()


async def test_a_start_beyond_the_head_is_status_2(run: Run) -> None:
    done = await run("verify", "--since-position", "5")
    assert (done.status, "--since-position 5" in done.said_one_sentence()) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--since-position", "-1"),
        ("--since-position", "x"),
        ("--public-key", "x"),
        ("--view", "customers"),
        ("--view", "stock", "--quick"),
        ("everything",),
    ],
)
def test_invalid_arguments_are_status_2(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["verify", *arguments]).exit_code == 2
