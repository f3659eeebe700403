"""Stories: `given(...).when(...).then(...)`, told to a fold through its front door."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Self
from uuid import UUID

from ledger.core.decider import CustomerState, Fold, OrderState, ProductState, Status, is_refusal
from ledger.core.events import (
    CustomerErased,
    CustomerRegistered,
    DecidedPayload,
    OrderCancelRequested,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    Recorded,
    StockReceived,
    SubmissionRefused,
    SubmittedPayload,
    WalletCredited,
)

ANN, BOB = UUID(int=0xA1), UUID(int=0xA2)
PEN, INK = UUID(int=0xB1), UUID(int=0xB2)
ORDER, OTHER_ORDER = UUID(int=0xC1), UUID(int=0xC2)
NOBODY = UUID(int=0xD1)

Submission = tuple[UUID, SubmittedPayload]


def customer(balance_minor: int = 500_000, at: UUID = ANN) -> Submission:
    return at, CustomerRegistered("ann", balance_minor)


def erasure(at: UUID = ANN) -> Submission:
    return at, CustomerErased()


def credit(amount_minor: int, at: UUID = ANN) -> Submission:
    return at, WalletCredited(amount_minor)


def product(price_minor: int = 1000, stock: int = 10, at: UUID = PEN) -> Submission:
    return at, ProductListed("pen", "", price_minor, stock)


def receipt(quantity: int, at: UUID = PEN) -> Submission:
    return at, StockReceived(quantity)


def price(price_minor: int, at: UUID = PEN) -> Submission:
    return at, PriceChanged(price_minor)


def order(quantity: int = 1, at: UUID = ORDER, by: UUID = ANN, of: UUID = PEN) -> Submission:
    return at, OrderPlaced(by, of, quantity)


def cancel(at: UUID = ORDER) -> Submission:
    return at, OrderCancelRequested()


class Story:
    """One fold, what was decided last, and what must be true of it."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.decided: tuple[DecidedPayload, ...] = ()
        self.before = remembered(fold)

    def when(self, *submissions: Submission) -> Self:
        for stream_id, event in submissions:
            self.before = remembered(self.fold)
            self.decided = self.fold.decide_and_apply(stream_id, event)
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

    def changes_nothing(self) -> Self:
        assert remembered(self.fold) == self.before
        return self


def given(*history: Submission) -> Story:
    """A story that starts after this history, none of which may be refused."""
    fold = Fold()
    for stream_id, event in history:
        assert not is_refusal(fold.decide_and_apply(stream_id, event)), "the premise does not hold"
    return Story(fold)


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
