"""`ledger replay`: recorded events again, as lines or into the inbox of another ledger.

An event that is submitted again keeps its id, so the other ledger records it once, however often.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import typer
from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncEngine
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from cli import connections, console
from cli.settings import BadSettings, Settings, load_other_settings
from ledger.core.events import DECIDED, NO_NAME, SUBMITTED, CustomerRegistered
from ledger.eventlog.codec import decode_submitted, encode_recorded
from ledger.eventlog.reader import EventReader, RecordWithCause
from ledger.eventlog.records import Submitted, gap_error
from ledger.messaging.publisher import InboxUnavailable, Publisher
from ledger.messaging.rabbitmq import Connection
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.reconnect import first_to_end, keep_alive
from projections.as_of import PositionBeyondHead
from projections.views.projection import ERASED

# Positions that one statement covers, or events of one stream that it returns: bounds the memory.
PAGE_SIZE: Final = 5_000
POLL_S: Final = 0.3
GROUP_EVENTS: Final = 256
RETRY_S: Final = 30.0


class ReplayRefused(Exception):
    """The replay that was asked for is not possible."""


class ReplayStopped(Exception):
    """The replay failed before its end; the message names the last position that it handled."""


class Selection(Struct, frozen=True):
    """The events to replay: from position `first` to `last` or the head, of one type or stream."""

    first: int = 1
    last: int | None = None
    type: str | None = None
    stream: UUID | None = None


def replay(
    into_inbox: Annotated[
        Path | None,
        typer.Option(metavar="HOME", help="submit again, to the ledger with this LEDGER_HOME"),
    ] = None,
    first: Annotated[int, typer.Option("--from", min=1, help="first position")] = 1,
    last: Annotated[int | None, typer.Option("--to", min=1, help="last position [head]")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="only events of this type")] = None,
    stream: Annotated[UUID | None, typer.Option(help="only one order, customer or product")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="continue with new events")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="with --into-inbox: report as JSON")
    ] = False,
) -> None:
    """Print recorded events as JSON lines, or submit them again to another ledger."""
    types = list(SUBMITTED) if into_inbox else [*SUBMITTED, *DECIDED]
    if type_ is not None and type_ not in types:
        kind = "submitted" if into_inbox else "known"
        console.usage_error(f"--type {type_} is not {kind}: choose of {', '.join(types)}")
    if into_inbox and stream:
        console.usage_error(
            "--stream is not for --into-inbox: one stream can't be decided by itself"
        )
    if last is not None and last < first:
        console.usage_error(f"--to {last} is before --from {first}")
    selection = Selection(first, last, type_, stream)
    if not into_inbox:
        console.run(print_events(console.read_settings(), selection, follow=follow))
        return
    try:
        other = load_other_settings(into_inbox)
    except BadSettings as error:
        console.usage_error(f"--into-inbox: {error}")
    report = console.run(resubmit_events(console.read_settings(), selection, other, follow=follow))
    if as_json:
        console.print_json(report)
    else:
        console.out.print(
            f"submitted {report.events} events again, up to position {report.position}"
        )


class Page(Struct, frozen=True):
    """Selected events in ledger order; no others are selected up to the position `read_to`."""

    events: list[RecordWithCause]
    read_to: int
    is_last: bool


class Replay:
    """Reads the selected events and hands them over; all up to `position` have been handled."""

    def __init__(
        self,
        engine: AsyncEngine,
        selection: Selection,
        advance: Callable[[int], None] = lambda positions: None,
    ) -> None:
        self._engine = engine
        self._selection = selection
        self._advance = advance
        self.position = selection.first - 1

    async def run(self, handle: Callable[[Page], Awaitable[None]], *, follow: bool) -> None:
        """Give each page to `handle`, up to the end of the selection.

        With `follow`, wait for events that are not recorded yet and for a database that is away,
        until SIGINT or SIGTERM. Raises PositionBeyondHead for a position ahead of the ledger's end,
        LedgerDamaged for a gap, and ReplayStopped when the database or `handle` fails.
        """

        async def read() -> None:
            last = self._selection.last
            async with self._engine.connect() as connection:
                reader = EventReader(connection)
                while last is None or self.position < last:
                    head = (await reader.head()).position
                    if not follow:
                        last = last or head
                        if max(last, self.position) > head:
                            raise PositionBeyondHead(
                                f"position {max(last, self.position + 1)}", head
                            )
                    elif head <= self.position:
                        await asyncio.sleep(POLL_S)
                    end = min(head, last or head)
                    while self.position < end:
                        page = await read_page(reader, self._selection, self.position, end)
                        await handle(page)
                        self._advance(page.read_to - self.position)
                        self.position = page.read_to

        try:
            if follow:
                stopped = asyncio.Event()
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, stopped.set)
                await first_to_end(keep_alive("replay", read, DATABASE_ERRORS), stopped.wait())
            else:
                await read()
        except (ReplayStopped, *DATABASE_ERRORS) as error:
            reason = str(error)
            if not isinstance(error, ReplayStopped):
                reason = f"the database went away: {getattr(error, 'orig', error)}"
            raise ReplayStopped(f"{reason}; it came as far as position {self.position}") from error


async def read_page(reader: EventReader, selection: Selection, after: int, last: int) -> Page:
    """The next page of selected events after a position, up to another.

    Raises LedgerDamaged where a position is missing.
    """
    # Of one stream a page has so many events, however far apart; otherwise it is so many positions
    # wide, so that a rare type doesn't keep one statement busy with the whole ledger.
    end = last if selection.stream else min(after + PAGE_SIZE, last)
    types = [selection.type] if selection.type else []
    events = await reader.with_causes(
        after, end, PAGE_SIZE, stream_id=selection.stream, types=types, with_keys=True
    )
    if selection.stream and len(events) == PAGE_SIZE:
        end = events[-1].record.position
    if not selection.stream and not selection.type:
        for position, event in zip_longest(range(after + 1, end + 1), events):
            if event is None or event.record.position != position:
                raise gap_error(position, event.record if event else None)
    return Page(events, end, end == last)


async def print_events(settings: Settings, selection: Selection, *, follow: bool) -> None:
    """Print the selected events, one CloudEvent in JSON a line; raises as `Replay.run`."""
    lines = console.LineWriter()

    async def print_page(page: Page) -> None:
        for event in page.events:
            lines.add_json(encode_recorded(event.record, event.cause_id))
        lines.flush()

    async with connections.engine(settings, "projector", read_only=True, autocommit=True) as engine:
        await Replay(engine, selection).run(print_page, follow=follow)


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
    # Erasures and imported history are taken from this account alone.
    user_id, _ = other.amqp_account("migrate")
    publisher = Publisher(Connection(other.amqp_url("migrate"), name), None, name, user_id=user_id)
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(InboxUnavailable),
        wait=wait_random_exponential(multiplier=0.05, max=1.0),
        stop=stop_after_delay(RETRY_S),
        reraise=True,
    )
    pending: list[Submitted] = []
    submitted_events = 0

    async def submit_page(page: Page) -> None:
        nonlocal submitted_events
        pending.extend(original(event) for event in page.events if not event.record.cause_position)
        # One group after the other: the inbox must hold them in ledger order.
        while length := group_length(pending, is_last=page.is_last):
            try:
                await retrying(publisher.submit, pending[:length])
            except InboxUnavailable as error:
                reason = f"the other inbox took no more for {RETRY_S:g} s: {error}"
                raise ReplayStopped(reason) from error
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
    submitted = decode_submitted(event.record, {event.record.stream_id: event.encryption_key})
    payload = submitted.payload
    if isinstance(payload, CustomerRegistered) and payload.username == NO_NAME:
        return structs.replace(submitted, payload=structs.replace(payload, username=ERASED))
    return submitted


def refuse_same_ledger(settings: Settings, other: Settings) -> None:
    """Raise ReplayRefused where both settings lead to the same inbox or the same database."""
    homes = (settings, other)
    inboxes = [(home.amqp_host, home.amqp_port, home.amqp_vhost) for home in homes]
    databases = [(home.db_host, home.db_port, home.db_name) for home in homes]
    for (host, *place), (other_host, *other_place) in (inboxes, databases):
        # Two names may lead to one host, as localhost and 127.0.0.1 do.
        if place == other_place and _addresses(host) & _addresses(other_host):
            raise ReplayRefused(f"{other.home} is this very ledger: name the home of another one")


def _addresses(host: str) -> set[object]:
    with suppress(OSError):
        return {host, *(address[0] for *_, address in socket.getaddrinfo(host, None))}
    return {host}


async def with_whole_batches(reader: EventReader, selection: Selection) -> Selection:
    """The selection, extended at both ends to the atomic batches that it would cut."""
    first, last = selection.first, selection.last
    if batch := await reader.atomic_batch_at(first):
        first = batch[0]
    if last is not None and (batch := await reader.atomic_batch_at(last)):
        last = batch[1]
    return structs.replace(selection, first=first, last=last)
