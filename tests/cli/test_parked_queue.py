"""Nothing leaves the parking queue before it is in the log, whatever breaks."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from sqlalchemy.exc import DBAPIError

from cli.commands import parked as parked_command
from cli.commands.parked import remove, survey
from cli.settings import Settings
from ledger.eventlog.codec import Rejected, encode_submitted
from ledger.eventlog.records import Submitted
from ledger.messaging.parking import (
    Action,
    LogEntry,
    MessageTooLarge,
    Parked,
    id_of,
    inbox_body,
    park,
    read_log,
    read_logged_body,
    refuse_too_large,
)
from ledger.messaging.publisher import InboxFull
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX
from ledger.runtime import failpoints
from ledger.runtime.failpoints import FailpointReached
from tests.harness import make_ledger
from tests.ledger.naive_audit import audit, causes, ids
from tests.ledger.pipeline import Ledger, group_of, running_ledger
from tests.private_servers import Servers
from tests.submissions import opening, orders

LARGEST = 16 * 2**20


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger of the test, on which nothing runs."""
    async with running_ledger(settings) as ledger:
        yield ledger
    failpoints.arm("")


async def park_bytes(ledger: Ledger, *bodies: bytes, whole: bool = True) -> None:
    rejected = [Rejected(body, "why", whole) for body in bodies]
    await park(Connection(ledger.settings.amqp_url("writer"), "t"), rejected)


async def park_events(ledger: Ledger, events: Sequence[Submitted]) -> None:
    """Park events that can be read, as a writer would have that did not know their type yet."""
    bodies = [encode_submitted(event, "/tests") for event in events]
    await park_bytes(ledger, *bodies, whole=False)


async def parked(ledger: Ledger) -> list[Parked]:
    return (await survey(ledger.settings))[0]


async def discard_all(ledger: Ledger) -> dict[str, int]:
    return await remove_messages(ledger, "discarded", await parked(ledger))


async def resubmit_all(ledger: Ledger) -> dict[str, int]:
    return await remove_messages(ledger, "resubmitted", await parked(ledger))


async def remove_messages(
    ledger: Ledger, action: Action, messages: Sequence[Parked]
) -> dict[str, int]:
    done: dict[str, int] = {}
    await remove(ledger.settings, action, messages, lambda more: None, done)
    return done


async def recorded(ledger: Ledger) -> list[LogEntry]:
    async with ledger.connection("migrate") as connection:
        return await read_log(connection, 1_000)


async def body(ledger: Ledger, id_: str) -> bytes | None:
    async with ledger.connection("migrate") as connection:
        return await read_logged_body(connection, id_)


async def test_discarded_bytes_are_in_the_log(ledger: Ledger) -> None:
    bodies = [b"", b"\x00\xff'\"\\%s", "größe".encode()]
    await park_bytes(ledger, *bodies, bodies[1])
    assert await discard_all(ledger) == {
        id_of(bodies[0]): 1,
        id_of(bodies[1]): 2,
        id_of(bodies[2]): 1,
    }
    assert await parked(ledger) == []
    entries = await recorded(ledger)
    assert [(entry.id, entry.copies, entry.action, entry.size) for entry in entries] == [
        (id_of(bodies[0]), 1, "discarded", 0),
        (id_of(bodies[1]), 2, "discarded", 7),
        (id_of(bodies[2]), 1, "discarded", 7),
    ]
    assert {entry.operator for entry in entries} == {parked_command.operator()}
    assert [await body(ledger, id_of(each)) for each in bodies] == bodies


async def test_the_largest_message_fits_into_the_log(ledger: Ledger) -> None:
    largest = b"'" * LARGEST
    await park_bytes(ledger, largest)
    assert await discard_all(ledger) == {id_of(largest): 1}
    assert await body(ledger, id_of(largest)) == largest


async def test_a_message_that_the_database_would_not_take_is_refused_in_time(
    ledger: Ledger,
) -> None:
    async with ledger.connection("migrate") as connection:
        with pytest.raises(MessageTooLarge, match="max_allowed_packet"):
            await refuse_too_large(connection, 2**25)
        await refuse_too_large(connection, LARGEST)


async def test_events_are_submitted_again_in_the_order_they_were_parked_in(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_command, "BATCH", 2)
    monkeypatch.setattr(parked_command, "HELD_BYTES", 1_500)
    events = [*opening(), *orders(13)]
    await park_events(ledger, events)
    done = await resubmit_all(ledger)
    assert sum(done.values()) == len(events)
    assert await parked(ledger) == []
    async with ledger.writing():
        records = await ledger.until_recorded(events)
    audit(records)
    assert causes(records) == ids(events)
    assert [entry.id for entry in await recorded(ledger)] == list(done)


async def test_a_whole_message_is_submitted_again_as_it_was(ledger: Ledger) -> None:
    events = opening()
    group = group_of(events)
    await park_bytes(ledger, group[:-1] + b",7]")
    await resubmit_all(ledger)
    async with ledger.writing():
        await ledger.until_recorded(events)
        ((again, _),) = await ledger.until_parked(1)
    assert again == b"7"


async def test_copies_are_submitted_once(ledger: Ledger) -> None:
    (event,) = orders(1)
    await park_events(ledger, [event, event, event])
    assert list((await resubmit_all(ledger)).values()) == [3]
    assert await ledger.depth(INBOX) == 1
    assert [entry.copies for entry in await recorded(ledger)] == [3]


async def test_messages_parked_meanwhile_stay(ledger: Ledger) -> None:
    await park_bytes(ledger, b"one")
    chosen = await parked(ledger)
    await park_bytes(ledger, b"one", b"two")
    await remove_messages(ledger, "discarded", chosen)
    assert {each.id for each in await parked(ledger)} == {id_of(b"one"), id_of(b"two")}


@pytest.mark.parametrize("name", ["parked.before-log", "parked.before-ack"])
async def test_an_interrupted_discard_leaves_the_message_parked(ledger: Ledger, name: str) -> None:
    await park_bytes(ledger, b"poison")
    failpoints.arm(f"{name}=raise@1")
    with pytest.raises(FailpointReached):
        await discard_all(ledger)
    assert len(await parked(ledger)) == 1
    await discard_all(ledger)
    assert await parked(ledger) == []
    assert len(await recorded(ledger)) == (2 if name == "parked.before-ack" else 1)


@pytest.mark.parametrize(
    "name",
    [
        "publisher.before-publish",
        "publisher.before-confirm",
        "publisher.after-confirm",
        "parked.before-log",
        "parked.before-ack",
    ],
)
async def test_an_interrupted_resubmission_is_decided_once_when_run_again(
    ledger: Ledger, name: str
) -> None:
    events = [*opening(), *orders(2)]
    await park_events(ledger, events)
    failpoints.arm(f"{name}=raise@1")
    with pytest.raises(FailpointReached):
        await resubmit_all(ledger)
    assert len(await parked(ledger)) == len(events)
    await resubmit_all(ledger)
    assert await parked(ledger) == []
    async with ledger.writing():
        records = await ledger.until_recorded(events)
        await ledger.until_inbox_empty()
    audit(records)
    assert causes(records) == ids(events)
    assert {entry.id for entry in await recorded(ledger)} == {
        id_of(encode_submitted(event, "/tests")) for event in events
    }


async def test_a_full_inbox_stops_a_resubmission_and_loses_nothing(servers: Servers) -> None:
    settings = await make_ledger(servers, inbox_max_length=1)
    async with running_ledger(settings) as ledger:
        events = opening() + orders(8)
        await park_events(ledger, events)
        with pytest.raises(InboxFull):
            await resubmit_all(ledger)
        waiting, left = await ledger.depth(INBOX), await parked(ledger)
        assert waiting
        assert waiting + len(left) == len(events)
        assert len(await recorded(ledger)) == waiting


async def test_concurrent_discards_take_a_message_off_once(ledger: Ledger) -> None:
    await park_bytes(ledger, *[b"%d" % number for number in range(30)])
    taken = await asyncio.gather(discard_all(ledger), discard_all(ledger))
    assert sum(len(each) for each in taken) == 30
    assert len(await recorded(ledger)) == 30
    assert await parked(ledger) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE parking_log SET operator = 'nobody'",
        "UPDATE parking_log SET body = 'other'",
        "UPDATE parking_log SET body = NULL, at_us = 0",
        "DELETE FROM parking_log",
    ],
)
async def test_the_log_is_append_only(ledger: Ledger, statement: str) -> None:
    await park_bytes(ledger, b"poison")
    await discard_all(ledger)
    with pytest.raises(DBAPIError, match="append-only"):
        await ledger.execute(statement)


async def test_bytes_in_the_log_can_be_erased_and_nothing_else(ledger: Ledger) -> None:
    await park_bytes(ledger, b'{"username":"ann"}')
    await discard_all(ledger)
    before = await recorded(ledger)
    await ledger.execute("UPDATE parking_log SET body = NULL")
    assert await body(ledger, before[0].id) is None
    assert await recorded(ledger) == before


@pytest.mark.parametrize("role", ["writer", "projector", "api", "analyst"])
async def test_only_operators_see_the_log(ledger: Ledger, role: str) -> None:
    with pytest.raises(DBAPIError, match="denied"):
        await ledger.rows("SELECT COUNT(*) FROM parking_log", role)


def test_an_element_becomes_a_group_of_its_own() -> None:
    assert inbox_body(b"{}", whole=False) == b"[{}]"
    assert inbox_body(b"[{}]", whole=True) == b"[{}]"
