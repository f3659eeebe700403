"""Messages that can't be decoded are parked with their reason, and read without loss."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from aio_pika import Message

from ledger.eventlog.codec import MAX_REJECTED, Rejected, encode_group, encode_submitted
from ledger.messaging import parking
from ledger.messaging.parking import Parked, ParkingBusy, describe, id_of, open_parking, park
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX, PARKING, PARKING_EXCHANGE
from tests.harness import eventually
from tests.submissions import opening, orders

from .naive_audit import audit, causes, ids
from .pipeline import Ledger, group_of, until_acked

UNDECODABLE = [b"", b"\xff\xfe", b"null", b"{}", b"[", b"[[]]", b"[" * 100_000, b"\x00" * 1_000_000]


async def test_undecodable_messages_are_parked_and_the_writer_goes_on(ledger: Ledger) -> None:
    first, last = opening(), orders(2)
    await ledger.put(group_of(first), *UNDECODABLE, group_of(last))
    async with ledger.writing() as writer:
        records = await ledger.until_recorded([*first, *last])
        parked = await ledger.until_parked(len(UNDECODABLE))
        await until_acked(writer, len(UNDECODABLE) + 2)
    assert causes(records) == ids([*first, *last])
    assert [body for body, _ in parked] == [b"[]" if b == b"[[]]" else b for b in UNDECODABLE]
    assert all(reason for _, reason in parked)
    assert writer.progress.parked == len(UNDECODABLE)


async def test_an_undecodable_event_is_parked_and_the_rest_of_its_group_recorded(
    ledger: Ledger,
) -> None:
    one, two, three = *opening(), *orders(1)
    good = [encode_submitted(event, "/tests") for event in (one, two, three)]
    bad = good[2].replace(b"order.placed", b"order.completed")
    await ledger.put(encode_group([good[0], bad, good[1], b"7", good[2]]))
    async with ledger.writing():
        records = await ledger.until_recorded([one, two, three])
        (first, why), (second, _) = await ledger.until_parked(2)
    audit(records)
    assert causes(records) == ids([one, two, three])
    assert (first, second) == (bad, b"7")
    assert "order.completed" in why


async def test_an_empty_group_is_skipped(ledger: Ledger) -> None:
    first = opening()
    await ledger.put(b"[]", group_of(first), b"[]")
    async with ledger.writing() as writer:
        await ledger.until_recorded(first)
        await until_acked(writer, 3)
    assert await ledger.depth(PARKING) == 0


async def test_a_batch_of_undecodable_messages_only_is_acked(ledger: Ledger) -> None:
    await ledger.put(b"poison")
    async with ledger.writing() as writer:
        await until_acked(writer, 1)
    assert (await ledger.head()).position == 0
    assert len(await ledger.until_parked(1)) == 1


async def test_an_event_with_a_newer_schema_version_is_parked(ledger: Ledger) -> None:
    body = encode_submitted(opening()[0], "/tests")
    versions = ("0", "2", "-1", "99999999999999999999")
    newer = [body[:-1] + f',"schemaversion":{version}}}'.encode() for version in versions]
    await ledger.put(*[encode_group([event]) for event in newer])
    async with ledger.writing():
        parked = await ledger.until_parked(len(newer))
    assert [body for body, _ in parked] == newer
    assert await ledger.records() == []


async def test_all_undecodable_elements_of_a_message_are_parked(ledger: Ledger) -> None:
    elements = [b"%d" % number for number in range(MAX_REJECTED)]
    await ledger.put(encode_group(elements))
    async with ledger.writing() as writer:
        await until_acked(writer, 1)
    assert [message.id for message in await read(ledger)] == [
        id_of(element) for element in elements
    ]


async def test_a_message_with_too_many_undecodable_elements_is_parked_as_one(
    ledger: Ledger,
) -> None:
    good = opening()
    body = group_of(good)[:-1] + b",7" * (MAX_REJECTED + 1) + b"]"
    await ledger.put(body)
    async with ledger.writing() as writer:
        await ledger.until_recorded(good)
        await until_acked(writer, 1)
    (message,) = await read(ledger)
    assert (message.id, message.whole) == (id_of(body), True)
    assert message.reason.startswith("1001 of 1003 events, the first: ")


async def park_numbers(ledger: Ledger, *numbers: int) -> None:
    rejected = [Rejected(b"%d" % number, f"no {number}", whole=False) for number in numbers]
    await park(Connection(ledger.settings.amqp_url("writer"), "t"), rejected)


async def read(ledger: Ledger) -> list[Parked]:
    async with open_parking(ledger.settings.amqp_url("migrate"), "t") as queue:
        return [describe(message) async for message in queue.messages()]


async def numbers(ledger: Ledger) -> list[int]:
    return [int(message.reason.removeprefix("no ")) for message in await read(ledger)]


async def test_a_parked_message_has_its_id_reason_and_time(ledger: Ledger) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    await ledger.put(b"no JSON", encode_group([b"7"]))
    async with ledger.writing() as writer:
        await until_acked(writer, 2)
    message, element = await read(ledger)
    assert (message.id, message.whole, message.size) == (id_of(b"no JSON"), True, 7)
    assert (element.id, element.whole, element.size) == (id_of(b"7"), False, 1)
    assert "malformed" in message.reason
    assert "Expected `object`" in element.reason
    for item in (message, element):
        assert item.trouble
        assert item.parked_at
        assert began <= item.parked_at <= datetime.now(UTC)


async def test_reading_50_times_loses_nothing_and_keeps_the_order(ledger: Ledger) -> None:
    await park_numbers(ledger, *range(100))
    for _ in range(49):
        assert await numbers(ledger) == list(range(100))
    await park_numbers(ledger, 100)
    assert await numbers(ledger) == list(range(101))
    assert await ledger.depth(PARKING) == 101


async def test_more_messages_than_a_consumer_may_hold_are_read_in_order(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "MAX_PREFETCH", 7)
    await park_numbers(ledger, *range(100))
    for _ in range(2):
        assert await numbers(ledger) == list(range(100))


async def test_a_reader_takes_at_most_the_limit(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "MOST_READ", 5)
    await park_numbers(ledger, *range(8))
    assert await numbers(ledger) == list(range(5))
    assert await ledger.depth(PARKING) == 8


async def test_acked_messages_are_gone_and_all_others_stay(ledger: Ledger) -> None:
    await park_numbers(ledger, *range(300))
    async with open_parking(ledger.settings.amqp_url("migrate"), "t") as queue:
        messages = [message async for message in queue.messages()]
        for message in messages[::3]:
            await queue.ack([message])
    assert await numbers(ledger) == [number for number in range(300) if number % 3]


async def test_a_reader_that_fails_gives_everything_back(ledger: Ledger) -> None:
    await park_numbers(ledger, *range(20))

    async def fail_while_reading() -> None:
        async with open_parking(ledger.settings.amqp_url("migrate"), "t") as queue:
            async for _ in queue.messages():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_while_reading()
    assert sorted(await numbers(ledger)) == list(range(20))


async def test_two_readers_take_turns(ledger: Ledger) -> None:
    await park_numbers(ledger, *range(50))
    assert await asyncio.gather(*[numbers(ledger) for _ in range(4)]) == [list(range(50))] * 4


async def test_a_second_reader_is_refused_while_the_first_does_not_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "LOCK_WAIT_S", 0.3)
    async with open_parking(ledger.settings.amqp_url("migrate"), "t"):
        with pytest.raises(ParkingBusy, match="try again"):
            await read(ledger)


async def test_messages_held_by_another_consumer_are_an_error_and_not_missed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "SILENCE_S", 0.3)
    await park_numbers(ledger, 1, 2)
    url = ledger.settings.amqp_url("migrate")
    async with (
        open_parking(url, "t") as queue,
        Connection(url, "stranger").channel(confirms=False) as channel,
    ):
        strange = await channel.declare_queue(PARKING, passive=True)
        await strange.get()
        with pytest.raises(ParkingBusy, match="somebody else holds"):
            [message async for message in queue.messages()]


async def test_a_message_dead_lettered_by_the_broker_has_its_reason(ledger: Ledger) -> None:
    body = group_of(opening())
    await ledger.put(body)
    async with Connection(ledger.settings.amqp_url("migrate"), "t").channel(
        confirms=False
    ) as channel:
        inbox = await channel.declare_queue(INBOX, passive=True)
        deliveries = asyncio.Queue()
        await inbox.consume(deliveries.put)
        await (await deliveries.get()).reject(requeue=False)
        await ledger_has_parked(ledger, 1)
    (message,) = await read(ledger)
    assert message.reason == "given up by the broker: rejected from ledger.inbox"
    assert (message.id, message.whole, message.trouble) == (id_of(body), True, None)


async def ledger_has_parked(ledger: Ledger, count: int) -> None:
    async def has() -> bool:
        return await ledger.depth(PARKING) == count

    await eventually(has, f"{count} messages are parked")


async def test_a_message_without_headers_has_an_id_and_no_reason(ledger: Ledger) -> None:
    async with Connection(ledger.settings.amqp_url("migrate"), "t").channel(
        confirms=True
    ) as channel:
        exchange = await channel.get_exchange(PARKING_EXCHANGE)
        await exchange.publish(Message(b"?", message_id="mine"), "")
    (message,) = await read(ledger)
    assert (message.id, message.reason) == (id_of(b"?"), parking.NO_REASON)
    assert message.parked_at is None
