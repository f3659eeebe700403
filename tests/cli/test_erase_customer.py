"""`ledger erase-customer`: once and for all, and honest about what it can't reach."""

import asyncio
import json
import os
import pty
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from cli import inbox
from cli.commands.erase_customer import erase
from cli.inbox import NotShown
from cli.settings import Settings
from ledger.core.events import CustomerRegistered
from ledger.eventlog.codec import encode_payload
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Record, next_hash
from ledger.eventlog.store import Store
from ledger.messaging.publisher import InboxUnavailable
from tests.harness import DEADLINE_S, environment, free_port
from tests.ledger.naive_audit import audit
from tests.ledger.pipeline import Ledger, running_ledger
from tests.projections.view_rows import all_live, all_replayed, until_projected
from tests.submissions import ANN, BOB, PEN, erasure, event_of, opening, orders
from tests.warm import COMMAND

from .conftest import Run, typed

ID = str(ANN)
PAGE = Path(__file__).parents[2] / "docs/how-to/production.md"
KEYS_THAT_CAME_BACK = PAGE.read_text().split("```sql\n")[1].split("```")[0]


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger of the commands, with a customer on it."""
    async with running_ledger(settings) as found:
        await found.write(opening(), orders(2))
        yield found


async def test_an_erasure_removes_the_name_and_keeps_the_chain(ledger: Ledger, run: Run) -> None:
    before = await ledger.records()
    async with ledger.writing(), ledger.projecting():
        done = await run("erase-customer", ID, "--yes")
    assert (done.status, done.err) == (0, "")
    assert f"customer {ID} erased: recorded at position {len(before) + 1}" in done.out
    assert "What remains" in done.out
    records = await ledger.records()
    assert records[:-1] == before
    ((_, erased),) = audit(records).customers.items()
    assert erased.balance_minor == audit(before).customers[ANN].balance_minor
    assert erased.position == len(records)  # the name is a part of what a client saw
    assert await ledger.keys() == {ANN.bytes: None}
    assert await ledger.rows("SELECT username FROM wallets", "analyst") == [("erased",)]
    assert await all_live(ledger) == await all_replayed(ledger)


async def test_verify_passes_during_an_erasure_and_finds_a_name_that_stayed(
    ledger: Ledger, run: Run
) -> None:
    async with ledger.projecting():
        await until_projected(ledger)
    await ledger.write([event_of(erasure())])
    before = await run("verify")
    async with ledger.projecting():
        await until_projected(ledger)
    after = await run("verify")
    assert (before.status, after.status) == (0, 0), before.err + after.err
    await ledger.execute("UPDATE wallets SET username = 'ann'")
    wrong = await run("verify")
    assert wrong.status == 1
    assert "username" in wrong.err


async def test_erasing_twice_changes_nothing_more(ledger: Ledger, run: Run) -> None:
    async with ledger.writing(), ledger.projecting():
        first = await run("erase-customer", ID, "--yes", "--json")
        records = await ledger.records()
        again = await run("erase-customer", ID, "--yes", "--json")
    assert (first.status, again.status) == (0, 0)
    assert first.json["position"] == len(records)
    assert (first.json["new"], first.json["plain_positions"]) == (True, [])
    assert again.json == first.json | {"new": False}
    assert await ledger.records() == records


async def test_tables_left_by_a_rebuild_are_erased_too(ledger: Ledger, run: Run) -> None:
    async with ledger.writing(), ledger.projecting():
        await until_projected(ledger)
        assert (await run("rebuild", "wallets")).status == 0
        await ledger.execute("CREATE TABLE wallets_shadow AS SELECT * FROM wallets")
        assert (await run("erase-customer", ID, "--yes")).status == 0
        for table in ("wallets_old", "wallets_shadow"):
            assert await ledger.rows(f"SELECT username FROM {table}") == [("erased",)]
        assert (await run("rebuild", "wallets", "--undo")).status == 0
        assert (await run("rebuild", "wallets", "--drop-old")).status == 0
        assert (await run("rebuild", "wallets")).status == 0
    assert await all_live(ledger) == await all_replayed(ledger)


async def test_concurrent_erasures_are_recorded_once(ledger: Ledger, run: Run) -> None:
    async with ledger.writing(), ledger.projecting():
        command = ("erase-customer", ID, "--yes", "--json")
        both = await asyncio.gather(run(*command), run(*command))
    assert [done.status for done in both] == [0, 0]
    assert len({done.json["position"] for done in both}) == 1


@pytest.mark.parametrize("nobody", ["11111111-2222-4333-8444-555555555555", str(PEN)])
async def test_an_unknown_customer_is_refused(ledger: Ledger, run: Run, nobody: str) -> None:
    done = await run("erase-customer", nobody, "--yes")
    assert done.status == 1
    assert f"no customer {nobody}" in done.said_one_sentence()
    assert len(await ledger.records()) == 6


async def test_without_a_terminal_it_needs_yes(ledger: Ledger, run: Run) -> None:
    done = await run("erase-customer", ID)
    assert done.status == 2
    assert "--yes" in done.said_one_sentence()
    assert len(await ledger.records()) == 6


def test_an_invalid_id_is_a_usage_error() -> None:
    assert typed("erase-customer", "ann", "--yes").status == 2


@pytest.mark.parametrize(("answer", "status"), [("n", 1), ("y", 0)])
async def test_at_a_terminal_it_asks_first(
    ledger: Ledger, settings: Settings, answer: str, status: int
) -> None:
    ours, theirs = pty.openpty()
    async with ledger.writing(), ledger.projecting():
        process = await asyncio.create_subprocess_exec(
            COMMAND,
            "erase-customer",
            ID,
            env=os.environ | environment(settings),
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        _, asked_for = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    os.close(ours)
    assert process.returncode == status
    assert "gone for ever" in asked_for.decode()
    assert len(await ledger.records()) == 7 - status
    (key,) = (await ledger.keys()).values()
    assert (key is None) == (answer == "y")


async def test_a_submitted_erasure_is_decided_without_the_command(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(inbox, "SHOWN_TIMEOUT_S", 0.2)
        with pytest.raises(NotShown, match="do writer and projector run"):
            await erase(settings, ANN)
        with pytest.raises(NotShown):
            await erase(settings, ANN)
    assert await ledger.keys() != {ANN.bytes: None}
    async with ledger.writing(), ledger.projecting():
        erasure = await erase(settings, ANN)
    assert erasure.position == len(await ledger.records()) == 7


async def test_a_key_that_came_back_from_a_backup_is_destroyed_again(
    ledger: Ledger, run: Run
) -> None:
    ((kept,),) = await ledger.rows("SELECT sealing_key FROM customer_keys")
    async with ledger.writing(), ledger.projecting():
        await run("erase-customer", ID, "--yes")
        assert await ledger.rows(KEYS_THAT_CAME_BACK) == []
        await ledger.execute("UPDATE customer_keys SET sealing_key = %s", "migrate", kept)
        assert await ledger.rows(KEYS_THAT_CAME_BACK) == [(ANN.hex,)]
        done = await run("erase-customer", ID, "--yes", "--json")
    assert (done.status, done.json["position"], done.json["new"]) == (0, 8, True)
    assert await ledger.keys() == {ANN.bytes: None}
    audit(await ledger.records())


@pytest.mark.parametrize("layout", ["parquet", "csv", "jsonl"])
async def test_an_export_of_events_never_has_the_name_and_one_of_views_has_it_until_then(
    ledger: Ledger, run: Run, tmp_path: Path, layout: str
) -> None:
    name = "Quartermaine-Łukasz"
    export = ("export", "--all", "--format", layout, "--out")
    async with ledger.writing(), ledger.projecting():
        registered = [event_of((BOB, CustomerRegistered(name)))]
        await ledger.put_events(registered)
        await ledger.until_recorded(registered)
        await until_projected(ledger)
        assert (await run(*export, str(tmp_path / "before"))).status == 0
        assert (await run("erase-customer", str(BOB), "--yes")).status == 0
        assert (await run(*export, str(tmp_path / "after"))).status == 0
    assert holding(tmp_path / "before", name) == [f"wallets.{layout}"]
    assert holding(tmp_path / "after", name) == []


def holding(directory: Path, name: str) -> list[str]:
    """The files of a directory that hold a name, be it escaped or not."""
    spellings = (name.encode(), json.dumps(name).encode())
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    assert len(files) > 4
    return [p.name for p in files if any(each in p.read_bytes() for each in spellings)]


def in_the_clear(record: Record, previous_hash: bytes) -> Record:
    """A registration as it was recorded before names were sealed."""
    data = encode_payload(CustomerRegistered("ann of old", 10**9))
    old = structs.replace(record, schema_version=1, data=data)
    return structs.replace(old, hash=next_hash(previous_hash, old))


async def test_a_name_recorded_before_names_were_encrypted_is_said_to_be_there_still(
    settings: Settings, run: Run
) -> None:
    async with running_ledger(settings) as ledger:
        (sealed,) = await ledger.write(opening()[:1])
        await ledger.forget_events()
        await ledger.execute("DELETE FROM customer_keys")
        async with ledger.connection() as connection:
            store = Store(connection)
            await store.append(
                await EventReader(connection).head(), [in_the_clear(sealed, bytes(32))]
            )
        async with ledger.writing(), ledger.projecting():
            await ledger.put_events(orders(1))
            await until_projected(ledger)
            assert await ledger.rows("SELECT username FROM wallets") == [("ann of old",)]
            done = await run("erase-customer", ID, "--yes", "--json")
        assert done.status == 1
        assert done.json["plain_positions"] == [1]
        assert "position 1, recorded before names were encrypted" in done.said_one_sentence()
        assert await ledger.rows("SELECT username FROM wallets", "analyst") == [("erased",)]
        assert await all_live(ledger) == await all_replayed(ledger)
        audit(await ledger.records())


async def test_without_a_database_one_sentence_says_so(ledger: Ledger, run: Run) -> None:
    done = await run("erase-customer", ID, "--yes", LEDGER_DB_PORT=str(free_port()))
    assert done.status == 1
    done.said_one_sentence()


async def test_without_a_broker_nothing_is_erased(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "SHOWN_TIMEOUT_S", 0.5)
    away = settings.model_copy(update={"amqp_port": free_port()})
    with pytest.raises(InboxUnavailable, match="broker is away"):
        await erase(away, ANN)
    assert None not in (await ledger.keys()).values()
