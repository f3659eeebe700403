"""A submission that names the state its client saw is decided on that state, or refused."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given as each
from hypothesis import strategies as st
from msgspec import Struct, structs

from ledger.core.decider import Fold
from ledger.core.events import (
    MAX_AMOUNT_MINOR,
    MAX_BALANCE_MINOR,
    MAX_STOCK,
    Conditional,
    OrderCancelRefused,
    Reason,
    SubmissionRefused,
    SubmittedPayload,
)

from .story import (
    BOB,
    INK,
    NOBODY,
    ORDER,
    OTHER_ORDER,
    PEN,
    Submission,
    cancel,
    credit,
    customer,
    erasure,
    order,
    price,
    product,
    receipt,
    remembered,
)

STALE = (SubmissionRefused(Reason.PRECONDITION_FAILED),)
SHOP = (customer(), product(), order())
CHANGES = (credit(5), receipt(5), price(5), cancel())
OTHERS = (order(1, OTHER_ORDER), order(1, OTHER_ORDER, of=NOBODY))


class Ledger(Struct):
    """A fold that takes submissions at the positions that a ledger gives them."""

    fold: Fold
    position: int = 0

    def submit(self, *submissions: Submission) -> tuple[Any, ...]:
        """What was decided of the last one."""
        decided: tuple[Any, ...] = ()
        for stream_id, event in submissions:
            decided = self.fold.decide_and_apply(stream_id, event, self.position + 1)
            self.position += 1 + len(decided)
        return decided

    def state(self, key: UUID) -> Any:
        fold = self.fold
        return fold.customers.get(key) or fold.products.get(key) or fold.orders[key]


def shop() -> Ledger:
    ledger = Ledger(Fold())
    ledger.submit(*SHOP)
    return ledger


def naming(position: int, submission: Submission) -> Submission:
    """The submission of a client that saw the state of a position."""
    stream_id, event = submission
    assert isinstance(event, Conditional)
    conditional: SubmittedPayload = structs.replace(event, expected_position=position)
    return stream_id, conditional


@pytest.mark.parametrize("change", CHANGES)
def test_what_names_the_state_at_hand_is_decided_as_without_it(change: Submission) -> None:
    named, plain = shop(), shop()
    seen = named.state(change[0]).position
    assert named.submit(naming(seen, change)) == plain.submit(change)
    assert remembered(named.fold) == remembered(plain.fold)
    assert named.state(change[0]).position == named.position


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("off", [-3, -1, 1, 100])
def test_what_names_another_state_is_refused_and_changes_nothing(
    change: Submission, off: int
) -> None:
    ledger = shop()
    before = remembered(ledger.fold)
    seen = ledger.state(change[0]).position
    assert ledger.submit(naming(max(0, seen + off), change)) == STALE
    assert remembered(ledger.fold) == before


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
    ledger = shop()
    seen = ledger.state(change[0]).position
    ledger.submit(between)
    assert ledger.submit(naming(seen, change)) == STALE


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_others_or_is_refused_leaves_a_precondition_true(change: Submission) -> None:
    ledger = shop()
    seen = ledger.state(change[0]).position
    ledger.submit(customer(7, BOB), product(at=INK), credit(1, BOB), receipt(1, INK), price(1, INK))
    ledger.submit(customer(), product(), price(5, NOBODY), order(), order(99, OTHER_ORDER))
    ledger.submit(*(naming(0, other) for other in CHANGES))
    assert ledger.submit(naming(seen, change)) != STALE


def test_a_customer_product_or_order_that_is_not_there_is_unknown_whatever_was_named() -> None:
    ledger = Ledger(Fold())
    for change, reason in zip(
        CHANGES,
        ("UNKNOWN_CUSTOMER", "UNKNOWN_PRODUCT", "UNKNOWN_PRODUCT", "UNKNOWN_ORDER"),
        strict=True,
    ):
        assert ledger.submit(naming(3, change)) == (SubmissionRefused(Reason(reason)),)


def test_what_can_never_be_cancelled_is_the_reason_before_an_outdated_state() -> None:
    """To read it again would not help."""
    ledger = shop()
    seen = ledger.state(ORDER).position
    ledger.submit(cancel())
    again = ledger.submit(naming(seen, cancel()))
    assert again == (OrderCancelRefused(Reason.ALREADY_CANCELLED),)


def test_an_outdated_state_is_the_reason_before_any_limit() -> None:
    """Who saw another state must look again: what the limits say is about a state unseen."""
    ledger = Ledger(Fold())
    ledger.submit(customer(MAX_BALANCE_MINOR // 10**4), product(stock=MAX_STOCK))
    for change in (credit(MAX_AMOUNT_MINOR), receipt(MAX_STOCK)):
        assert ledger.submit(naming(0, change)) == STALE


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
    ledger = Ledger(Fold())
    ledger.submit(customer(10**12), product(1000, 10**6))
    seen: dict[int, Seen] = {}
    raised = 0
    for number, (client, does) in enumerate(steps):
        now = ledger.state(PEN)
        match does:
            case "reads":
                seen[client] = Seen(now.base_price_minor, now.position)
            case "sells":
                ledger.submit(order(1, UUID(int=0xE00 + number)))
            case "receives":
                ledger.submit(receipt(1))
            case "raises" if client in seen:
                saw = seen[client]
                decided = ledger.submit(naming(saw.position, price(saw.price_minor + 1)))
                assert decided == (() if saw.position == now.position else STALE)
                raised += not decided
    assert ledger.state(PEN).base_price_minor == 1000 + raised
