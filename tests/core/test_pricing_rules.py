"""Rules have versions: what was decided by old ones can be decided by them for ever."""

from decimal import Decimal
from uuid import UUID

import pytest

from ledger.core.decider import CustomerState, Fold, ProductState, State, decide
from ledger.core.events import OrderCompleted, OrderFailed, OrderPlaced, Reason
from ledger.core.pricing import CURRENT_RULES, RULES, Rules, Tier, unit_price_minor
from projections.views.stock import STOCK
from tests.submissions import ANN, PEN

DEARER = Rules(2, (Tier(80, Decimal(1)), Tier(40, Decimal("1.25"))), Decimal(3))
EVER = {1: "50 % 1.0, 25 % 1.2, else 1.5"}
PLACED = OrderPlaced(ANN, PEN, 1)


def test_no_version_of_the_rules_ever_changes_or_goes() -> None:
    assert {version: told(rules) for version, rules in RULES.items()} == EVER


def told(rules: Rules) -> str:
    """All that rules say, in a line."""
    tiers = [f"{tier.above_percent} % {tier.factor}" for tier in rules.tiers]
    return ", ".join([*tiers, f"else {rules.last_factor}"])


def test_every_version_stands_under_its_own_number_and_the_newest_is_in_force() -> None:
    assert [rules.version for rules in RULES.values()] == [*range(1, len(RULES) + 1)]
    assert CURRENT_RULES.version == len(RULES)


def test_the_stock_view_is_another_version_when_the_rules_are() -> None:
    assert CURRENT_RULES.version <= STOCK.version


@pytest.mark.parametrize(
    ("stock", "price"), [(100, 1000), (81, 1000), (80, 1250), (41, 1250), (40, 3000), (0, 3000)]
)
def test_other_rules_ask_other_prices(stock: int, price: int) -> None:
    assert unit_price_minor(1000, stock, 100, DEARER) == price


def test_rules_without_tiers_ask_the_same_price_always() -> None:
    flat = Rules(2, (), Decimal("1.1"))
    assert {unit_price_minor(1000, stock, 10, flat) for stock in range(11)} == {1100}


def test_an_order_is_decided_by_the_rules_that_are_given() -> None:
    state = State(None, CustomerState(1000), ProductState(1000, 40, 100))
    assert decide(state, PLACED, DEARER) == (OrderFailed(Reason.INSUFFICIENT_BALANCE),)
    rich = State(None, CustomerState(9000), ProductState(1000, 40, 100))
    assert decide(rich, PLACED, DEARER) == (OrderCompleted(ANN, PEN, 1, 3000, 3000),)


def test_a_fold_decides_by_its_rules_what_stands_alone_and_what_is_all_or_none() -> None:
    fold = Fold({ANN: CustomerState(5500)}, {PEN: ProductState(1000, 80, 100)}, DEARER)
    first, second = UUID(int=1), UUID(int=2)
    assert fold.decide_and_apply(first, PLACED) == (OrderCompleted(ANN, PEN, 1, 1250, 1250),)
    assert fold.decide_and_apply_batch([(second, OrderPlaced(ANN, PEN, 3))]) == [
        (OrderCompleted(ANN, PEN, 3, 1250, 3750),)
    ]
    assert fold.customers[ANN].balance_minor == 500
