"""What `ledger verify` does: the ledger decided again, then the views compared with it.

It reads only, up to where the ledger ends when it begins; writer and projector go on meanwhile.
"""

import asyncio
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.progress import progress
from cli.reading import reading
from cli.settings import Settings
from cli.verifying.state import BadState, StateFile, load
from ledger import snapshots
from ledger.audit import ChainAudit, Wrong
from ledger.audit_decisions import DecisionAudit, take
from ledger.audit_reading import End, Page, ahead, pages, read_end, record_at
from ledger.core.fold import Fold
from ledger.signing import KeptHead
from projections.comparing import Compared, compare
from projections.registry import PROJECTIONS

Moved = Callable[[int], None]


class BadStart(Exception):
    """The ledger can't be verified from there."""


class Wish(Struct, frozen=True):
    """What is to be verified, from where, and against which kept head."""

    since_position: int = 0
    quick: bool = False
    resume: Path | None = None
    against: KeptHead | None = None


class Verified(Struct, frozen=True):
    """A ledger that is right after the position `since`, which was trusted, and its views."""

    position: int
    hash: str
    since: int
    views: list[Compared]


class Begin(Struct, frozen=True):
    """Where the audit goes on from; no decisions, if only the chain is to be checked."""

    chain: ChainAudit
    decisions: DecisionAudit | None
    saved: StateFile | None = None


async def verify(settings: Settings, wish: Wish) -> Verified:
    """Raises Wrong, for the first position where something is, BadStart and BadState."""
    async with reading(settings) as connection:
        begin = await _begin(connection, wish)
        since = begin.chain.position
        await _audit(connection, begin, wish)
        views: list[Compared] = []
        if not wish.quick and not wish.since_position:
            with progress("views", begin.chain.position) as moved:
                views = await compare(connection, PROJECTIONS, moved)
    return Verified(begin.chain.position, begin.chain.hash.hex(), since, views)


async def _begin(connection: AsyncConnection, wish: Wish) -> Begin:
    if wish.resume:
        return await _resumed(connection, wish.resume)
    since = wish.since_position
    if since and await record_at(connection, since) is None:
        raise BadStart(f"--since-position {since} is after the end of the ledger")
    if wish.quick:
        return Begin(await _trusted(connection, since), None)
    snapshot = await snapshots.nearest(connection, since)
    if snapshot is None:
        return Begin(ChainAudit(), DecisionAudit(Fold()))
    fold = Fold(snapshot.customers, snapshot.products)
    return Begin(await _trusted(connection, snapshot.position), DecisionAudit(fold))


async def _trusted(connection: AsyncConnection, position: int) -> ChainAudit:
    """The chain, on from a record that is taken as it is."""
    record = await record_at(connection, position)
    return ChainAudit(position, record.hash, record.recorded_at_us) if record else ChainAudit()


async def _resumed(connection: AsyncConnection, path: Path) -> Begin:
    """On from the state in a file, if there is one, which must be of this ledger."""
    first, state = await record_at(connection, 1), load(path)
    if state is None:
        saved = StateFile(path, first.hash) if first else None
        return Begin(ChainAudit(), DecisionAudit(Fold()), saved)
    if first and first.hash != state.first_hash:
        raise BadState(f"{path} is of another ledger: name another file")
    record = await record_at(connection, state.position)
    if record is None:
        raise Wrong(state.position, f"the event was there when {path} was written, and is gone")
    if record.hash != state.hash:
        what = f"up to here history was rewritten since {path} was written: the hash is another"
        raise Wrong(state.position, what)
    return Begin(state.chain, DecisionAudit(state.fold), StateFile(path, state.first_hash))


async def _audit(connection: AsyncConnection, begin: Begin, wish: Wish) -> None:
    """Check the ledger up to its end; raises Wrong, for the first position of all."""
    end = await read_end(connection)
    found = [end.wrong, await _kept(connection, begin, end, wish)]
    try:
        with progress("ledger", max(0, end.position - begin.chain.position)) as moved:
            await _walk(connection, begin, end.position, moved)
    except Wrong as wrong:
        found.append(wrong)
    if wrongs := [wrong for wrong in found if wrong]:
        raise min(wrongs, key=attrgetter("position"))


async def _kept(connection: AsyncConnection, begin: Begin, end: End, wish: Wish) -> Wrong | None:
    """What is wrong by a head that was kept; what is before it must be verified, now or before."""
    head = wish.against
    if head is None or head.position == 0:
        return None
    if wish.since_position and begin.chain.position > head.position:
        raise BadStart(
            f"the kept head is of position {head.position}, and what is before"
            f" {begin.chain.position} would not be verified: leave out --since-position"
        )
    record = await record_at(connection, head.position)
    if record is None:
        what = f"the kept head says that the ledger had {head.position} events: they are gone"
        return Wrong(end.position + 1, what)
    if record.hash.hex() != head.hash:
        what = "the kept head has another hash: history up to here was rewritten"
        return Wrong(head.position, what)
    return None


async def _walk(connection: AsyncConnection, begin: Begin, up_to: int, moved: Moved) -> None:
    chain, decisions = begin.chain, begin.decisions
    unknown = decisions.unknown if decisions else None
    async for page in ahead(pages(connection, chain.position, up_to, unknown)):
        # In a thread, so that the next page comes in meanwhile.
        await asyncio.to_thread(_take, begin, page)
        if begin.saved and decisions:
            begin.saved.save_when_due(chain, decisions.fold)
        moved(len(page.records))
    if begin.saved and decisions and chain.position:
        begin.saved.save(chain, decisions.fold)


def _take(begin: Begin, page: Page) -> None:
    if begin.decisions:
        take(begin.chain, begin.decisions, page.records, page.earlier)
    else:
        begin.chain.take(page.records)
