"""Submitting an event, waiting as long as the client likes, and telling how it went."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct
from starlette.responses import Response

from api.context import Context
from api.idempotency import Draft, key_reused
from api.prefer import Preference
from api.problems import refused
from api.reading import Query, T
from api.replies import at, reply
from ledger.core.events import OrderPlaced, Submitted
from ledger.publisher import InboxUnavailable
from projections.announcements import Outcome
from projections.queries import ViewsUnavailable

KEY_LOOKUP_TIMEOUT_S: Final = 0.4
"""Short, because the submission that follows has a deadline of its own."""

_REFUSED: Final = frozenset({"submission.refused", "order.cancel-refused"})


class Submission(Struct, frozen=True):
    """An event that is in the inbox, and its outcome as far as it is known."""

    event: Submitted
    outcome: Outcome | None
    replayed: bool
    preference: Preference

    def headers(self, decided: bool) -> dict[str, str]:
        """What the answer's headers say about key and preference."""
        headers = self.preference.applied(decided)
        if self.replayed:
            headers["Idempotency-Replayed"] = "true"
        return headers


async def submit(context: Context, draft: Draft, preference: Preference) -> Submission:
    """Submit and wait for the outcome; raises InboxUnavailable, or Problem if it was refused."""
    if draft.keyed:
        return await _submit_keyed(context, draft.event, preference)
    outcome = await _submit(context, draft.event, preference.wait_s)
    return Submission(draft.event, outcome, False, preference)


async def _submit_keyed(context: Context, event: Submitted, preference: Preference) -> Submission:
    """A retry submits the very event of the first try, and none at all once that is confirmed."""
    kept = context.keys.claim(event)
    if kept.outcome is not None:
        return Submission(kept.event, _effective(kept.outcome), True, preference)
    replayed = kept.confirmed
    outcome = await _submit(context, kept.event, preference.wait_s, confirmed=replayed)
    kept.confirmed = True
    return Submission(kept.event, outcome, replayed, preference)


async def _submit(
    context: Context, event: Submitted, wait_s: int, *, confirmed: bool = False
) -> Outcome | None:
    if wait_s == 0:
        if not confirmed:
            await _append(context, event)
        return None
    deadline = asyncio.get_running_loop().time() + wait_s
    # Listening starts before the submission: its outcome may be here before its confirm.
    with context.waiting.outcome_of(event.event_id) as outcome:
        if not confirmed:
            await _append(context, event)
        try:
            async with asyncio.timeout_at(deadline):
                return _effective(await outcome)
        except TimeoutError:
            return None


async def _append(context: Context, event: Submitted) -> None:
    if not isinstance(event.payload, OrderPlaced):
        await context.publisher.submit((event,))
        return
    context.pending.add(event, event.payload)
    try:
        await context.publisher.submit((event,))
    except InboxUnavailable:
        context.pending.drop(event.stream_id)
        raise
    if context.peers:
        await context.peers.tell((event,))


def _effective(outcome: Outcome | None) -> Outcome | None:
    """The outcome, unless the fold refused the submission as a whole: then Problem is raised."""
    if outcome is not None and outcome.type in _REFUSED:
        raise refused(outcome.reason or "", f"{outcome.type} at position {outcome.position}")
    return outcome


async def earlier(
    context: Context, draft: Draft, query: Query[T | None], same: Callable[[T], bool]
) -> T | None:
    """What the same key made before, where a view shows it; raises Problem for another body."""
    if not draft.keyed or context.keys.knows(draft.event):
        return None
    try:
        async with asyncio.timeout(KEY_LOOKUP_TIMEOUT_S):
            row, _ = await context.reading.read(query)
    except (ViewsUnavailable, TimeoutError):
        return None
    if row is not None and not same(row):
        raise key_reused()
    return row


async def shown(context: Context, query: Query[T | None]) -> tuple[T | None, int]:
    """What a view shows of something that was accepted: nothing, if the views are away."""
    try:
        return await context.reading.read(query)
    except ViewsUnavailable:
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

    `created`: the event creates the thing, so that the view showing it proves the decision.
    """
    row, position = None, 0
    if submission.preference.wait_s and (submission.outcome is not None or created):
        row, position = await shown(context, query)
    headers: Mapping[str, str] = {"Location": location, **submission.headers(row is not None)}
    if row is None:
        return reply(202, accepted, headers)
    return reply(201 if created else 200, render(row), {**headers, **at(position)})
