"""What was submitted to this ledger, once more into the inbox of another, in the same order.

Each event keeps its id: so the other ledger takes it once, however often it is submitted.
"""

import socket
from typing import Final
from uuid import UUID

from msgspec import json, structs
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from cli.replay import ReplayRefused, ReplayStopped
from cli.replay.reader import Found, Page, Wish
from cli.settings import Settings
from ledger.core.events import NO_NAME, CustomerRegistered
from ledger.eventlog.codec import Origin
from ledger.eventlog.originals import submitted
from ledger.eventlog.records import Submitted
from ledger.eventlog.store import Store
from ledger.messaging.publisher import InboxUnavailable, Publisher
from projections.views.wallets import ERASED

GROUP_EVENTS: Final = 256
PATIENCE_S: Final = 30.0


class Resubmission:
    """Submits again, one group after the other: none before the inbox has the one before it."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._held: list[Submitted] = []
        self.submitted = 0

    async def take(self, page: Page) -> None:
        """Submit what of a page was submitted once; raises ReplayStopped."""
        self._held += [again(found) for found in page.found if not found.record.cause_position]
        while count := group_of(self._held, is_last=page.is_last):
            await self._submit(self._held[:count])
            del self._held[:count]
            self.submitted += count

    async def _submit(self, events: list[Submitted]) -> None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(InboxUnavailable),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop_after_delay(PATIENCE_S),
            reraise=True,
        )
        try:
            await retrying(self._publisher.submit, events)
        except InboxUnavailable as error:
            raise ReplayStopped(
                f"the other inbox took no more for {PATIENCE_S:g} s: {error}"
            ) from error


def group_of(events: list[Submitted], *, is_last: bool) -> int:
    """How many of the events go together next: about GROUP_EVENTS, and whole atomic batches.

    None yet, where the last of them may be the first half of a batch.
    """
    end = min(GROUP_EVENTS, len(events))
    while 0 < end < len(events) and _together(events[end - 1], events[end]):
        end += 1
    may_go_on = end == len(events) and not is_last and (end < GROUP_EVENTS or events[-1].atomic_id)
    return 0 if may_go_on else end


def _together(event: Submitted, following: Submitted) -> bool:
    return event.atomic_id is not None and event.atomic_id == following.atomic_id


def again(found: Found) -> Submitted:
    """The event as it was submitted; a name that can't be read any more says so."""
    event = submitted(found.record, found.sealing_key)
    payload = event.payload
    if isinstance(payload, CustomerRegistered) and payload.username == NO_NAME:
        return structs.replace(event, payload=structs.replace(payload, username=ERASED))
    return event


def refuse_same(settings: Settings, other: Settings) -> None:
    """Raises ReplayRefused where both settings lead to the same inbox or the same database."""
    inbox = settings.amqp_port == other.amqp_port and settings.amqp_vhost == other.amqp_vhost
    database = settings.db_port == other.db_port and settings.db_name == other.db_name
    if (inbox and _same_host(settings.amqp_host, other.amqp_host)) or (
        database and _same_host(settings.db_host, other.db_host)
    ):
        raise ReplayRefused(f"{other.home} is this very ledger: name the home of another one")


def _same_host(name: str, other: str) -> bool:
    return name == other or bool(_addresses(name) & _addresses(other))


def _addresses(name: str) -> set[object]:
    try:
        return {address[0] for *_, address in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


async def widened(connection: AsyncConnection, wish: Wish) -> Wish:
    """The wish with the whole of the atomic batches that its ends would cut."""
    first, last = wish.first, wish.last
    if batch := await _batch_at(connection, first):
        before = await _next_other(connection, batch, f"position < {first}", "DESC")
        first = 1 if before is None else before + 1
    if last is not None and (batch := await _batch_at(connection, last)):
        after = await _next_other(connection, batch, f"position > {last}", "ASC")
        last = (await Store(connection).head()).position if after is None else after - 1
    return structs.replace(wish, first=first, last=last)


async def _batch_at(connection: AsyncConnection, position: int) -> UUID | None:
    """The atomic batch that the event at a position is of, or was decided of."""
    found = await connection.exec_driver_sql(
        "SELECT COALESCE(c.meta, e.meta) FROM events e"
        " LEFT JOIN events c ON c.position = e.cause_position WHERE e.position = %s",
        (position,),
    )
    meta = found.scalar()
    return json.decode(meta, type=Origin).atomicid if meta else None


async def _next_other(
    connection: AsyncConnection, batch: UUID, where: str, order: str
) -> int | None:
    """The position of the submitted event next to an atomic batch."""
    found = await connection.exec_driver_sql(
        f"SELECT position FROM events WHERE {where} AND cause_position = 0"
        f" AND INSTR(meta, %s) = 0 ORDER BY position {order} LIMIT 1",
        (str(batch).encode(),),
    )
    position: int | None = found.scalar()
    return position
