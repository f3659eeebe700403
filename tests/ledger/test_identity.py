"""Two ledgers on one virtual host: neither decides what the other's API accepted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

import pytest

from cli.inbox import submit
from ledger.eventlog import identity
from ledger.eventlog.identity import (
    HASH_HEADER,
    LEDGER_HEADER,
    POSITION_HEADER,
    ForeignLedger,
    HeadWatch,
    SeenHead,
    decode_head,
    encode_head,
    head_of,
)
from ledger.messaging.publisher import InboxUnavailable
from ledger.messaging.topology import INBOX
from ledger.runtime.metrics import FOREIGN_LEDGER
from tests.harness import eventually, make_ledger
from tests.private_servers import Servers
from tests.submissions import history, opening, orders

from .pipeline import Ledger, beside, running_ledger, seen_by

TABLES = ("events", "ledger_head", "ledger_identity", "customer_keys")


@pytest.fixture
async def copy(ledger: Ledger, servers: Servers) -> AsyncIterator[Ledger]:
    """A copy of the ledger, made when a test asks for it, whose processes use the same broker."""
    other = await make_ledger(servers)
    settings = other.model_copy(update={"amqp_vhost": ledger.settings.amqp_vhost})
    async with running_ledger(settings) as made:
        yield made


async def restore(ledger: Ledger, copy: Ledger) -> None:
    """Bring all of the ledger into the copy."""
    here, there = ledger.settings.db_name, copy.settings.db_name
    async with copy.connection("migrate") as connection:
        for table in TABLES:
            found = await connection.exec_driver_sql(f"SELECT * FROM {here}.{table}")
            rows = [tuple(row) for row in found]
            if table in {"ledger_head", "ledger_identity"}:
                await connection.exec_driver_sql(f"DELETE FROM {there}.{table}")
            if rows:
                values = ", ".join(["%s"] * len(rows[0]))
                await connection.exec_driver_sql(
                    f"INSERT INTO {there}.{table} VALUES ({values})", rows
                )
        await connection.commit()


async def watching(ledger: Ledger) -> HeadWatch:
    """What an API of the ledger knows, as of now."""
    watch = HeadWatch(ledger.engine("api"))
    await watch.check()
    return watch


async def refused_by(copy: Ledger, **options: int) -> ForeignLedger:
    """How the copy's writer ends."""
    writer, notifier = copy.make_writer(**options)
    with pytest.raises(ForeignLedger) as refusal:
        async with beside(notifier.run()), asyncio.timeout(30):
            await writer.run()
    return refusal.value


async def test_the_writer_of_an_older_copy_decides_nothing_that_the_ledgers_api_accepted(
    ledger: Ledger, copy: Ledger
) -> None:
    await ledger.write(opening())
    await restore(ledger, copy)
    await ledger.write(orders(1))
    accepted = orders(20)
    before = await copy.head()
    async with ledger.publishing(watch=await watching(ledger)) as publisher:
        await asyncio.gather(*(publisher.submit([event]) for event in accepted))
    error = await refused_by(copy)
    assert "this ledger has no position 4" in str(error)
    assert "Nothing was decided, and all is in the inbox still" in str(error)
    assert FOREIGN_LEDGER.collect()[0].samples[0].value == 1
    assert await copy.head() == before
    async with ledger.writing():
        await ledger.until_recorded(accepted)


async def test_a_copy_that_went_its_own_way_is_told_by_the_hash(
    ledger: Ledger, copy: Ledger
) -> None:
    await ledger.write(opening())
    await restore(ledger, copy)
    await ledger.write(orders(3))
    await copy.write(orders(30))
    async with ledger.publishing(watch=await watching(ledger)) as publisher:
        await publisher.submit(orders(1))
    assert "this ledger has the hash" in str(await refused_by(copy))
    assert await ledger.depth(INBOX) == 1


async def test_the_writer_of_another_ledger_is_told_by_the_id(ledger: Ledger, copy: Ledger) -> None:
    await copy.execute("UPDATE ledger_identity SET ledger_id = %s", "migrate", uuid4().bytes)
    async with ledger.publishing(watch=await watching(ledger)) as publisher:
        await publisher.submit(orders(1))
    assert "but this is ledger" in str(await refused_by(copy))
    assert await ledger.depth(INBOX) == 1


async def test_what_a_command_submits_is_of_its_ledger_too(ledger: Ledger, copy: Ledger) -> None:
    await ledger.write(opening())

    async def is_shown() -> bool:
        return True

    await submit(ledger.settings, ledger.engine("api"), "/command", orders(1), is_shown)
    assert "this ledger has no position 2" in str(await refused_by(copy))


async def test_messages_that_name_no_head_are_decided_as_before(ledger: Ledger) -> None:
    first, second = opening(), orders(2)
    async with ledger.writing(), ledger.publishing() as older:
        await older.submit(first)
        await ledger.until_recorded(first)
        async with ledger.publishing(watch=await watching(ledger)) as newer:
            await newer.submit(second[:1])
            await older.submit(second[1:])
        await ledger.until_recorded(second)


async def test_what_was_accepted_before_a_restore_is_decided_once_the_operator_says_so(
    ledger: Ledger, copy: Ledger
) -> None:
    await ledger.write(opening())
    await restore(ledger, copy)
    await ledger.write(orders(2))
    accepted = orders(5)
    async with ledger.publishing(watch=await watching(ledger)) as publisher:
        await publisher.submit(accepted)
    end = (await copy.head()).position
    assert "LEDGER_LOST_AFTER" in str(await refused_by(copy))
    await refused_by(copy, lost_after=10**6)
    async with copy.writing(lost_after=end):
        await copy.until_recorded(accepted)


async def test_a_writer_of_a_copy_is_noticed_even_if_it_has_the_same_head_and_stays_noticed(
    ledger: Ledger, copy: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "HEARD_FOR_S", 4.0)
    await ledger.write(opening())
    await restore(ledger, copy)
    watch = await watching(ledger)
    async with ledger.projecting() as projector, beside(projector.watch.run()):
        async with copy.writing(), ledger.publishing(watch=watch) as publisher:
            await publisher.submit(orders(1))
            await eventually(lambda: said(projector.watch), "the foreign writer is noticed")
            assert "another ledger works on this virtual host" in str(projector.watch.foreign)
            watch.hear_of_foreign(projector.watch.foreign)
            with pytest.raises(InboxUnavailable, match="another ledger works"):
                await publisher.submit(orders(1))
        await eventually(lambda: said(projector.watch, False), "it is gone, and that is noticed")


async def said(watch: HeadWatch, wrong: bool = True) -> bool:
    return (watch.problem is not None) is wrong


async def test_a_ledgers_own_writer_and_projector_are_never_taken_for_others(
    ledger: Ledger,
) -> None:
    async with ledger.writing(), ledger.projecting() as projector:
        for _ in range(10):
            await ledger.put_events(events := history(uuid4().int % 1000, 20))
            await ledger.until_recorded(events)
            await projector.watch.check()
            assert projector.watch.problem is None
    assert projector.watch.head == await seen_by(ledger)


async def test_a_ledger_that_went_back_is_noticed_and_holds_what_would_be_submitted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "GRACE_S", 0.0)
    await ledger.write(opening())
    watch, told = await watching(ledger), []
    watch.on_lost(lambda: told.append(True))
    await ledger.forget_events()
    async with ledger.publishing(watch=watch) as publisher:
        await watch.check()
        await watch.check()
        assert told == [True]
        assert str(watch.problem).startswith("the ledger went back")
        with pytest.raises(InboxUnavailable, match="the ledger went back"):
            await publisher.submit(orders(1))
    assert await ledger.depth(INBOX) == 0


HEAD = SeenHead(UUID(int=7), 5, bytes(range(32)))


def test_a_head_survives_headers_and_notifications() -> None:
    assert head_of(HEAD.headers()) == HEAD
    assert decode_head(encode_head(HEAD)) == HEAD
    assert decode_head(b"5") is None  # of an older writer
    assert head_of({}) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: headers.pop(HASH_HEADER),
        lambda headers: headers.update({LEDGER_HEADER: 5}),
        lambda headers: headers.update({LEDGER_HEADER: "x"}),
        lambda headers: headers.update({POSITION_HEADER: "5"}),
        lambda headers: headers.update({POSITION_HEADER: True}),
        lambda headers: headers.update({POSITION_HEADER: 2**63}),
        lambda headers: headers.update({POSITION_HEADER: -1}),
        lambda headers: headers.update({HASH_HEADER: "xy"}),
        lambda headers: headers.update({HASH_HEADER: b"\0" * 32}),
    ],
)
def test_headers_that_cant_be_read_count_as_none(
    change: Callable[[dict[str, object]], object],
) -> None:
    headers = HEAD.headers()
    change(headers)
    assert head_of(headers) is None
