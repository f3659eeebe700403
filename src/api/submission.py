"""Submitting an event, waiting as long as the client likes, and telling how it went."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from msgspec import Struct
from starlette.responses import Response

from api.consistent_reads import OutcomeFuture, Query, T
from api.context import Context
from api.idempotency import Draft, Kept, once
from api.prefer import Preference
from api.problems import Problem, refused
from api.responses import position_header, reply
from ledger.core.events import OrderPlaced
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxUnavailable
from projections.announcements import Outcome
from projections.queries import ViewsUnavailable

KEY_LOOKUP_TIMEOUT_S: Final = 0.4
"""Short, because the submission that follows has a deadline of its own."""

Check = Callable[[], Awaitable[None]]

_REFUSED: Final = frozenset({"submission.refused", "order.cancel-refused"})


class Submission(Struct, frozen=True):
    """Events that are in the inbox, and the outcome of the last one as far as it is known."""

    events: tuple[Submitted, ...]
    outcome: Outcome | None
    keyed: bool
    replayed: bool
    preference: Preference

    @property
    def event(self) -> Submitted:
        """The only one, where a request makes one."""
        return self.events[0]

    def headers(self, decided: bool) -> dict[str, str]:
        """What the answer's headers say about key and preference."""
        headers = self.preference.applied(decided)
        if self.replayed:
            headers["Idempotency-Replayed"] = "true"
        return headers


async def no_check() -> None:
    """The check of a submission that may always be made."""


async def submit(
    context: Context, draft: Draft, preference: Preference, check: Check = no_check
) -> Submission:
    """Submit and wait for the outcome; raises InboxUnavailable, or Problem if it was refused.

    `check` raises what keeps the events from being submitted; what is in the ledger passed it.
    """
    if draft.ids:
        return await _submit_keyed(context, draft, preference, check)
    await check()
    if preference.wait_s == 0:
        await _append(context, draft.events)
        return Submission(draft.events, None, False, False, preference)
    # Listening starts before the submission: its outcome may be here before its confirm.
    with context.waiters.outcome_of(draft.events[-1].event_id) as decided:
        await _append(context, draft.events)
        outcome = await _in_time(decided, preference.wait_s)
    return Submission(draft.events, _effective(outcome), False, False, preference)


async def _submit_keyed(
    context: Context, draft: Draft, preference: Preference, check: Check
) -> Submission:
    """What the ledger has of the key is the answer; else submit, all who come at once together.

    An outcome alone does not tell whose body was decided, as another process may have had the key
    at the same moment; so it is read from the ledger, with the event.
    """
    kept, began = context.keys.claim(draft.events), True
    replayed = kept.confirmed
    with context.waiters.outcome_of(kept.events[-1].event_id) as decided:
        if not kept.outcomes:
            began = await once(kept, lambda: _attempt(context, kept, draft, check))
            replayed = replayed or not began or bool(kept.outcomes)
        context.keys.refuse_other(kept, draft.events)
        if preference.wait_s and not kept.outcomes:
            await _in_time(decided, preference.wait_s)
            await _look_up(context, kept, draft)
            context.keys.refuse_other(kept, draft.events)
    outcome = kept.outcomes[-1] if kept.outcomes else None
    return Submission(kept.events, _effective(outcome), True, replayed, preference)


async def _attempt(context: Context, kept: Kept, draft: Draft, check: Check) -> None:
    """Have the key's events in the inbox, if they are this body's: a request submits no other."""
    with suppress(TimeoutError):
        async with asyncio.timeout(KEY_LOOKUP_TIMEOUT_S):
            await _look_up(context, kept, draft)
    if kept.confirmed or not kept.are(draft.events):
        return
    await check()
    await _append(context, kept.events)
    kept.confirmed = True


async def _look_up(context: Context, kept: Kept, draft: Draft) -> None:
    """Learn what the ledger has of the key; nothing, if the database is away."""
    with suppress(ViewsUnavailable):
        kept.learn(draft.ids, await context.feed.submissions(draft.ids))


async def _in_time(decided: OutcomeFuture, wait_s: int) -> Outcome | None:
    try:
        async with asyncio.timeout(wait_s):
            return await decided
    except TimeoutError:
        return None


async def _append(context: Context, events: tuple[Submitted, ...]) -> None:
    """Have the events in the inbox, and orders among them found from now on."""
    orders = [event for event in events if isinstance(event.payload, OrderPlaced)]
    try:
        for event in orders:
            context.pending.add(event, event.payload)  # type: ignore[arg-type]  # an OrderPlaced
        await context.publisher.submit(events)
    except InboxUnavailable:
        for event in orders:
            context.pending.remove(event.stream_id)
        raise
    if context.peers and orders:
        await context.peers.tell(orders)


def _effective(outcome: Outcome | None) -> Outcome | None:
    """The outcome, unless the fold refused the submission as a whole: then Problem is raised."""
    if outcome is not None and outcome.type in _REFUSED:
        raise refused(outcome.reason or "", f"{outcome.type} at position {outcome.position}")
    return outcome


async def shown(
    context: Context, query: Query[T | None], outcome: Outcome | None
) -> tuple[T | None, int]:
    """What a view shows of something that was accepted: nothing, if it is away or behind."""
    try:
        return await context.reads.read_at_least(outcome.position if outcome else 0, query)
    except (ViewsUnavailable, Problem):
        return None, 0


async def answer(
    context: Context,
    submission: Submission,
    query: Query[T | None],
    render: Callable[[T], Struct],
    *,
    location: str,
    accepted: Struct,
    created: bool,
) -> Response:
    """The thing as the view shows it after the decision, else 202 and where to look for it.

    `created`: the event creates the thing, so that the view showing it proves the decision; of a
    keyed one only the ledger does, as the key may have come elsewhere with another body.
    """
    row, position = None, 0
    if submission.preference.wait_s and (submission.outcome or (created and not submission.keyed)):
        row, position = await shown(context, query, submission.outcome)
    headers: Mapping[str, str] = {"Location": location, **submission.headers(row is not None)}
    if row is None:
        return reply(202, accepted, headers)
    return reply(201 if created else 200, render(row), {**headers, **position_header(position)})
