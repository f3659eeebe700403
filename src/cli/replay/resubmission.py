"""Submitting the submitted events of this ledger again, to the inbox of another one, in order.

Each event keeps its id, so the other ledger records it once, however often it is submitted.
"""

import os
import socket
from typing import Final

from msgspec import Struct, structs
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from cli import connections, console
from cli.replay import ReplayRefused, ReplayStopped
from cli.replay.events import Page, Replay, Selection
from cli.settings import Settings
from ledger.core.events import NO_NAME, CustomerRegistered
from ledger.eventlog.codec import decode_submitted
from ledger.eventlog.reader import EventReader, RecordWithCause
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxUnavailable, Publisher
from ledger.messaging.rabbitmq import Connection
from ledger.runtime.reconnect import first_to_end
from projections.views.projection import ERASED

GROUP_EVENTS: Final = 256
RETRY_S: Final = 30.0


class Resubmitted(Struct, frozen=True):
    """The number of events submitted again, and the position up to which they are all there."""

    events: int
    position: int


async def resubmit_events(
    settings: Settings, selection: Selection, other: Settings, *, follow: bool
) -> Resubmitted:
    """Submit the selected events to another ledger.

    Raises ReplayRefused where the other ledger is this one, and as `Replay.run`; ReplayStopped also
    when the other inbox takes no group for RETRY_S.
    """
    refuse_same_ledger(settings, other)
    name = f"replay-{os.getpid()}"
    publisher = Publisher(Connection(other.amqp_url("api"), name), None, name)
    pending: list[Submitted] = []
    submitted_events = 0

    async def submit_page(page: Page) -> None:
        nonlocal submitted_events
        pending.extend(original(event) for event in page.events if not event.record.cause_position)
        # One group after the other: the inbox must hold them in ledger order.
        while length := group_length(pending, is_last=page.is_last):
            await _submit(publisher, pending[:length])
            del pending[:length]
            submitted_events += length

    async with connections.engine(settings, "projector", read_only=True, autocommit=True) as engine:
        async with engine.connect() as connection:
            reader = EventReader(connection)
            selection = await with_whole_batches(reader, selection)
            head = (await reader.head()).position
        positions = (selection.last or head) - selection.first + 1
        total = None if follow and selection.last is None else positions
        with console.progress("submitting", total) as advance:
            replay = Replay(engine, selection, advance)
            await first_to_end(publisher.run(), replay.run(submit_page, follow=follow))
    return Resubmitted(submitted_events, replay.position)


async def _submit(publisher: Publisher, events: list[Submitted]) -> None:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(InboxUnavailable),
        wait=wait_random_exponential(multiplier=0.05, max=1.0),
        stop=stop_after_delay(RETRY_S),
        reraise=True,
    )
    try:
        await retrying(publisher.submit, events)
    except InboxUnavailable as error:
        raise ReplayStopped(f"the other inbox took no more for {RETRY_S:g} s: {error}") from error


def group_length(events: list[Submitted], *, is_last: bool) -> int:
    """The number of events in the next group: about GROUP_EVENTS, and whole atomic batches.

    0 while events that belong to the group may still follow, which `is_last` rules out.
    """
    end = min(GROUP_EVENTS, len(events))
    while 0 < end < len(events):
        if events[end].atomic_id is None or events[end].atomic_id != events[end - 1].atomic_id:
            break
        end += 1
    may_grow = end == len(events) and not is_last and (end < GROUP_EVENTS or events[-1].atomic_id)
    return 0 if may_grow else end


def original(event: RecordWithCause) -> Submitted:
    """The event as it was submitted; with ERASED for a name that can't be decrypted any more."""
    again = decode_submitted(event.record, event.encryption_key)
    payload = again.payload
    if isinstance(payload, CustomerRegistered) and payload.username == NO_NAME:
        return structs.replace(again, payload=structs.replace(payload, username=ERASED))
    return again


def refuse_same_ledger(settings: Settings, other: Settings) -> None:
    """Raise ReplayRefused where both settings lead to the same inbox or the same database."""
    is_same_inbox = (
        settings.amqp_port == other.amqp_port
        and settings.amqp_vhost == other.amqp_vhost
        and _is_same_host(settings.amqp_host, other.amqp_host)
    )
    is_same_database = (
        settings.db_port == other.db_port
        and settings.db_name == other.db_name
        and _is_same_host(settings.db_host, other.db_host)
    )
    if is_same_inbox or is_same_database:
        raise ReplayRefused(f"{other.home} is this very ledger: name the home of another one")


def _is_same_host(name: str, other: str) -> bool:
    # Two names may lead to one host, as localhost and 127.0.0.1 do.
    return name == other or bool(_addresses(name) & _addresses(other))


def _addresses(name: str) -> set[object]:
    try:
        return {address[0] for *_, address in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


async def with_whole_batches(reader: EventReader, selection: Selection) -> Selection:
    """The selection, extended at both ends to the atomic batches that it would cut."""
    first, last = selection.first, selection.last
    if batch := await reader.atomic_batch_at(first):
        first = batch[0]
    if last is not None and (batch := await reader.atomic_batch_at(last)):
        last = batch[1]
    return structs.replace(selection, first=first, last=last)
