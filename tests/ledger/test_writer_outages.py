"""Answers that are lost, connections that end: the writer heals, loses nothing, doubles nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from uuid import UUID

import pytest

from ledger.messaging.publisher import InboxUnavailable, Publisher
from ledger.writer import Writer
from tests.harness import broker_admin, eventually
from tests.private_servers import Servers
from tests.proxy import BASIC_ACK, COMMIT, Proxy, open_proxy
from tests.submissions import ANN, PEN, opening, orders

from .naive_audit import audit, causes, ids
from .pipeline import Ledger, beside, until_connected


@pytest.fixture
async def database(ledger: Ledger) -> AsyncIterator[Proxy]:
    async with open_proxy(ledger.settings.db_port) as proxy:
        yield proxy


@pytest.fixture
async def broker(ledger: Ledger) -> AsyncIterator[Proxy]:
    async with open_proxy(ledger.settings.amqp_port) as proxy:
        yield proxy


async def finishes(ledger: Ledger, writer: Writer) -> None:
    """What is submitted now is decided; afterwards the ledger is checked as a whole."""
    last = orders(3)
    await ledger.put_events(last)
    records = await ledger.until_recorded(last)
    await ledger.until_inbox_empty()
    fold = audit(records)
    placed = len(causes(records)) - 2
    assert fold.customers[ANN].balance_minor == 10**9 - 1000 * placed
    assert fold.products[PEN].stock == 10_000 - placed


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_doubled(
    ledger: Ledger, database: Proxy, delivered: bool
) -> None:
    settings = ledger.settings.model_copy(update={"db_port": database.port})
    async with ledger.writing(settings) as writer:
        first = opening()
        await ledger.put_events(first)
        await ledger.until_recorded(first)
        database.lose(COMMIT, delivered=delivered)
        events = orders(50)
        await ledger.put_events(events[:25], events[25:])
        records = await ledger.until_recorded(events)
        assert database.lost == 1
        assert sorted(causes(records)) == sorted(ids([*first, *events]))
        await finishes(ledger, writer)

        async def repeats_are_counted() -> bool:
            # One message, or both, are in the batch whose answer is lost.
            return writer.progress.duplicates in ((25, 50) if delivered else (0,))

        await eventually(repeats_are_counted, "what was committed is not appended again")


async def test_a_commit_that_is_never_answered_is_given_up_and_looked_up(
    ledger: Ledger, database: Proxy
) -> None:
    settings = ledger.settings.model_copy(update={"db_port": database.port})
    async with ledger.writing(settings, read_timeout_s=0.5) as writer:
        first = opening()
        await ledger.put_events(first)
        await ledger.until_recorded(first)
        database.stall()
        await ledger.put_events(orders(5))
        async with ledger.writing() as other:
            await finishes(ledger, other)
            assert other.progress.commits > 0
        await database.heal()
        await finishes(ledger, writer)


async def test_an_ack_that_is_lost_after_the_commit_is_harmless(
    ledger: Ledger, broker: Proxy
) -> None:
    settings = ledger.settings.model_copy(update={"amqp_port": broker.port})
    async with ledger.writing(settings) as writer:
        first = opening()
        await ledger.put_events(first)
        await ledger.until_recorded(first)
        await ledger.until_inbox_empty()
        broker.lose(BASIC_ACK, delivered=False)
        events = orders(20)
        await ledger.put_events(events)
        await ledger.until_recorded(events)

        async def came_again() -> bool:
            return writer.progress.duplicates == len(events)

        await eventually(came_again, "the broker delivers again what was not acked")
        assert broker.lost == 1
        await finishes(ledger, writer)


async def test_without_broker_or_database_the_writer_waits_and_then_goes_on(
    ledger: Ledger, broker: Proxy, database: Proxy
) -> None:
    ports = {"amqp_port": broker.port, "db_port": database.port}
    async with ledger.writing(ledger.settings.model_copy(update=ports)) as writer:
        first = opening()
        await ledger.put_events(first)
        await ledger.until_recorded(first)
        for proxy in (broker, database):
            proxy.cut()
            events = orders(20)
            await ledger.put_events(*[[event] for event in events])
            assert causes(await ledger.records())[-1] != events[-1].event_id
            await proxy.heal()
            await ledger.until_recorded(events)
        await finishes(ledger, writer)


Fault = Callable[[Ledger, Proxy], Awaitable[None]]


async def database_drops_everyone(ledger: Ledger, _: Proxy) -> None:
    for role in ("writer", "projector"):

        async def dropped(role: str = role) -> int:
            return await ledger.kill_connections(role)

        await eventually(dropped, "there are connections to end")


async def broker_is_cut_off(_: Ledger, broker: Proxy) -> None:
    broker.cut()
    await broker.heal()


@pytest.mark.parametrize("fault", [database_drops_everyone, broker_is_cut_off])
async def test_when_connections_are_dropped_under_load_everything_heals_by_itself(
    ledger: Ledger, broker: Proxy, fault: Fault
) -> None:
    settings = ledger.settings.model_copy(update={"amqp_port": broker.port})
    async with (
        ledger.writing(settings),
        ledger.projecting(settings),
        ledger.publishing(settings) as publisher,
    ):
        await publisher.submit(opening())
        accepted: list[UUID] = []
        async with beside(*[place(10_000, publisher, accepted) for _ in range(2)]):
            for _ in range(3):
                await more_are_accepted(accepted)
                await fault(ledger, broker)
            await more_are_accepted(accepted)
        await all_decided_and_shown(ledger, publisher, accepted)


async def test_what_the_broker_closes_heals_by_itself(ledger: Ledger, servers: Servers) -> None:
    async with (
        ledger.writing(),
        ledger.projecting(),
        ledger.publishing() as publisher,
        broker_admin(servers) as http,
    ):
        await publisher.submit(opening())

        async def closed() -> bool:
            """The broker tells of its connections only every five seconds."""
            path = f"/vhosts/{ledger.settings.amqp_vhost}/connections"
            connections = (await http.get(path)).json()
            for connection in connections:
                await http.delete(f"/connections/{connection['name']}")
            return len(connections) >= 5

        await eventually(closed, "every connection is closed")
        accepted: list[UUID] = []
        await place(20, publisher, accepted)
        await all_decided_and_shown(ledger, publisher, accepted)


async def place(count: int, publisher: Publisher, accepted: list[UUID]) -> None:
    """Place orders one by one as a client does; those that may be lost are not repeated."""
    for event in orders(count):
        await until_connected(publisher)
        with suppress(InboxUnavailable):
            await publisher.submit([event])
            accepted.append(event.event_id)


async def more_are_accepted(accepted: list[UUID]) -> None:
    enough = len(accepted) + 50

    async def are_enough() -> bool:
        return len(accepted) >= enough

    await eventually(are_enough, "orders are accepted")


async def all_decided_and_shown(ledger: Ledger, publisher: Publisher, accepted: list[UUID]) -> None:
    await until_connected(publisher)
    last = orders(1)
    await publisher.submit(last)
    await ledger.until_recorded(last)
    await ledger.until_inbox_empty()
    records = await ledger.records()
    assert set(accepted) <= set(causes(records))
    audit(records)
    await until_projected(ledger)


async def until_projected(ledger: Ledger) -> None:
    """Wait until every view is at the head."""

    async def at_head() -> bool:
        found = await ledger.rows("SELECT MIN(position) FROM checkpoints", "projector")
        return bool(found[0][0] == (await ledger.head()).position)

    await eventually(at_head, "the views are at the head")
