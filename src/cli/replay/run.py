"""A replay from its start to its end: what is read, where it goes, and what is said of it."""

import asyncio
import os
import signal
from pathlib import Path

from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncEngine

from cli.lines import Lines
from cli.progress import progress
from cli.reading import reading_engine
from cli.replay import ReplayRefused, ReplayStopped
from cli.replay.directory import Marker, open_directory
from cli.replay.reader import Page, Reading, Take, Wish
from cli.replay.resubmit import Resubmission, refuse_same, widened
from cli.settings import Settings
from ledger.eventlog.store import Store
from ledger.messaging.publisher import Publisher
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.reconnect import first_to_end


class Replayed(Struct, frozen=True):
    """What a replay did: events that it wrote or submitted, all that there are up to a position."""

    events: int
    position: int


async def to_output(settings: Settings, wish: Wish, *, follow: bool) -> None:
    """Print events, one a line."""
    lines = Lines()

    async def take(page: Page) -> None:
        for found in page.found:
            lines.add(found.line)
        lines.flush()

    async with reading_engine(settings) as engine:
        await _run(Reading(engine, wish, lambda more: None), take, follow)


async def to_directory(settings: Settings, wish: Wish, path: Path, *, follow: bool) -> Replayed:
    """Write events into files, after those that are there."""
    async with reading_engine(settings) as engine:
        with open_directory(path, wish) as directory:
            await _refuse_other(engine, path, directory.marker)
            rest = structs.replace(wish, first=directory.marker.position + 1)
            if wish.last is None or rest.first <= wish.last:
                with progress("replaying", await _length(engine, rest, follow)) as moved:
                    await _run(Reading(engine, rest, moved), directory.take, follow)
            return Replayed(directory.written, directory.marker.position)


async def to_inbox(settings: Settings, wish: Wish, other: Settings, *, follow: bool) -> Replayed:
    """Submit what was submitted once more, to another ledger."""
    refuse_same(settings, other)
    publisher = Publisher(other.amqp_url("api"), None, f"replay-{os.getpid()}")
    resubmission = Resubmission(publisher)
    async with reading_engine(settings) as engine:
        async with engine.connect() as connection:
            wish = await widened(connection, wish)
        with progress("submitting", await _length(engine, wish, follow)) as moved:
            source = Reading(engine, wish, moved)
            await first_to_end(publisher.run(), _run(source, resubmission.take, follow))
    return Replayed(resubmission.submitted, source.position)


async def _run(source: Reading, take: Take, follow: bool) -> None:
    """Raises ReplayStopped, which says how far it came."""
    try:
        if follow:
            await first_to_end(source.follow(take), _signalled())
        else:
            await source.run(take)
    except DATABASE_ERRORS as error:
        why = f"the database went away: {getattr(error, 'orig', error)}"
        raise _stopped(source, why) from error
    except (ReplayStopped, ReplayRefused) as error:
        raise _stopped(source, str(error)) from error


def _stopped(source: Reading, why: str) -> ReplayStopped:
    return ReplayStopped(f"{why}; it came as far as position {source.position}")


async def _signalled() -> None:
    """Return when the process is told to stop."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()


async def _length(engine: AsyncEngine, wish: Wish, follow: bool) -> int | None:
    """How many positions there are to look at; None if nobody knows."""
    if wish.last is None and follow:
        return None
    async with engine.connect() as connection:
        head = (await Store(connection).head()).position
    return (wish.last or head) - wish.first + 1


async def _refuse_other(engine: AsyncEngine, path: Path, marker: Marker) -> None:
    """Raises ReplayRefused where the directory holds what this ledger never recorded."""
    if marker.event is None:
        return
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql(
            "SELECT HEX(hash) FROM events WHERE position = %s", (marker.event.position,)
        )
        if (found.scalar() or "").lower() != marker.event.hash:
            raise ReplayRefused(
                f"{path} holds the replay of another ledger, which differs from this one at"
                f" position {marker.event.position}: choose another directory"
            )
