"""Erasure: the name is gone, and the chain, the money and the stock are what they were."""

import asyncio
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from msgspec import structs

from ledger.core.decider import Fold
from ledger.core.events import (
    NO_NAME,
    CustomerErased,
    CustomerRegistered,
    Reason,
    SubmissionRefused,
)
from ledger.eventlog.codec import decode_recorded
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import SEALED_VERSION, CustomerKeys, WrongKey
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Submitted
from ledger.eventlog.store import Fenced, Store
from ledger.runtime import failpoints
from tests.harness import eventually
from tests.projections.view_rows import (
    advance_to_the_end,
    all_live,
    all_replayed,
    set_checkpoint,
    until_projected,
)
from tests.submissions import ANN, BOB, PEN, cancel, credit, erasure, event_of, order, product

from .naive_audit import audit
from .pipeline import Ledger

NAME = "Zoë Quartermaine-Łukasz"
"""Long and odd enough to stand nowhere by chance."""

FIRST, SECOND = UUID(int=0xC1), UUID(int=0xC2)


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.arm("")


def registered(at: UUID = ANN, name: str = NAME) -> Submitted:
    return event_of((at, CustomerRegistered(name, 10_000)))


def erased(at: UUID = ANN) -> Submitted:
    return event_of(erasure(at))


def shop() -> list[Submitted]:
    """A customer with a history."""
    return [
        registered(),
        *map(event_of, (product(100, 10), credit(5), order(2, FIRST), cancel(FIRST))),
    ]


async def named_in(ledger: Ledger, *tables: str) -> list[str]:
    """Those of the tables in which a row holds the name, in whatever column."""
    found = []
    for table in tables:
        rows = await ledger.rows(f"SELECT * FROM {table}")
        values = [str(value).encode() for row in rows for value in row]
        values += [value for row in rows for value in row if isinstance(value, bytes)]
        if any(NAME.encode() in value for value in values):
            found.append(table)
    return found


async def project(ledger: Ledger) -> None:
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)


async def username(ledger: Ledger, customer_id: UUID = ANN) -> str:
    ((name,),) = await ledger.rows(
        "SELECT username FROM wallets WHERE customer_id = %s", "analyst", customer_id.bytes
    )
    return str(name)


async def test_a_name_stands_in_the_view_and_nowhere_in_the_ledger(ledger: Ledger) -> None:
    async with ledger.writing(snapshot_every=1):
        await ledger.put_events(shop())

        async def is_saved() -> bool:
            return bool(await ledger.rows("SELECT 1 FROM snapshots"))

        await eventually(is_saved, "a snapshot is saved")
    await project(ledger)
    tables = ("events", "snapshots", "customer_keys", "ledger_head", "stock", "orders", "wallets")
    assert await named_in(ledger, *tables) == ["wallets"]
    assert await username(ledger) == NAME
    audit(await ledger.records())
    assert await all_live(ledger) == await all_replayed(ledger)


async def test_after_an_erasure_the_name_is_gone_and_all_else_is_as_it_was(ledger: Ledger) -> None:
    before = await ledger.write(shop(), [event_of(order(1, SECOND))])
    await project(ledger)
    told = audit(before)
    after = await ledger.write([erased()])
    await project(ledger)
    fold = audit(after)
    assert after[: len(before)] == before
    told.customers[ANN] = structs.replace(told.customers[ANN], position=len(after))
    assert (fold.customers, fold.products) == (told.customers, told.products)
    assert after[-1].type == "customer.erased"
    assert await ledger.keys() == {ANN.bytes: None}
    assert await named_in(ledger, "events", "customer_keys", "wallets") == []
    assert await username(ledger) == "erased"
    assert await all_live(ledger) == await all_replayed(ledger)


async def test_a_view_made_anew_after_an_erasure_equals_the_live_one(ledger: Ledger) -> None:
    await ledger.write([*shop(), registered(BOB, "bob")])
    await project(ledger)
    await ledger.write([erased(), event_of(order(1, SECOND))])
    await project(ledger)
    live = await all_live(ledger)
    await ledger.execute("DELETE FROM wallets")
    await set_checkpoint(ledger, "wallets", 0)
    await project(ledger)
    assert await all_live(ledger) == live
    assert await username(ledger, BOB) == "bob"


async def test_what_is_erased_before_a_projector_comes_is_never_shown(ledger: Ledger) -> None:
    await ledger.write(shop())
    await ledger.write([erased()])
    await project(ledger)
    assert await username(ledger) == "erased"
    assert await all_live(ledger) == await all_replayed(ledger)


async def test_a_key_of_something_else_stops_the_projector_and_shows_nobody_as_erased(
    ledger: Ledger,
) -> None:
    await ledger.write([registered(), registered(BOB)])
    kept = await ledger.keys()
    set_key = "UPDATE customer_keys SET sealing_key = %s WHERE customer_id = %s"
    await ledger.execute(set_key, "migrate", kept[BOB.bytes], ANN.bytes)
    with pytest.raises(WrongKey, match="position 1"):
        await project(ledger)
    assert await ledger.rows("SELECT * FROM wallets", "analyst") == []
    await ledger.execute(set_key, "migrate", kept[ANN.bytes], ANN.bytes)
    await project(ledger)
    assert await username(ledger) == NAME


async def test_an_erased_customer_orders_and_pays_as_before(ledger: Ledger) -> None:
    later = [event_of(credit(7)), event_of(order(3, SECOND)), event_of(cancel(SECOND))]
    records = await ledger.write([*shop(), erased(), *later])
    assert audit(records).customers[ANN].balance_minor == 10_012
    await project(ledger)
    assert await username(ledger) == "erased"


@pytest.mark.parametrize("batches", ["one", "many"])
async def test_a_key_is_made_and_destroyed_alike_in_one_batch_or_in_many(
    ledger: Ledger, batches: str
) -> None:
    """Erased before it was there, registered, again under another name, erased, again, erased."""
    again = registered(name="another")
    events = [erased(), registered(), again, erased(), registered(name="third"), erased()]
    groups = [events] if batches == "one" else [[event] for event in events]
    for group in groups:
        records = await ledger.write(group)
    audit(records)
    duplicate, unknown = Reason.DUPLICATE_CUSTOMER, Reason.UNKNOWN_CUSTOMER
    refused = [decode_recorded(record).payload for record in records if record.cause_position]
    assert refused == [SubmissionRefused(reason) for reason in (unknown, duplicate, duplicate)]
    assert await ledger.keys() == {ANN.bytes: None}
    sealed = [record for record in records if record.schema_version == SEALED_VERSION]
    assert [decode_recorded(r, await ledger.keys()).payload for r in sealed] == [
        CustomerRegistered(NO_NAME, 10_000)
    ] * 3
    ((created, erased_at),) = await ledger.rows(
        "SELECT created_at_us, erased_at_us FROM customer_keys"
    )
    assert (created, erased_at) == (records[2].recorded_at_us, records[5].recorded_at_us)


async def test_a_refused_registration_is_sealed_with_the_key_that_is_there(ledger: Ledger) -> None:
    records = await ledger.write([registered()], [registered(name="another")])
    payload = decode_recorded(records[1], await ledger.keys()).payload
    assert payload == CustomerRegistered("another", 10_000)


async def test_a_registration_where_no_customer_can_be_leaves_no_key(ledger: Ledger) -> None:
    """Nobody could ever erase it: that id is a product's."""
    records = await ledger.write([event_of(product())], [registered(PEN)])
    assert await ledger.keys() == {}
    assert decode_recorded(records[1]).payload == CustomerRegistered(NO_NAME, 10_000)
    audit(records)


@pytest.mark.parametrize("erases", [False, True])
async def test_a_ledger_that_is_older_than_its_keys_goes_on(ledger: Ledger, erases: bool) -> None:
    """As after a restore of an older `events`: the same customer registers, from the inbox."""
    events = [registered(), *([erased()] if erases else [])]
    await ledger.write(events)
    await ledger.forget_events()
    kept = await ledger.keys()
    audit(await ledger.write([events[0]]))
    assert await ledger.keys() == kept
    await project(ledger)
    assert await username(ledger) == ("erased" if erases else NAME)


async def test_delivered_again_nothing_is_sealed_or_erased_again(ledger: Ledger) -> None:
    events = [registered(), erased()]
    before = await ledger.write(events[:1]), await ledger.keys()
    assert (await ledger.write(events[:1]), await ledger.keys()) == before
    erasing = await ledger.write(events)
    rows = await ledger.rows("SELECT * FROM customer_keys")
    assert await ledger.write(events, events) == erasing
    assert await ledger.rows("SELECT * FROM customer_keys") == rows


@pytest.mark.parametrize("moment", ["after-insert", "before-commit", "commit-sent", "after-commit"])
@pytest.mark.parametrize("erases", [False, True])
async def test_a_writer_that_dies_keeps_event_and_key_together_or_neither(
    ledger: Ledger, moment: str, erases: bool
) -> None:
    events = [registered()]
    if erases:
        await ledger.write(events)
        events = [erased()]
    failpoints.arm(f"writer.{moment}=raise@1")
    await ledger.put_events(events)
    async with ledger.writing():
        records = await ledger.until_recorded(events)
        await ledger.until_inbox_empty()
    audit(records)
    assert len(records) == 1 + erases
    ((key,),) = await ledger.rows("SELECT sealing_key FROM customer_keys")
    assert (key is None) == erases
    name = NO_NAME if erases else NAME
    assert decode_recorded(records[0], {ANN.bytes: key}).payload == CustomerRegistered(name, 10_000)


async def test_a_writer_that_was_overtaken_makes_and_destroys_no_key(ledger: Ledger) -> None:
    (first,) = await ledger.write([registered()])
    kept = await ledger.keys()
    async with ledger.connection() as old, ledger.connection() as new:
        behind = await Store(old).raise_epoch()
        await Store(new).raise_epoch()
        keys = CustomerKeys(await EventReader(old).encryption_keys([ANN.bytes]))
        fold = Fold()
        fold.apply(decode_recorded(first))
        events = [erased(), registered(BOB)]
        composed = compose(events, fold, behind, {ANN.bytes: 1}, 2, keys)
        with pytest.raises(Fenced):
            await Store(old).append(behind, composed.records, keys)
    assert await ledger.keys() == kept
    assert await ledger.records() == [first]


async def test_two_writers_at_once_agree_on_every_key(ledger: Ledger) -> None:
    people = [UUID(int=0xF00 + n) for n in range(30)]
    async with (
        ledger.writing(),
        ledger.writing(),
        ledger.projecting(),
        ledger.publishing() as inbox,
    ):
        await asyncio.gather(*(inbox.submit([registered(at, f"n {at}")]) for at in people))
        events = [event_of((at, CustomerErased()), uuid4()) for at in people[::2]]
        await asyncio.gather(*(inbox.submit([event]) for event in events for _ in range(2)))
        records = await ledger.until_recorded(events)
        await until_projected(ledger)
    audit(records)
    keys = await ledger.keys()
    assert [at for at in people if keys[at.bytes] is None] == people[::2]
    assert await all_live(ledger) == await all_replayed(ledger)
    assert await username(ledger, people[1]) == f"n {people[1]}"
