"""`ledger verify`: finds out whether anything in the ledger was changed, or a view is wrong.

Each page of the ledger is read once: its records are checked, then the views are compared with it.
The command only reads, up to where the ledger ends when it begins; writer and projector go on.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from msgspec import Struct
from msgspec.structs import astuple
from sqlalchemy.ext.asyncio import AsyncConnection

from cli import connections, console
from cli.commands.head import BadFile, KeptHead, load_head
from cli.drift import fail_on_drift
from cli.settings import Settings
from ledger.audit.decision_audit import DecisionAudit, audit_pages, check_page
from ledger.core.events import Recorded
from ledger.eventlog import snapshots
from ledger.eventlog.reader import EventReader, LedgerEnd
from ledger.eventlog.records import ChainCheck, VerificationFailed
from ledger.runtime.cache import Prefetch
from projections.check import (
    CheckedView,
    EventRange,
    check_views,
    event_range,
    read_range,
)
from projections.views.projection import Projection
from projections.views.registry import PROJECTIONS, UnknownView, views_named

# The status where it could not be found out: the database went away.
UNDECIDED: Final = 3


class BadStart(Exception):
    """The ledger can't be verified from there."""


class CheckedLedger(Struct, frozen=True):
    """A ledger that is right up to a position, and after `since`, which was trusted."""

    position: int
    hash: str
    since: int


class Verified(Struct, frozen=True, omit_defaults=True):
    """What was found right, what was not looked at, and how long each part took.

    `refused_snapshots` are the positions of those that nobody believes, as they are torn or not
    sealed with the key of this ledger's processes.
    """

    ledger: CheckedLedger | None
    views: list[CheckedView]
    ledger_s: float
    views_s: float
    unchecked: list[str] = []
    refused_snapshots: list[int] = []


def verify(
    since_position: Annotated[
        int, typer.Option(min=0, help="trust what is before, from the nearest snapshot on")
    ] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="positions, times and hashes only")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(help="a head that was kept: the ledger must go on from it")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="the key that must have signed that head")
    ] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="compare this view only; may be given again")
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Run `ledger verify`."""
    if view and (quick or since_position or against):
        console.usage_error("--view leaves out the ledger: leave out what is for the ledger, too")
    if public_key and not against:
        console.usage_error("--public-key is for the head that --against names")
    try:
        views = views_named(view or ())
        kept = load_head(against, public_key) if against else None
        settings = console.read_settings()
        if view:
            work = check_only_views(settings, views)
        else:
            work = check(settings, since_position, quick=quick, against=kept)
        verified = console.run(work, failed=UNDECIDED, handled=(VerificationFailed, BadStart))
    except VerificationFailed as failure:
        if as_json:
            console.print_json({"wrong": {"position": failure.position, "what": failure.detail}})
        console.fail(str(failure))
    except (UnknownView, BadFile, BadStart) as error:
        console.usage_error(str(error))
    if as_json:
        console.print_json(verified)
    else:
        _print_for_people(verified, quick=quick)
    if verified.refused_snapshots:
        where = ", ".join(map(str, verified.refused_snapshots))
        console.err.print(
            f"snapshots that nobody believes, at position {where}: torn, or not sealed with the key"
            " of this ledger's processes; delete them, and find out who wrote them"
        )
    if kept and not public_key:
        console.err.print("the kept head was taken as it is: --public-key FILE says who signed it")
    if not view:
        fail_on_drift(settings)


def _print_for_people(verified: Verified, *, quick: bool) -> None:
    if ledger := verified.ledger:
        since = f" after position {ledger.since}, which was trusted," if ledger.since else ""
        state = "in the chain" if quick else "as it was decided"
        console.out.print(f"ledger: all{since} up to position {ledger.position} is {state}")
        console.out.print(f"        hash {ledger.hash}")
    for name, position, rows in map(astuple, verified.views):
        count = "1 row" if rows == 1 else f"{rows} rows"
        made = f"as the ledger makes them up to position {position}"
        console.out.print(f"{name}: {count}, {made}")
    for what in verified.unchecked:
        console.out.print(f"not checked: {what}")


async def check_only_views(settings: Settings, views: Sequence[Projection[Any]]) -> Verified:
    """Compare these views with the ledger, which is taken as it is; raises VerificationFailed."""
    started = time.perf_counter()
    async with connections.connection(settings, "projector", read_only=True) as connection:
        head = await EventReader(connection).head()
        with console.progress("views", head.position) as advance:
            checked = await check_views(connection, views, advance)
    return Verified(None, checked, 0.0, round(time.perf_counter() - started, 3))


async def check(
    settings: Settings,
    since_position: int = 0,
    *,
    quick: bool = False,
    against: KeptHead | None = None,
) -> Verified:
    """Check ledger and views, reading each page of the ledger once.

    The check begins after the nearest snapshot up to `since_position`, or with `quick` right there,
    and then leaves out the views. The ledger must go on from the head `against`, if there is one.
    Raises VerificationFailed for the first position where something is wrong, and BadStart.
    """
    started, ledger_s = time.perf_counter(), 0.0
    views: list[CheckedView] = []
    # The views are compared on a connection of their own, while the next page is read on this one.
    async with (
        connections.engine(settings, "projector", read_only=True, autocommit=True) as engine,
        engine.connect() as connection,
    ):
        chain, decisions = await _start(connection, since_position, quick=quick)
        since = chain.position
        end = await EventReader(connection).compare_head()
        failures = [end.failure, await _compare_kept_head(connection, since, end, against)]
        refused = await snapshots.refused(connection) if settings.snapshot_key() else []
        ranges = _checked_ranges(connection, chain, decisions, end.position)

        async def next_checked() -> EventRange | None:
            nonlocal ledger_s
            begun = time.perf_counter()
            events = await anext(ranges, None)
            ledger_s += time.perf_counter() - begun
            return events

        async def next_range(view_connection: AsyncConnection, after: int) -> EventRange | None:
            # A view may be ahead of where the ledger ended when this began.
            return await next_checked() or await read_range(view_connection, after)

        try:
            with console.progress("verifying", max(0, end.position - since)) as advance:
                if not quick and not since_position:
                    async with connections.connection(
                        settings, "projector", read_only=True
                    ) as view_connection:
                        views = await check_views(view_connection, PROJECTIONS, advance, next_range)
                while events := await next_checked():  # what no view shows yet
                    advance(events.up_to - events.after)
        except VerificationFailed as failure:
            failures.append(failure)
        finally:
            await ranges.aclose()
    # The first position is promised, and each of these may be the one that names it.
    if first := min(filter(None, failures), key=attrgetter("position"), default=None):
        raise first
    ledger = CheckedLedger(chain.position, chain.hash.hex(), since)
    views_s = time.perf_counter() - started - ledger_s
    unchecked = _unchecked(since, since_position, quick=quick)
    return Verified(ledger, views, round(ledger_s, 3), round(views_s, 3), unchecked, refused)


def _unchecked(since: int, since_position: int, *, quick: bool) -> list[str]:
    """What these options leave out, each as a phrase."""
    unchecked = []
    if since:
        unchecked.append(f"everything up to position {since}, which was trusted (--since-position)")
    if since and not quick:
        unchecked.append(
            f"the snapshot at position {since}, from which the decisions after it were made again"
            " (--since-position)"
        )
    if quick:
        unchecked.append("decisions, invariants, the contents of snapshots, and views (--quick)")
    elif since_position:
        unchecked.append("views (--since-position)")
    return unchecked


async def _checked_ranges(
    connection: AsyncConnection, chain: ChainCheck, decisions: DecisionAudit | None, up_to: int
) -> AsyncGenerator[EventRange, None]:
    """The events up to a position, page by page as they are checked; raises VerificationFailed.

    The ranges are without events if no decisions are checked.
    """
    # The writer starts from the newest snapshot, so it must be what the events make.
    snapshot = await snapshots.nearest(connection, up_to) if decisions else None
    if snapshot and snapshot.head.position <= chain.position:
        snapshot = None
    for end in (snapshot.head.position, up_to) if snapshot else (up_to,):
        pages = audit_pages(EventReader(connection), chain.position, end, decisions)
        async with aclosing(Prefetch(pages)) as prefetched:
            async for audit_page in prefetched:
                page, earlier = audit_page.page, audit_page.earlier
                events: Sequence[Recorded] = ()
                # In a thread, so that the next page is read meanwhile.
                if decisions:
                    events = await asyncio.to_thread(
                        check_page, chain, decisions, page.records, earlier, page.keys
                    )
                else:
                    await asyncio.to_thread(chain.check, page.records)
                yield event_range(page, events)
        if snapshot and decisions and end == snapshot.head.position:
            fold = decisions.fold
            if (snapshot.fold.customers, snapshot.fold.products) != (fold.customers, fold.products):
                other = "the snapshot that was saved here is not what the events make: drop it"
                raise VerificationFailed(snapshot.head.position, other)


async def _start(
    connection: AsyncConnection, since: int, *, quick: bool
) -> tuple[ChainCheck, DecisionAudit | None]:
    """The state to begin with; no decisions, if only the chain is to be checked."""
    if since and await EventReader(connection).record_at(since) is None:
        raise BadStart(f"--since-position {since} is after the end of the ledger")
    decisions = None
    if not quick:
        snapshot = await snapshots.nearest(connection, since)
        since, decisions = snapshot.head.position, DecisionAudit(snapshot.fold)
    trusted = await EventReader(connection).record_at(since)
    if trusted is None:
        return ChainCheck(), decisions
    return ChainCheck(since, trusted.hash, trusted.recorded_at_us), decisions


async def _compare_kept_head(
    connection: AsyncConnection, since: int, end: LedgerEnd, kept: KeptHead | None
) -> VerificationFailed | None:
    """The failure if the ledger does not go on from a head that was kept."""
    if kept is None or kept.position == 0:
        return None
    if since > kept.position:
        raise BadStart(
            f"the kept head is of position {kept.position}, and what is before"
            f" {since} would not be verified: leave out --since-position"
        )
    record = await EventReader(connection).record_at(kept.position)
    if record is None:
        gone = f"the kept head says that the ledger had {kept.position} events: they are gone"
        return VerificationFailed(end.position + 1, gone)
    if record.hash.hex() != kept.hash:
        rewritten = "the kept head has another hash: history up to here was rewritten"
        return VerificationFailed(kept.position, rewritten)
    return None
