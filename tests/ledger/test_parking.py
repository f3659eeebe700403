"""Messages that can't be read: parked with their reason, and the line goes on."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from aio_pika import Message

from cli.commands.migrate import migrate
from ledger.eventlog.codec import MAX_REJECTED, Rejected, encode_submitted, join
from ledger.messaging import parking, topology
from ledger.messaging.parking import Parked, ParkingBusy, id_of, open_parking, park, parked
from ledger.messaging.rabbitmq import Connection, open_channel
from ledger.messaging.topology import INBOX, PARKING, PARKING_EXCHANGE, OldParkingInUse
from tests.harness import eventually

from .audit import audit, causes, ids
from .events import opening, orders
from .running import Ledger, group_of, until_acked

POISON = [b"", b"\xff\xfe", b"null", b"{}", b"[", b"[[]]", b"[" * 100_000, b"\x00" * 1_000_000]


async def test_bytes_that_are_no_events_are_parked_and_the_line_goes_on(ledger: Ledger) -> None:
    first, last = opening(), orders(2)
    await ledger.put(group_of(first), *POISON, group_of(last))
    async with ledger.writing() as writer:
        records = await ledger.until_recorded([*first, *last])
        parked = await ledger.until_parked(len(POISON))
        await until_acked(writer, len(POISON) + 2)
    assert causes(records) == ids([*first, *last])
    assert [body for body, _ in parked] == [b"[]" if b == b"[[]]" else b for b in POISON]
    assert all(reason for _, reason in parked)
    assert writer.progress.parked == len(POISON)


async def test_a_bad_event_does_not_spoil_its_neighbours(ledger: Ledger) -> None:
    one, two, three = *opening(), *orders(1)
    good = [encode_submitted(event, "/tests") for event in (one, two, three)]
    bad = good[2].replace(b"order.placed", b"order.completed")
    await ledger.put(join([good[0], bad, good[1], b"7", good[2]]))
    async with ledger.writing():
        records = await ledger.until_recorded([one, two, three])
        (first, why), (second, _) = await ledger.until_parked(2)
    audit(records)
    assert causes(records) == ids([one, two, three])
    assert (first, second) == (bad, b"7")
    assert "order.completed" in why


async def test_an_empty_group_is_passed_over(ledger: Ledger) -> None:
    first = opening()
    await ledger.put(b"[]", group_of(first), b"[]")
    async with ledger.writing() as writer:
        await ledger.until_recorded(first)
        await until_acked(writer, 3)
    assert await ledger.depth(PARKING) == 0


async def test_nothing_but_poison_is_acked_too(ledger: Ledger) -> None:
    await ledger.put(b"poison")
    async with ledger.writing() as writer:
        await until_acked(writer, 1)
    assert (await ledger.head()).position == 0
    assert len(await ledger.until_parked(1)) == 1


async def test_a_schema_version_of_the_future_is_parked_not_guessed(ledger: Ledger) -> None:
    body = encode_submitted(opening()[0], "/tests")
    versions = ("0", "2", "-1", "99999999999999999999")
    newer = [body[:-1] + f',"schemaversion":{version}}}'.encode() for version in versions]
    await ledger.put(*[join([each]) for each in newer])
    async with ledger.writing():
        parked = await ledger.until_parked(len(newer))
    assert [body for body, _ in parked] == newer
    assert await ledger.records() == []


async def test_many_bad_elements_of_a_message_are_all_parked(ledger: Ledger) -> None:
    elements = [b"%d" % number for number in range(MAX_REJECTED)]
    await ledger.put(join(elements))
    async with ledger.writing() as writer:
        await until_acked(writer, 1)
    assert [each.id for each in await read(ledger)] == [id_of(element) for element in elements]


async def test_a_poison_of_too_many_elements_is_one_message(ledger: Ledger) -> None:
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
        return [parked(message) async for message in queue.messages()]


async def numbers(ledger: Ledger) -> list[int]:
    return [int(each.reason.removeprefix("no ")) for each in await read(ledger)]


async def test_a_parked_message_says_what_why_and_when(ledger: Ledger) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    await ledger.put(b"no JSON", join([b"7"]))
    async with ledger.writing() as writer:
        await until_acked(writer, 2)
    message, element = await read(ledger)
    assert (message.id, message.whole, message.size) == (id_of(b"no JSON"), True, 7)
    assert (element.id, element.whole, element.size) == (id_of(b"7"), False, 1)
    assert "malformed" in message.reason
    assert "Expected `object`" in element.reason
    for each in (message, element):
        assert each.trouble
        assert each.parked_at
        assert began <= each.parked_at <= datetime.now(UTC)


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


async def test_no_more_is_read_than_fits_into_memory(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "MOST_READ", 5)
    await park_numbers(ledger, *range(8))
    assert await numbers(ledger) == list(range(5))
    assert await ledger.depth(PARKING) == 8


async def test_what_is_acked_is_gone_for_the_next_reader_and_nothing_else(ledger: Ledger) -> None:
    await park_numbers(ledger, *range(300))
    async with open_parking(ledger.settings.amqp_url("migrate"), "t") as queue:
        messages = [message async for message in queue.messages()]
        for message in messages[::3]:
            await queue.ack([message])
    assert await numbers(ledger) == [number for number in range(300) if number % 3]


async def test_a_reader_that_breaks_off_gives_everything_back(ledger: Ledger) -> None:
    await park_numbers(ledger, *range(20))

    async def break_off() -> None:
        async with open_parking(ledger.settings.amqp_url("migrate"), "t") as queue:
            async for _ in queue.messages():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    assert sorted(await numbers(ledger)) == list(range(20))


async def test_two_readers_take_turns(ledger: Ledger) -> None:
    await park_numbers(ledger, *range(50))
    assert await asyncio.gather(*[numbers(ledger) for _ in range(4)]) == [list(range(50))] * 4


async def test_a_reader_that_does_not_end_is_told_of(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "LOCK_WAIT_S", 0.3)
    async with open_parking(ledger.settings.amqp_url("migrate"), "t"):
        with pytest.raises(ParkingBusy, match="try again"):
            await read(ledger)


async def test_a_part_of_the_queue_is_never_taken_for_all_of_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "SILENCE_S", 0.3)
    await park_numbers(ledger, 1, 2)
    url = ledger.settings.amqp_url("migrate")
    async with (
        open_parking(url, "t") as queue,
        open_channel(url, "stranger", confirms=False) as channel,
    ):
        strange = await channel.declare_queue(PARKING, passive=True)
        await strange.get()
        with pytest.raises(ParkingBusy, match="somebody else holds"):
            [message async for message in queue.messages()]


async def test_what_the_broker_gave_up_says_so(ledger: Ledger) -> None:
    body = group_of(opening())
    await ledger.put(body)
    async with open_channel(ledger.settings.amqp_url("migrate"), "t", confirms=False) as channel:
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


async def test_a_message_of_a_stranger_has_an_id_and_no_reason(ledger: Ledger) -> None:
    async with open_channel(ledger.settings.amqp_url("migrate"), "t", confirms=True) as channel:
        exchange = await channel.get_exchange(PARKING_EXCHANGE)
        await exchange.publish(Message(b"?", message_id="mine"), "")
    (message,) = await read(ledger)
    assert (message.id, message.reason) == (id_of(b"?"), parking.NO_REASON)
    assert message.parked_at is None


async def declare_as_before(ledger: Ledger) -> None:
    """The parking queue without a delivery limit, as earlier versions had it."""
    async with open_channel(ledger.settings.amqp_url("migrate"), "t", confirms=False) as channel:
        exchange = await channel.get_exchange(PARKING_EXCHANGE)
        await channel.queue_delete(PARKING)
        queue = await channel.declare_queue(
            PARKING, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.bind(exchange)


async def test_an_empty_parking_queue_of_before_is_made_anew(ledger: Ledger) -> None:
    await declare_as_before(ledger)
    await migrate(ledger.settings)
    async with open_channel(ledger.settings.amqp_url("migrate"), "t", confirms=False) as channel:
        await topology.declare(channel, ledger.settings.inbox_max_length)
    await park_numbers(ledger, 1)
    assert await numbers(ledger) == [1]


async def test_a_parking_queue_of_before_that_holds_something_is_kept(ledger: Ledger) -> None:
    await declare_as_before(ledger)
    await park_numbers(ledger, 1)
    with pytest.raises(OldParkingInUse, match="ledger parked"):
        await migrate(ledger.settings)
    await park_numbers(ledger, 2)
    assert await numbers(ledger) == [1, 2]
