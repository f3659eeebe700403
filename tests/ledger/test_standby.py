"""Several writers: one leads, the others stand by, and the fence holds where that fails."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import writer
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.records import Submitted
from ledger.eventlog.snapshots import LedgerState
from ledger.eventlog.store import Fenced, Store
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX, SUBMITTED_EXCHANGE
from tests.harness import broker_admin, eventually
from tests.private_servers import Servers
from tests.submissions import opening, orders

from .naive_audit import audit, causes, ids
from .pipeline import Ledger


async def test_a_writer_that_stands_by_does_not_fence_off_the_one_that_leads(
    ledger: Ledger, servers: Servers
) -> None:
    async with ledger.writing() as leader:
        first = opening()
        await ledger.put_events(first)
        await ledger.until_recorded(first)
        async with ledger.writing() as standby:
            await until_consumers(ledger, servers, 2)
            events = orders(200)
            await ledger.put_events(*[[event] for event in events])
            records = await ledger.until_recorded(events)
            assert standby.progress.commits == 0
            assert leader.progress.duplicates == 0
    assert (await ledger.head()).epoch == 1
    assert causes(records) == ids([*first, *events])


async def test_a_writer_that_stands_by_takes_over_when_the_leader_dies_at_work(
    ledger: Ledger, servers: Servers
) -> None:
    events = [*opening(), *orders(400)]
    async with ledger.publishing() as publisher, AsyncExitStack() as leader:
        await leader.enter_async_context(ledger.writing())
        await publisher.submit(events[:1])
        await ledger.until_recorded(events[:1])
        async with ledger.writing() as standby:
            await until_consumers(ledger, servers, 2)
            for event in events[1:100]:
                await publisher.submit([event])
            assert standby.progress.commits == 0
            meanwhile = asyncio.create_task(submit_all(publisher, events[100:-50]))
            await leader.aclose()
            await meanwhile
            await submit_all(publisher, events[-50:])
            records = await ledger.until_recorded(events)
            assert standby.progress.commits > 0
    assert causes(records) == ids(events)
    assert (await ledger.head()).epoch == 2
    audit(records)


async def submit_all(publisher: Publisher, events: list[Submitted]) -> None:
    for event in events:
        await publisher.submit([event])


async def until_consumers(ledger: Ledger, servers: Servers, count: int) -> None:
    """Wait until so many writers consume, those that stand by counted."""
    async with broker_admin(servers) as http:

        async def are_there() -> bool:
            found = await http.get(f"/consumers/{ledger.settings.amqp_vhost}")
            return sum(each["queue"]["name"] == INBOX for each in found.json()) == count

        await eventually(are_there, f"the inbox has {count} consumers")


async def feed_every_consumer(channel: AbstractChannel) -> None:
    """An inbox without single active consumer, as a mistake of an operator could make it."""
    await channel.queue_delete(INBOX)
    queue = await channel.declare_queue(
        INBOX, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 10**6}
    )
    exchange = await channel.declare_exchange(SUBMITTED_EXCHANGE, ExchangeType.FANOUT, durable=True)
    await queue.bind(exchange)


async def test_two_writers_that_both_get_messages_append_each_event_once(
    ledger: Ledger, servers: Servers
) -> None:
    url = ledger.settings.amqp_url("migrate")
    async with Connection(url, "t").channel(confirms=False) as channel:
        await feed_every_consumer(channel)
    await ledger.write(opening())
    events = orders(60)
    async with ledger.writing() as one, ledger.writing() as two, ledger.publishing() as publisher:
        await until_consumers(ledger, servers, 2)

        async def both_have_led() -> bool:
            """Once fenced a writer starts again, and then fences the other."""
            await publisher.submit(event := orders(1))
            events.extend(event)
            return min(one.progress.commits, two.progress.commits) > 0

        await submit_all(publisher, [event for event in events for _ in range(2)])
        await eventually(both_have_led, "both writers have appended")
        await ledger.until_recorded(events)
        await ledger.until_inbox_empty()
    records = await ledger.records()
    assert sorted(causes(records)[2:]) == sorted(ids(events))
    audit(records)
    assert (await ledger.head()).epoch > 2


async def test_a_writer_overtaken_during_its_takeover_is_fenced_and_reports_no_damage(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its new epoch and its look at the ledger another one took over and appended."""
    catch_up = writer.catch_up
    async with ledger.connection() as slow, ledger.connection() as quick:
        ours, theirs = await writer.load(slow), await writer.load(quick)

        async def after_the_other(connection: AsyncConnection, known: LedgerState) -> None:
            monkeypatch.setattr(writer, "catch_up", catch_up)
            await writer.take_over(quick, theirs)
            composed = compose(opening(), theirs.fold, theirs.head, {}, 1, CustomerKeys({}))
            await Store(quick).append(theirs.head, composed.records)
            await catch_up(connection, known)

        monkeypatch.setattr(writer, "catch_up", after_the_other)
        with pytest.raises(Fenced):
            await writer.take_over(slow, ours)
    assert (await ledger.head()).position == 2
