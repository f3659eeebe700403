"""What `ledger verify` does: the ledger first, then the views.

It reads only, up to where the ledger ends when it begins; writer and projector go on meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from cli.progress import progress
from cli.reading import reading
from cli.settings import Settings
from cli.verification import Verified, Wish
from cli.verification.helper_process import Helper, HelperFailed, end_with, helping
from cli.verification.ledger import HELP_FROM, audit
from ledger.eventlog.chain import VerificationFailed
from ledger.eventlog.store import Store
from projections.check import CheckedView, check_views
from projections.views.projection import KeyedProjection, Projection
from projections.views.registry import PROJECTIONS

log = logging.getLogger(__name__)


async def verify(settings: Settings, wish: Wish) -> Verified:
    """Verify it all; raises VerificationFailed (the first position), BadStart and BadState."""
    watch = asyncio.create_task(end_with(wish.helps)) if wish.helps else None
    try:
        return await _verify(settings, wish)
    finally:
        if watch:
            watch.cancel()


async def _verify(settings: Settings, wish: Wish) -> Verified:
    async with reading(settings) as connection:
        began = time.perf_counter()
        audited = None if wish.views else await audit(settings, connection, wish)
        ended = time.perf_counter()
        views: list[CheckedView] = []
        if not wish.quick and not wish.since_position:
            views = await _compare(settings, connection, wish)
        took_s = time.perf_counter() - ended
    return Verified(audited, views, round(ended - began, 3), round(took_s, 3))


async def _compare(
    settings: Settings, connection: AsyncConnection, wish: Wish
) -> list[CheckedView]:
    """Compare the views; of a long ledger some of them in another process."""
    views = [view for view in PROJECTIONS if not wish.views or view.name in wish.views]
    apart = [view for view in views if isinstance(view, KeyedProjection) and view.own_stream]
    events = (await Store(connection).head()).position
    if wish.helps or events < HELP_FROM or len(apart) in (0, len(views)):
        return await _alone(connection, views)
    arguments = [part for view in apart for part in ("--view", view.name)]
    async with helping(settings, *arguments) as helper:
        here = await _result(_alone(connection, [view for view in views if view not in apart]))
        try:
            there = await _result(_views_of(helper))
        except HelperFailed as error:
            log.warning("verify: goes on alone, as its helper failed: %s", error)
            there = await _result(_alone(connection, apart))
    return _right(here, there)


async def _alone(
    connection: AsyncConnection, views: Sequence[Projection[Any]]
) -> list[CheckedView]:
    events = (await Store(connection).head()).position
    with progress("views", events) as moved:
        return await check_views(connection, views, moved)


async def _views_of(helper: Helper) -> list[CheckedView]:
    return (await helper.answer()).views


async def _result(work: Awaitable[list[CheckedView]]) -> list[CheckedView] | VerificationFailed:
    try:
        return await work
    except VerificationFailed as wrong:
        return wrong


def _right(*results: list[CheckedView] | VerificationFailed) -> list[CheckedView]:
    """All that was compared; raises VerificationFailed for the first position that is wrong."""
    if wrong := [result for result in results if isinstance(result, VerificationFailed)]:
        raise min(wrong, key=attrgetter("position"))
    names = [view.name for view in PROJECTIONS]
    compared = [each for result in results if isinstance(result, list) for each in result]
    return sorted(compared, key=lambda each: names.index(each.name))
