"""`ledger replay --into-inbox`: another ledger comes to the same decisions, once."""

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cli.commands import replay
from cli.commands.replay import (
    ReplayRefused,
    ReplayStopped,
    Resubmitted,
    Selection,
    group_length,
    refuse_same_ledger,
    resubmit_events,
    with_whole_batches,
)
from cli.settings import BadSettings, Settings, load_other_settings
from ledger.eventlog.codec import decode_recorded
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Record, Submitted
from projections.views.wallets import WALLETS
from tests.harness import environment, make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers
from tests.projections.view_rows import advance_to_the_end, live
from tests.proxy import open_proxy
from tests.submissions import customer, erasure, event_of, history, opening, order, orders, product

from .conftest import Run


@pytest.fixture
async def source(servers: Servers) -> AsyncIterator[Ledger]:
    """The ledger that is replayed."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger


@pytest.fixture
async def target(servers: Servers) -> AsyncIterator[Ledger]:
    """An empty one that it is replayed into."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger


def atomic(*submissions: Submitted) -> list[Submitted]:
    """Orders that are decided all or none."""
    atomic_id = uuid4()
    return [structs.replace(event, atomic_id=atomic_id) for event in submissions]


async def resubmit(source: Ledger, target: Ledger, **selected: object) -> Resubmitted:
    selection = Selection(**selected)  # type: ignore[arg-type]
    return await resubmit_events(source.settings, selection, target.settings, follow=False)


async def decide(target: Ledger) -> list[Record]:
    """Let the target's writer take all there is; its ledger afterwards."""
    async with target.writing():
        await target.until_inbox_empty()
        # What was delivered is recorded once a later event is.
        await target.put_events(last := [event_of(product(at=uuid4()))])
        records = await target.until_recorded(last)
    return [record for record in records if record.event_id != last[0].event_id.bytes]


def same(record: Record) -> Record:
    """The record without what another writer tells of it, and what is under another seal."""
    data = b"" if record.type == "customer.registered" else record.data
    return structs.replace(record, recorded_at_us=0, hash=b"", data=data)


async def test_the_other_ledger_makes_the_same_decisions_once(
    source: Ledger, target: Ledger
) -> None:
    refused_batch = [event_of(order(n, at=uuid4())) for n in (1, 2, 10**6)]
    events = [*opening(), *history(31, 300), *atomic(*refused_batch), *history(32, 300)]
    records = await source.write(events, atomic(*orders(3)), orders(2))
    submitted = sum(not record.cause_position for record in records)
    assert await resubmit(source, target) == Resubmitted(submitted, len(records))
    again = await decide(target)
    assert [same(record) for record in again] == [same(record) for record in records]
    assert await resubmit(source, target) == Resubmitted(submitted, len(records))
    before = await target.head()
    assert (await decide(target))[: len(records)] == again
    assert (await target.head()).position == before.position + 1


async def test_metadata_of_an_event_is_submitted_again(source: Ledger, target: Ledger) -> None:
    """Its time, its source, who submitted it, its trace; and the name of a customer."""
    full = structs.replace(
        event_of(customer(at=UUID(int=7))),
        occurred_at_us=1_600_000_000_123_456,
        submitter="key:abc",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    (before,) = await source.write([full])
    await resubmit(source, target)
    (after,) = await decide(target)
    assert b'"source":"/tests"' in after.meta
    assert after.meta == before.meta
    assert after.occurred_at_us == full.occurred_at_us
    assert decode_recorded(after, await target.keys()).payload == full.payload


async def test_names_are_submitted_unless_they_were_erased(source: Ledger, target: Ledger) -> None:
    ann, bob = uuid4(), uuid4()
    await source.write(
        [event_of(customer(at=ann)), event_of(customer(at=bob)), event_of(erasure(bob))],
        [event_of(customer(at=bob))],
    )
    await resubmit(source, target)
    await decide(target)
    async with target.connection("projector") as connection:
        await advance_to_the_end(connection)
    rows = await live(target, WALLETS)
    names = {key: row.username for key, row in rows.items()}  # type: ignore[attr-defined]
    assert names == {ann: "ann", bob: "erased"}


async def test_only_selected_events_are_submitted(source: Ledger, target: Ledger) -> None:
    records = await source.write(opening(), orders(4))
    assert await resubmit(source, target, type="product.listed") == Resubmitted(1, len(records))
    assert await resubmit(source, target, first=3, last=6) == Resubmitted(2, 6)
    types = [event.payload for batch in await target.waiting() for event in batch]
    assert [type(payload).__name__ for payload in types] == ["ProductListed", *["OrderPlaced"] * 2]


async def test_an_atomic_batch_is_submitted_whole_and_in_one_message(
    source: Ledger, target: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a page, a group or the range that is asked for would cut it."""
    monkeypatch.setattr("cli.commands.replay.PAGE_SIZE", 5)
    monkeypatch.setattr(replay, "GROUP_EVENTS", 4)
    batches = [atomic(*orders(9)), atomic(*orders(2)), atomic(*orders(1)), atomic(*orders(6))]
    records = await source.write(opening(), *batches)
    for first in range(1, len(records) + 1, 7):
        for last in {first, min(first + 7, len(records)), len(records)}:
            await resubmit(source, target, first=first, last=last)
            messages = await target.waiting()
            whole = {event.atomic_id: len(batch) for batch in batches for event in batch}
            for message in messages:
                for event in message:
                    together = sum(other.atomic_id == event.atomic_id for other in message)
                    assert event.atomic_id is None or together == whole[event.atomic_id]
            selected = {r.event_id for r in records[first - 1 : last] if not r.cause_position}
            assert selected <= {e.event_id.bytes for message in messages for e in message}
            await empty_inbox(target)


async def empty_inbox(target: Ledger) -> None:
    """Let a writer take what waits, which changes nothing the second time."""
    async with target.writing():
        await target.until_inbox_empty()


async def test_the_ends_of_a_range_are_extended_to_whole_batches(source: Ledger) -> None:
    records = await source.write(opening(), atomic(*orders(3)), orders(1), atomic(*orders(2)))
    batches = (range(3, 9), range(11, 15))
    assert len(records) == batches[-1].stop - 1
    submitted = {record.position for record in records if not record.cause_position}
    async with source.connection("projector") as connection:
        reader = EventReader(connection)
        for first in range(1, len(records) + 2):
            for last in (*range(first, len(records) + 1), None):
                selection = await with_whole_batches(reader, Selection(first, last))
                ends = {first, last}
                touched = [batch for batch in batches if ends & set(batch)]
                expected = set(range(first, (last or len(records)) + 1)).union(*touched)
                selected = set(range(selection.first, (selection.last or len(records)) + 1))
                assert selected & submitted == expected & submitted


Atomics = st.lists(st.one_of(st.just(None), st.integers(1, 3)), max_size=40)


@given(Atomics, st.integers(0, 5))
def test_groups_hold_every_event_once_and_whole_batches(
    atomics: Sequence[int | None], cuts: int
) -> None:
    events = [
        structs.replace(event_of(order(at=uuid4())), atomic_id=number and UUID(int=number))
        for number in atomics
    ]
    held: list[Submitted] = []
    groups: list[list[Submitted]] = []
    size = len(events) // (cuts + 1) + 1
    for start in range(0, len(events) + 1, size):
        held += events[start : start + size]
        while count := group_length(held, is_last=start + size > len(events)):
            groups.append(held[:count])
            del held[:count]
    assert [event for group in groups for event in group] == events
    for group, following in pairwise(groups):
        assert group[-1].atomic_id is None or group[-1].atomic_id != following[0].atomic_id


async def test_a_full_inbox_is_tried_again_until_the_deadline(
    source: Ledger, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "GROUP_EVENTS", 10)
    monkeypatch.setattr("cli.commands.replay.PAGE_SIZE", 40)
    records = await source.write(opening(), *(orders(10) for _ in range(12)))
    async with running_ledger(await make_ledger(servers, inbox_max_length=3)) as target:
        with monkeypatch.context() as patch:
            patch.setattr(replay, "RETRY_S", 1.0)
            with pytest.raises(ReplayStopped, match=r"took no more for 1 s: .* position \d+0$"):
                await resubmit(source, target)
        async with target.writing():
            await resubmit(source, target)
        assert [same(r) for r in await decide(target)] == [same(r) for r in records]


async def test_a_broken_connection_loses_and_doubles_nothing(
    source: Ledger, target: Ledger
) -> None:
    """What was under way may be in the inbox or not: it goes there again, with the same ids."""
    records = await source.write(opening(), *(orders(100) for _ in range(10)))
    async with open_proxy(target.settings.amqp_port) as proxy:
        proxy.cut_after(100_000, "up")
        other = target.settings.model_copy(update={"amqp_port": proxy.port})
        done = await resubmit_events(source.settings, Selection(), other, follow=False)
    assert done.position == len(records)
    assert [same(r) for r in await decide(target)] == [same(r) for r in records]


async def test_the_same_ledger_is_refused(source: Ledger, target: Ledger) -> None:
    same_inbox = target.settings.model_copy(
        update={"amqp_vhost": source.settings.amqp_vhost, "amqp_host": "localhost"}
    )
    same_database = target.settings.model_copy(update={"db_name": source.settings.db_name})
    for settings in (source.settings, same_inbox, same_database):
        with pytest.raises(ReplayRefused, match="is this very ledger"):
            refuse_same_ledger(source.settings, settings)
    refuse_same_ledger(source.settings, target.settings)


def home_of(settings: Settings, path: Path) -> Path:
    """A home of a ledger, as the local stack makes it."""
    path.mkdir()
    given = environment(settings)
    del given["LEDGER_HOME"]
    (path / "stack.env").write_text("".join(f"{k}={v}\n" for k, v in given.items()))
    return path


async def test_the_command_submits_to_the_ledger_of_another_home(
    run: Run, source: Ledger, target: Ledger, tmp_path: Path
) -> None:
    """Whatever the environment says of this one."""
    records = await source.write(opening(), orders(2))
    home = home_of(target.settings, tmp_path / "other")
    done = await run("replay", "--into-inbox", str(home), "--json", **environment(source.settings))
    assert (done.status, done.json) == (0, {"events": 4, "position": len(records)})
    assert len([event for batch in await target.waiting() for event in batch]) == 4
    here = home_of(source.settings, tmp_path / "here")
    done = await run("replay", "--into-inbox", str(here), **environment(source.settings))
    assert done.status == 1
    assert "is this very ledger" in done.said_one_sentence()


def test_bad_settings_of_the_other_home_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="name the LEDGER_HOME of the other ledger"):
        load_other_settings(tmp_path)
    (tmp_path / "stack.env").write_text("LEDGER_DB_PORT=x\n")
    with pytest.raises(BadSettings, match="LEDGER_DB_PORT=x"):
        load_other_settings(tmp_path)
    (tmp_path / "stack.env").write_text("")
    assert load_other_settings(tmp_path).home == tmp_path
