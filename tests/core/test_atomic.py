"""Orders that are decided all or none."""

from uuid import UUID

from ledger.core.decider import CustomerState, Fold, ProductState, Status
from ledger.core.events import (
    CustomerRegistered,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    ProductListed,
    Reason,
    SubmissionRefused,
)

ANN, BOB, TEA, POT = (UUID(int=number) for number in range(1, 5))
FIRST, SECOND, THIRD = (UUID(int=number) for number in range(11, 14))


def shop() -> Fold:
    fold = Fold()
    fold.decide_and_apply(ANN, CustomerRegistered("ann", 10_000))
    fold.decide_and_apply(BOB, CustomerRegistered("bob", 10))
    fold.decide_and_apply(TEA, ProductListed("tea", "", 1_000, 10))
    fold.decide_and_apply(POT, ProductListed("pot", "", 2_000, 1))
    return fold


def test_an_atomic_batch_completes_if_every_order_can() -> None:
    fold = shop()
    decided = fold.decide_and_apply_batch(
        [(FIRST, OrderPlaced(ANN, TEA, 2)), (SECOND, OrderPlaced(ANN, POT))]
    )
    assert decided == [
        (OrderCompleted(ANN, TEA, 2, 1_000, 2_000),),
        (OrderCompleted(ANN, POT, 1, 2_000, 2_000),),
    ]
    assert fold.customers[ANN] == CustomerState(6_000, 3)
    assert fold.products[TEA].stock == 8


def test_a_later_order_sees_what_the_earlier_ones_of_its_batch_took() -> None:
    fold = shop()
    decided = fold.decide_and_apply_batch(
        [(FIRST, OrderPlaced(ANN, TEA, 5)), (SECOND, OrderPlaced(ANN, TEA))]
    )
    assert [
        payload.unit_price_minor for (payload,) in decided if isinstance(payload, OrderCompleted)
    ] == [
        1_000,
        1_200,
    ]


def test_an_atomic_batch_fails_if_one_order_can_not_complete() -> None:
    fold = shop()
    decided = fold.decide_and_apply_batch(
        [
            (FIRST, OrderPlaced(ANN, TEA)),
            (SECOND, OrderPlaced(BOB, TEA)),
            (THIRD, OrderPlaced(ANN, POT)),
        ]
    )
    assert decided == [
        (OrderFailed(Reason.BATCH_FAILED),),
        (OrderFailed(Reason.INSUFFICIENT_BALANCE),),
        (OrderFailed(Reason.BATCH_FAILED),),
    ]
    assert fold.customers == {ANN: CustomerState(10_000), BOB: CustomerState(10)}
    assert fold.products == {TEA: ProductState(1_000, 10, 10), POT: ProductState(2_000, 1, 1)}
    assert {order.status for order in fold.orders.values()} == {Status.FAILED}


def test_an_order_that_is_there_already_fails_its_batch_and_stays_as_it_was() -> None:
    fold = shop()
    fold.decide_and_apply(FIRST, OrderPlaced(ANN, TEA))
    before = fold.orders[FIRST]
    decided = fold.decide_and_apply_batch(
        [(FIRST, OrderPlaced(ANN, TEA)), (SECOND, OrderPlaced(ANN, TEA))]
    )
    assert decided == [
        (SubmissionRefused(Reason.DUPLICATE_ORDER),),
        (OrderFailed(Reason.BATCH_FAILED),),
    ]
    assert fold.orders[FIRST] == before
    assert fold.customers[ANN] == CustomerState(9_000, 1)
