"""Replaying a history: what took effect is applied, and a history that can't be is named."""

from collections.abc import Iterable
from uuid import UUID

import pytest

from ledger.core.decider import (
    CustomerState,
    Fold,
    InvariantViolated,
    OrderState,
    ProductState,
    State,
    Status,
    evolve,
    is_refusal,
)
from ledger.core.events import (
    AnyPayload,
    CustomerRegistered,
    OrderCancelled,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    Reason,
    Recorded,
    StockReceived,
    SubmissionRefused,
    WalletCredited,
)
from ledger.core.invariants import money_moved_minor
from tests.submissions import ANN, NOBODY, ORDER, PEN, customer, order, product

from .story import given

REGISTERED = CustomerRegistered("ann", 5000)
LISTED = ProductListed("pen", "", 1000, 10)
PLACED = OrderPlaced(ANN, PEN, 2)
COMPLETED = OrderCompleted(ANN, PEN, 2, 1000, 2000)
ASKED = OrderCancelRequested()
CANCELLED = OrderCancelled(ANN, PEN, 2, 2000)
FAILED = OrderFailed(Reason.INSUFFICIENT_STOCK)
REFUSED = SubmissionRefused(Reason.DUPLICATE_CUSTOMER)
CANCEL_REFUSED = OrderCancelRefused(Reason.ALREADY_CANCELLED)


def history(*events: tuple[UUID, AnyPayload]) -> list[Recorded]:
    return [
        Recorded(position, stream_id, 0, 0, payload)
        for position, (stream_id, payload) in enumerate(events, start=1)
    ]


def replayed(events: Iterable[Recorded], fold: Fold | None = None) -> Fold:
    fold = fold or Fold()
    for event in events:
        fold.apply(event)
    return fold


def test_a_replay_ends_where_the_fold_ended() -> None:
    events = history(
        (ANN, REGISTERED),
        (PEN, LISTED),
        (ANN, WalletCredited(1)),
        (PEN, PriceChanged(3000)),
        (ORDER, PLACED),
        (ORDER, COMPLETED),
        (PEN, StockReceived(5)),
        (ORDER, ASKED),
        (ORDER, CANCELLED),
        (ORDER, ASKED),
        (ORDER, CANCEL_REFUSED),
    )
    fold = replayed(events)
    assert fold.customers == {ANN: CustomerState(5001 - 2000 + 2000, 9)}
    assert fold.products == {PEN: ProductState(3000, 15, 13, 9)}
    assert fold.orders == {ORDER: OrderState(ANN, PEN, 2, Status.CANCELLED, 2000, 9)}


def test_a_replay_believes_the_recorded_price_and_not_todays_rule() -> None:
    dear = OrderCompleted(ANN, PEN, 1, 4999, 4999)
    events = history((ANN, REGISTERED), (PEN, LISTED), (ORDER, PLACED), (ORDER, dear))
    fold = replayed(events)
    assert fold.customers[ANN].balance_minor == 1
    assert fold.orders[ORDER].total_minor == 4999


def test_a_cancel_replays_although_its_order_was_forgotten() -> None:
    fold = Fold({ANN: CustomerState(3000)}, {PEN: ProductState(1000, 8, 10)})
    replayed(history((ORDER, ASKED), (ORDER, CANCELLED)), fold)
    assert fold.customers == {ANN: CustomerState(5000, 2)}
    assert fold.products == {PEN: ProductState(1000, 10, 10, 2)}
    assert fold.orders == {ORDER: OrderState(ANN, PEN, 2, Status.CANCELLED, 2000, 2)}


def test_a_placed_order_is_pending_until_its_decision_is_applied() -> None:
    fold = replayed(history((ANN, REGISTERED), (PEN, LISTED), (ORDER, PLACED)))
    assert fold.orders == {ORDER: OrderState(ANN, PEN, 2, Status.PENDING, 0, 3)}
    assert fold.customers == {ANN: CustomerState(5000, 1)}
    assert fold.products == {PEN: ProductState(1000, 10, 10, 2)}


@pytest.mark.parametrize(
    "refusal", [CANCEL_REFUSED, REFUSED, SubmissionRefused(Reason.UNKNOWN_ORDER)]
)
@pytest.mark.parametrize("at", [ORDER, ANN, PEN, NOBODY])
def test_a_refusal_applied_changes_nothing(refusal: AnyPayload, at: UUID) -> None:
    story = given(customer(), product(), order())
    replayed(history((at, ASKED), (at, refusal)), story.fold)
    assert story.fold.orders[ORDER].status is Status.COMPLETED
    assert story.fold.customers == {ANN: CustomerState(499_000, 4)}
    assert story.fold.products == {PEN: ProductState(1000, 9, 10, 4)}
    assert len(story.fold.orders) == 1


@pytest.mark.parametrize(
    ("start", "at", "event", "names"),
    [
        ((), ANN, WalletCredited(1), "customer was credited"),
        ((product(),), PEN, WalletCredited(1), "customer was credited"),
        ((), PEN, StockReceived(1), "never listed"),
        ((customer(),), ANN, StockReceived(1), "never listed"),
        ((), PEN, PriceChanged(1), "never listed"),
        ((), ORDER, FAILED, "never placed"),
        ((customer(),), ANN, FAILED, "never placed"),
        ((product(),), ORDER, COMPLETED, "nobody has"),
        ((customer(),), ORDER, COMPLETED, "nobody has"),
        ((customer(),), ORDER, CANCELLED, "nobody has"),
        ((customer(1999), product()), ORDER, COMPLETED, "wallet would hold -1"),
        ((customer(), product(stock=1)), ORDER, COMPLETED, "stock would be -1"),
    ],
)
def test_a_history_that_violates_an_invariant_is_refused(
    start: tuple[tuple[UUID, AnyPayload], ...], at: UUID, event: AnyPayload, names: str
) -> None:
    fold = replayed(history(*start))
    customers, products = dict(fold.customers), dict(fold.products)
    with pytest.raises(InvariantViolated, match=names):
        fold.apply(Recorded(9, at, 0, 0, event))
    assert fold.customers == customers
    assert fold.products == products
    assert fold.orders == {}


def test_a_balance_and_a_stock_may_be_exactly_zero() -> None:
    fold = replayed(history(customer(2000), product(stock=2), (ORDER, PLACED), (ORDER, COMPLETED)))
    assert fold.customers == {ANN: CustomerState(0, 4)}
    assert fold.products == {PEN: ProductState(1000, 0, 2, 4)}


@pytest.mark.parametrize(
    ("event", "moved_minor"),
    [
        (REGISTERED, 5000),
        (WalletCredited(7), 7),
        (COMPLETED, -2000),
        (CANCELLED, 2000),
        (LISTED, 0),
        (StockReceived(3), 0),
        (PriceChanged(3), 0),
        (PLACED, 0),
        (ASKED, 0),
        (FAILED, 0),
        (CANCEL_REFUSED, 0),
        (REFUSED, 0),
    ],
)
def test_money_moved_is_exact_for_every_event(event: AnyPayload, moved_minor: int) -> None:
    assert money_moved_minor(event) == moved_minor


@pytest.mark.parametrize(
    ("decided", "refused"),
    [
        ((), False),
        ((REFUSED,), True),
        ((COMPLETED,), False),
        ((FAILED,), False),
        ((CANCEL_REFUSED,), False),
    ],
)
def test_only_a_refused_submission_has_no_effect(
    decided: tuple[OrderCompleted | OrderFailed | OrderCancelRefused | SubmissionRefused, ...],
    refused: bool,
) -> None:
    assert is_refusal(decided) is refused


def test_evolve_leaves_the_state_it_was_given_as_it_was() -> None:
    state = State(OrderState(ANN, PEN, 2), CustomerState(5000), ProductState(1000, 10, 10))
    evolved = evolve(state, COMPLETED, 7)
    assert state == State(OrderState(ANN, PEN, 2), CustomerState(5000), ProductState(1000, 10, 10))
    assert evolved == State(
        OrderState(ANN, PEN, 2, Status.COMPLETED, 2000, 7),
        CustomerState(3000, 7),
        ProductState(1000, 8, 10, 7),
    )


def test_two_folds_share_nothing() -> None:
    one, other = Fold(), Fold()
    one.apply(Recorded(1, ANN, 0, 0, REGISTERED))
    assert other.customers == {}
