"""Stories: `given(...).when(...).then(...)`, told to a fold through its front door."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Self
from uuid import UUID

from ledger.core.decider import CustomerState, Fold, OrderState, ProductState, Status, is_refusal
from ledger.core.events import DecidedPayload, Recorded, SubmissionRefused
from tests.submissions import ANN, ORDER, PEN, Submission


class Story:
    """One fold, what was decided last, and what must be true of it.

    `position` is that of the last event, as a ledger counts them.
    """

    def __init__(self, fold: Fold, position: int = 0) -> None:
        self.fold = fold
        self.position = position
        self.decided: tuple[DecidedPayload, ...] = ()
        self.before = remembered(fold)

    def when(self, *submissions: Submission) -> Self:
        for stream_id, event in submissions:
            self.before = remembered(self.fold)
            self.decided = self.fold.decide_and_apply(stream_id, event, self.position + 1)
            self.position += 1 + len(self.decided)
        return self

    def then(self, *decided: DecidedPayload) -> Self:
        assert self.decided == decided
        return self

    def leaves(
        self,
        balance_minor: int | None = None,
        stock: int | None = None,
        initial_stock: int | None = None,
        status: Status | None = None,
    ) -> Self:
        """The given numbers hold for ANN, PEN and ORDER; what is not given is not looked at."""
        if balance_minor is not None:
            assert self.fold.customers[ANN].balance_minor == balance_minor
        if stock is not None:
            assert self.fold.products[PEN].stock == stock
        if initial_stock is not None:
            assert self.fold.products[PEN].initial_stock == initial_stock
        if status is not None:
            assert self.fold.orders[ORDER].status is status
        return self

    def seen(self, key: UUID) -> int:
        """The position that a client names who saw this customer, product or order now."""
        fold = self.fold
        return (fold.customers.get(key) or fold.products.get(key) or fold.orders[key]).position

    def changes_nothing(self) -> Self:
        assert remembered(self.fold) == self.before
        return self


def given(*history: Submission) -> Story:
    """A story that starts after this history, none of which may be refused."""
    story = Story(Fold())
    for submission in history:
        assert not is_refusal(story.when(submission).decided), "the premise does not hold"
    return Story(story.fold, story.position)


def given_state(balance_minor: int = 10**9, shelf: ProductState | None = None) -> Story:
    """A story that starts from a snapshot, for states that take too long to tell."""
    return Story(
        Fold({ANN: CustomerState(balance_minor)}, {PEN: shelf or ProductState(1000, 10, 10)})
    )


def effective(events: Sequence[Recorded]) -> list[Recorded]:
    """The events that no refusal follows: found here without the ledger's own decisions."""
    return [
        event
        for event, follower in zip_longest(events, events[1:])
        if follower is None or not isinstance(follower.payload, SubmissionRefused)
    ]


Remembered = tuple[dict[UUID, CustomerState], dict[UUID, ProductState], dict[UUID, OrderState]]


def remembered(fold: Fold) -> Remembered:
    """All that the fold knows, as a copy."""
    return dict(fold.customers), dict(fold.products), dict(fold.orders)
