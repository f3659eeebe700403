"""What `ledger parked` does with the parking queue, by the account of `ledger migrate`."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage
from msgspec import Struct

from cli.settings import Settings
from ledger.parking import Parked, open_parking, parked

Moved = Callable[[int], None]

CONNECTION: Final = "ledger parked"
PREFIX: Final = re.compile(r"[0-9a-f]{4,64}").fullmatch


class NotParked(Exception):
    """No parked message has this id, or several begin so."""


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
    """One parked message with all that came with it."""

    found: Found
    body: bytes
    headers: dict[str, Any]


async def look(settings: Settings, prefix: str, moved: Moved) -> Look:
    """The parked message whose id begins so; raises NotParked, ParkingBusy."""
    found: dict[str, Found] = {}
    kept: dict[str, AbstractIncomingMessage] = {}
    async with open_parking(settings.amqp_url("migrate"), CONNECTION) as parking:
        async for message in parking.messages():
            seen = parked(message)
            _add(found, seen)
            if seen.id.startswith(prefix):
                kept.setdefault(seen.id, message)
            moved(1)
    one = by_prefix(found.values(), prefix)
    message = kept[one.parked.id]
    return Look(one, message.body, dict(message.headers))


def _add(found: dict[str, Found], seen: Parked) -> None:
    """Count a message. Of two with the same bytes the one that can be read tells how."""
    known = found.setdefault(seen.id, Found(seen, 0))
    known.copies += 1
    if known.parked.trouble and not seen.trouble:
        known.parked = seen


def by_prefix(found: Iterable[Found], prefix: str) -> Found:
    """The one whose id begins so; raises NotParked."""
    fitting = [each for each in found if each.parked.id.startswith(prefix)]
    match fitting:
        case [one]:
            return one
        case []:
            raise NotParked(f"no parked message is called {prefix}: `ledger parked list` shows all")
    ids = ", ".join(each.parked.id[: len(prefix) + 4] for each in fitting[:4])
    raise NotParked(f"{len(fitting)} parked messages are called {prefix}…: {ids}; say more of it")


def by_reason(found: Iterable[Found], pattern: str) -> list[Found]:
    """Those whose reason fits a pattern of `*`, `?` and `[…]`."""
    return [each for each in found if fnmatchcase(each.parked.reason, pattern)]
