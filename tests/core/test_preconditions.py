"""A submission that names the state its client saw is decided on that state, or refused."""

from uuid import UUID

import pytest
from hypothesis import given as each
from hypothesis import strategies as st
from msgspec import Struct

from ledger.core.events import (
    MAX_AMOUNT_MINOR,
    MAX_BALANCE_MINOR,
    MAX_STOCK,
    OrderCancelRefused,
    Reason,
    SubmissionRefused,
)
from tests.submissions import (
    BOB,
    INK,
    NOBODY,
    ORDER,
    OTHER_ORDER,
    PEN,
    Submission,
    cancel,
    conditional,
    credit,
    customer,
    erasure,
    order,
    price,
    product,
    receipt,
)

from .story import given, remembered

STALE = SubmissionRefused(Reason.PRECONDITION_FAILED)
SHOP = (customer(), product(), order())
CHANGES = (credit(5), receipt(5), price(5), cancel())


@pytest.mark.parametrize("change", CHANGES)
def test_what_names_the_state_at_hand_is_decided_as_without_it(change: Submission) -> None:
    named, plain = given(*SHOP), given(*SHOP).when(change)
    named.when(conditional(change, named.seen(change[0]))).then(*plain.decided)
    assert remembered(named.fold) == remembered(plain.fold)
    assert named.seen(change[0]) == named.position


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("off", [-3, -1, 1, 100])
def test_what_names_another_state_is_refused_and_changes_nothing(
    change: Submission, off: int
) -> None:
    story = given(*SHOP)
    other = max(0, story.seen(change[0]) + off)
    story.when(conditional(change, other)).then(STALE).changes_nothing()


@pytest.mark.parametrize(
    ("change", "between"),
    [
        (credit(5), credit(1)),
        (credit(5), erasure()),
        (credit(5), order(1, OTHER_ORDER)),
        (credit(5), cancel()),
        (receipt(5), price(7)),
        (price(5), receipt(1)),
        (price(5), price(1000)),
        (price(5), order(1, OTHER_ORDER)),
        (price(5), cancel()),
    ],
)
def test_every_change_in_between_makes_a_precondition_fail(
    change: Submission, between: Submission
) -> None:
    """Also one that leaves all numbers as they were: the client has not seen it."""
    story = given(*SHOP)
    seen = story.seen(change[0])
    story.when(between, conditional(change, seen)).then(STALE)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_others_or_is_refused_leaves_a_precondition_true(change: Submission) -> None:
    story = given(*SHOP)
    seen = story.seen(change[0])
    story.when(customer(7, BOB), product(at=INK), credit(1, BOB), receipt(1, INK), price(1, INK))
    story.when(customer(), product(), price(5, NOBODY), order(), order(99, OTHER_ORDER))
    story.when(*(conditional(other, 0) for other in CHANGES))
    assert story.when(conditional(change, seen)).decided != (STALE,)


def test_a_customer_product_or_order_that_is_not_there_is_unknown_whatever_was_named() -> None:
    story = given()
    for change, reason in zip(
        CHANGES,
        ("UNKNOWN_CUSTOMER", "UNKNOWN_PRODUCT", "UNKNOWN_PRODUCT", "UNKNOWN_ORDER"),
        strict=True,
    ):
        story.when(conditional(change, 3)).then(SubmissionRefused(Reason(reason)))


def test_what_can_never_be_cancelled_is_the_reason_before_an_outdated_state() -> None:
    """To read it again would not help."""
    story = given(*SHOP)
    seen = story.seen(ORDER)
    story.when(cancel(), conditional(cancel(), seen))
    story.then(OrderCancelRefused(Reason.ALREADY_CANCELLED))


def test_an_outdated_state_is_the_reason_before_any_limit() -> None:
    """Who saw another state must look again: what the limits say is about a state unseen."""
    story = given(customer(MAX_BALANCE_MINOR // 10**4), product(stock=MAX_STOCK))
    for change in (credit(MAX_AMOUNT_MINOR), receipt(MAX_STOCK)):
        story.when(conditional(change, 0)).then(STALE)


class Seen(Struct):
    """What a client read of the product: its price, and where that was."""

    price_minor: int
    position: int


Steps = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["reads", "raises", "sells", "receives"])),
    max_size=60,
)


@each(Steps)
def test_no_update_of_a_client_that_names_what_it_saw_is_lost(
    steps: list[tuple[int, str]],
) -> None:
    """Four clients read, and add one to the price that they read, in any order."""
    story = given(customer(10**12), product(1000, 10**6))
    seen: dict[int, Seen] = {}
    raised = 0
    for number, (client, does) in enumerate(steps):
        now = story.fold.products[PEN]
        match does:
            case "reads":
                seen[client] = Seen(now.base_price_minor, now.position)
            case "sells":
                story.when(order(1, UUID(int=0xE00 + number)))
            case "receives":
                story.when(receipt(1))
            case "raises" if client in seen:
                saw = seen[client]
                story.when(conditional(price(saw.price_minor + 1), saw.position))
                story.then(*(() if saw.position == now.position else (STALE,)))
                raised += not story.decided
    assert story.fold.products[PEN].base_price_minor == 1000 + raised
