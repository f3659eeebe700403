"""What `ledger parked` finds: in the parking queue, and in the record of what left it."""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from cli.settings import Settings
from ledger.messaging import parking_log
from ledger.messaging.parking import Parked, open_parking, parked, read_again
from ledger.messaging.parking_log import Entry
from ledger.runtime.database import make_engine

Moved = Callable[[int], None]

CONNECTION: Final = "ledger-parked"
MORE_DIGITS: Final = 4
NAMED: Final = 4
PREFIX: Final = re.compile(r"[0-9a-f]{4,64}").fullmatch


class NotParked(Exception):
    """No parked message has this id."""


class AmbiguousId(Exception):
    """Several messages have an id that begins so."""


class Found(Struct):
    """A parked message and how often the queue has it: a crash of the writer can park it twice."""

    parked: Parked
    copies: int = 1


class Survey(Struct, frozen=True):
    """What is parked, in the order in which it was; `unread` messages are behind it."""

    found: list[Found]
    unread: int


async def survey(settings: Settings, moved: Moved) -> Survey:
    """Read the parking queue, which stays as it is; raises ParkingBusy."""
    found: dict[str, Found] = {}
    async with open_parking(settings.amqp_url("migrate"), CONNECTION) as parking:
        read = 0
        async for message in parking.messages():
            _add(found, parked(message))
            read += 1
            moved(1)
    return Survey(list(found.values()), parking.count - read)


class Look(Struct, frozen=True):
    """One message with all that is known of it: parked or, with entries, out of the record."""

    found: Found
    body: bytes | None
    headers: dict[str, Any]
    entries: list[Entry]


async def look(settings: Settings, prefix: str, moved: Moved) -> Look:
    """The message whose id begins so, parked or recorded.

    Raises NotParked, AmbiguousId, ParkingBusy.
    """
    found: dict[str, Found] = {}
    kept: dict[str, AbstractIncomingMessage] = {}
    async with open_parking(settings.amqp_url("migrate"), CONNECTION) as parking:
        async for message in parking.messages():
            seen = parked(message)
            if seen.id.startswith(prefix):
                _add(found, seen)
                kept.setdefault(seen.id, message)
            moved(1)
    if not found:
        return await _look_at_record(settings, prefix)
    one = by_prefix(found.values(), prefix)
    message = kept[one.parked.id]
    return Look(one, message.body, dict(message.headers), [])


async def _look_at_record(settings: Settings, prefix: str) -> Look:
    async with recording(settings) as engine, engine.connect() as connection:
        entries = await parking_log.find(connection, prefix)
        ids = {entry.id for entry in entries}
        if len(ids) > 1:
            raise _ambiguous(sorted(ids), prefix)
        if not entries:
            raise _unknown(prefix)
        last = entries[-1]
        body = await parking_log.body_of(connection, last.id)
    trouble = read_again(body, last.whole)[1] if body is not None else "its bytes were erased"
    as_parked = Parked(last.id, last.reason, None, last.whole, last.size, trouble)
    return Look(Found(as_parked, last.copies), body, {}, entries)


@asynccontextmanager
async def recording(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """The database with the record."""
    engine = make_engine(settings.db_url("migrate"), settings.db_ca_file)
    try:
        yield engine
    finally:
        await engine.dispose()


async def record(settings: Settings, limit: int) -> list[Entry]:
    """The last entries of the record, the oldest first."""
    async with recording(settings) as engine, engine.connect() as connection:
        return await parking_log.newest(connection, limit)


def _add(found: dict[str, Found], seen: Parked) -> None:
    """Count a message. Of two with the same bytes the one that can be read tells how."""
    known = found.setdefault(seen.id, Found(seen, 0))
    known.copies += 1
    if known.parked.trouble and not seen.trouble:
        known.parked = seen


def by_prefix(found: Iterable[Found], prefix: str) -> Found:
    """The one whose id begins so; raises NotParked, AmbiguousId."""
    fitting = [each for each in found if each.parked.id.startswith(prefix)]
    if not fitting:
        raise _unknown(prefix)
    if len(fitting) > 1:
        raise _ambiguous([each.parked.id for each in fitting], prefix)
    return fitting[0]


def _unknown(prefix: str) -> NotParked:
    return NotParked(f"no parked message has the id {prefix}: `ledger parked list` shows all")


def _ambiguous(ids: Sequence[str], prefix: str) -> AmbiguousId:
    some = ", ".join(id_[: len(prefix) + MORE_DIGITS] for id_ in ids[:NAMED])
    return AmbiguousId(f"{len(ids)} messages have an id like {prefix}: give more of {some}")


def by_reason(found: Iterable[Found], pattern: str) -> list[Found]:
    """Those whose reason fits a pattern of `*`, `?` and `[…]`."""
    return [each for each in found if fnmatchcase(each.parked.reason, pattern)]
