"""Messages that can't be read: parked with their reason, and the line goes on."""

from ledger.codec import encode_submitted, join
from ledger.topology import PARKING

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
