"""Messages that can't be read: parked with their reason, and the line goes on."""

import pytest

from ledger.codec import encode_submitted, join

from .audit import audit, causes, ids
from .events import opening, orders
from .running import Ledger, group_of

POISON = [b"", b"\xff\xfe", b"null", b"{}", b"[", b"[[]]", b"[" * 100_000, b"\x00" * 1_000_000]


async def test_bytes_that_are_no_events_are_parked_and_the_line_goes_on(ledger: Ledger) -> None:
    first, last = opening(), orders(2)
    await ledger.put(group_of(first), *POISON, group_of(last))
    async with ledger.writing() as writer:
        records = await ledger.until_recorded([*first, *last])
        await ledger.until_inbox_empty()
    assert causes(records) == ids([*first, *last])
    parked = await ledger.parked()
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
        await ledger.until_inbox_empty()
    audit(records)
    assert causes(records) == ids([one, two, three])
    (first, why), (second, _) = await ledger.parked()
    assert (first, second) == (bad, b"7")
    assert "order.completed" in why


async def test_an_empty_group_is_passed_over(ledger: Ledger) -> None:
    first = opening()
    await ledger.put(b"[]", group_of(first), b"[]")
    async with ledger.writing():
        await ledger.until_recorded(first)
        await ledger.until_inbox_empty()
    assert await ledger.parked() == []


async def test_nothing_but_poison_is_acked_too(ledger: Ledger) -> None:
    await ledger.put(b"poison")
    async with ledger.writing() as writer:
        await ledger.until_inbox_empty()
        assert writer.progress.events == 0
    assert (await ledger.head()).position == 0
    assert len(await ledger.parked()) == 1


@pytest.mark.parametrize("version", ["0", "2", "-1", "99999999999999999999"])
async def test_a_schema_version_of_the_future_is_parked_not_guessed(
    ledger: Ledger, version: str
) -> None:
    body = encode_submitted(opening()[0], "/tests")
    newer = body[:-1] + f',"schemaversion":{version}}}'.encode()
    await ledger.put(join([newer]))
    async with ledger.writing():
        await ledger.until_inbox_empty()
    assert [body for body, _ in await ledger.parked()] == [newer]
    assert await ledger.records() == []
