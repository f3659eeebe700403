"""The ledger part of `ledger verify`: all that was submitted decided again, up to where it ends.

A long ledger is cut in two at a snapshot. Another process verifies what comes after, on the word of
the snapshot, while this one finds out whether the snapshot is right.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from operator import attrgetter
from pathlib import Path
from typing import Final

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.progress import progress
from cli.settings import Settings
from cli.verification import Audited, Wish
from cli.verification.helper_process import HelperFailed, helping
from cli.verification.state import BadState, StateFile, load
from ledger.audit.decisions import AuditPage, DecisionAudit, audit_pages, check
from ledger.core.fold import Fold
from ledger.eventlog import snapshots
from ledger.eventlog.chain import ChainCheck, VerificationFailed
from ledger.eventlog.reader import EventReader, LedgerEnd, Prefetch
from ledger.eventlog.snapshots import Snapshot

log = logging.getLogger(__name__)

Moved = Callable[[int], None]

HELP_FROM: Final = 100_000
"""Of fewer events a second process would not be worth its start."""
LEAST_SHARE: Final = 0.3
"""So much at least is left to this process, or it does all by itself."""


class BadStart(Exception):
    """The ledger can't be verified from there."""


class Begin(Struct, frozen=True):
    """Where the audit goes on from; no decisions, if only the chain is to be checked."""

    chain: ChainCheck
    decisions: DecisionAudit | None
    saved: StateFile | None = None


async def audit(settings: Settings, connection: AsyncConnection, wish: Wish) -> Audited:
    """Verify the ledger; raises VerificationFailed (the first position), BadStart and BadState."""
    begin, end = await _begin(connection, wish), await EventReader(connection).end()
    found = [wrong for wrong in (end.failure, await _kept(connection, begin, end, wish)) if wrong]
    try:
        audited = await _audit(settings, connection, begin, end, wish)
    except VerificationFailed as wrong:
        raise min(*found, wrong, key=attrgetter("position")) if found else wrong from None
    if found:
        raise min(found, key=attrgetter("position"))
    return audited


async def _audit(
    settings: Settings, connection: AsyncConnection, begin: Begin, end: LedgerEnd, wish: Wish
) -> Audited:
    since = begin.chain.position
    if middle := await _middle(connection, begin, end, wish):
        audited = await _in_two(settings, connection, begin, middle)
        if audited:
            return audited
    await _walk(connection, begin, end.position)
    return Audited(begin.chain.position, begin.chain.hash.hex(), since)


async def _begin(connection: AsyncConnection, wish: Wish) -> Begin:
    if wish.resume:
        return await _resumed(connection, wish.resume)
    since = wish.since_position
    if since and await EventReader(connection).record_at(since) is None:
        raise BadStart(f"--since-position {since} is after the end of the ledger")
    if wish.quick:
        return Begin(await _trusted(connection, since), None)
    snapshot = await snapshots.nearest(connection, since)
    if snapshot is None:
        return Begin(ChainCheck(), DecisionAudit(Fold()))
    fold = Fold(snapshot.customers, snapshot.products)
    return Begin(await _trusted(connection, snapshot.position), DecisionAudit(fold))


async def _trusted(connection: AsyncConnection, position: int) -> ChainCheck:
    """The chain, on from a record that is taken as it is."""
    record = await EventReader(connection).record_at(position)
    return ChainCheck(position, record.hash, record.recorded_at_us) if record else ChainCheck()


async def _resumed(connection: AsyncConnection, path: Path) -> Begin:
    """On from the state in a file, if there is one, which must be of this ledger."""
    first, state = await EventReader(connection).record_at(1), load(path)
    if state is None:
        saved = StateFile(path, first.hash) if first else None
        return Begin(ChainCheck(), DecisionAudit(Fold()), saved)
    if first and first.hash != state.first_hash:
        raise BadState(f"{path} is of another ledger: name another file")
    record = await EventReader(connection).record_at(state.position)
    if record is None:
        raise VerificationFailed(
            state.position, f"the event was there when {path} was written, and is gone"
        )
    if record.hash != state.hash:
        what = f"up to here history was rewritten since {path} was written: the hash is another"
        raise VerificationFailed(state.position, what)
    return Begin(state.chain, DecisionAudit(state.fold), StateFile(path, state.first_hash))


async def _middle(
    connection: AsyncConnection, begin: Begin, end: LedgerEnd, wish: Wish
) -> Snapshot | None:
    """The snapshot at which a long ledger is cut in two, if there is a good one."""
    length = end.position - begin.chain.position
    if length < HELP_FROM or wish.helps or wish.quick or begin.saved:
        return None
    snapshot = await snapshots.nearest(connection, begin.chain.position + length // 2)
    least = begin.chain.position + LEAST_SHARE * length
    return snapshot if snapshot and snapshot.position >= least else None


async def _in_two(
    settings: Settings, connection: AsyncConnection, begin: Begin, middle: Snapshot
) -> Audited | None:
    """Verify up to the snapshot, and all after it in another process; None where that failed."""
    since = begin.chain.position
    async with helping(settings, "--since-position", str(middle.position)) as helper:
        await _walk(connection, begin, middle.position)
        _refuse_other(middle, begin.decisions)
        try:
            rest = (await helper.answer()).ledger
        except HelperFailed as error:
            log.warning("verify: goes on alone, as its helper failed: %s", error)
            return None
    if rest is None or rest.since != middle.position:
        return None  # the snapshot was dropped before the helper got it
    return Audited(rest.position, rest.hash, since)


def _refuse_other(snapshot: Snapshot, decisions: DecisionAudit | None) -> None:
    """Raises VerificationFailed unless the snapshot is the fold at its position."""
    fold = decisions.fold if decisions else Fold()
    if (snapshot.customers, snapshot.products) != (fold.customers, fold.products):
        what = "the snapshot that was saved here is not what the events make: drop it"
        raise VerificationFailed(snapshot.position, what)


async def _kept(
    connection: AsyncConnection, begin: Begin, end: LedgerEnd, wish: Wish
) -> VerificationFailed | None:
    """What is wrong by a head that was kept; what is before it must be verified, now or before."""
    head = wish.against
    if head is None or head.position == 0:
        return None
    if wish.since_position and begin.chain.position > head.position:
        raise BadStart(
            f"the kept head is of position {head.position}, and what is before"
            f" {begin.chain.position} would not be verified: leave out --since-position"
        )
    record = await EventReader(connection).record_at(head.position)
    if record is None:
        what = f"the kept head says that the ledger had {head.position} events: they are gone"
        return VerificationFailed(end.position + 1, what)
    if record.hash.hex() != head.hash:
        what = "the kept head has another hash: history up to here was rewritten"
        return VerificationFailed(head.position, what)
    return None


async def _walk(connection: AsyncConnection, begin: Begin, up_to: int) -> None:
    """Check all up to a position, page by page; raises VerificationFailed."""
    chain, decisions = begin.chain, begin.decisions
    pages = audit_pages(EventReader(connection), chain.position, up_to, decisions)
    with progress("ledger", max(0, up_to - chain.position)) as moved:
        async with aclosing(Prefetch(pages)) as prefetched:
            async for page in prefetched:
                # In a thread, so that the next page comes in meanwhile.
                await asyncio.to_thread(_check, begin, page)
                if begin.saved and decisions:
                    begin.saved.save_when_due(chain, decisions.fold)
                moved(len(page.records))
    if begin.saved and decisions and chain.position:
        begin.saved.save(chain, decisions.fold)


def _check(begin: Begin, page: AuditPage) -> None:
    if begin.decisions:
        check(begin.chain, begin.decisions, page.records, page.earlier)
    else:
        begin.chain.check(page.records)
