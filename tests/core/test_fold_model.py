"""The fold against an independent auditor, over random histories with collisions and repeats."""

from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import UNSET, Struct, structs

from ledger.core.decider import CustomerState, Fold, OrderState, ProductState, evolve_order
from ledger.core.events import (
    SUBMITTED,
    TYPE_OF,
    AnyPayload,
    CustomerErased,
    CustomerRegistered,
    DecidedPayload,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderFailed,
    OrderHistory,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    Recorded,
    StockReceived,
    SubmissionRefused,
    SubmittedPayload,
    WalletCredited,
)
from ledger.core.invariants import money_moved_minor
from tests.core.story import effective

from .auditor import Auditor
from .story import Remembered, remembered

Delivery = tuple[UUID, UUID, SubmittedPayload]

CUSTOMERS = [UUID(int=0xA0 + n) for n in range(3)]
PRODUCTS = [UUID(int=0xB0 + n) for n in range(3)]
ORDERS = [UUID(int=0xC0 + n) for n in range(8)]
RICH, POOR = CUSTOMERS[:2]
FULL, FEW = PRODUCTS[:2]


def mostly(ids: list[UUID]) -> st.SearchStrategy[UUID]:
    """One of these ids, now and then one of another kind."""
    others = [CUSTOMERS[0], PRODUCTS[0], ORDERS[0]]
    return st.sampled_from([*ids, *ids, *ids, *others])


amounts = st.one_of(st.integers(1, 500), st.sampled_from([10**12 - 1, 10**12]))
balances = st.one_of(st.integers(0, 3000), st.sampled_from([0, 10**12]))
stocks = st.one_of(st.integers(0, 12), st.sampled_from([0, 10**9]))
receipts = st.one_of(st.integers(1, 8), st.sampled_from([10**9 - 10, 10**9]))
quantities = st.one_of(st.integers(1, 4), st.integers(1, 10**6))
histories = st.sampled_from(["COMPLETED", "FAILED", "CANCELLED"]).map(lambda s: OrderHistory(s, 7))
# How far what a client saw is from the state at hand; None for no precondition.
seen = st.sampled_from([None, None, 0, 0, 1, 2, -1])


class Bookkeeping(RuleBasedStateMachine):
    """Delivers events, some of them twice, and compares every answer with the auditor's."""

    def __init__(self) -> None:
        super().__init__()
        self.fold = Fold()
        self.auditor = Auditor()
        self.start: tuple[dict[UUID, CustomerState], dict[UUID, ProductState]] = ({}, {})
        self.deliveries: list[Delivery] = []
        self.seen: set[UUID] = set()
        self.decided: list[tuple[DecidedPayload, ...]] = []
        self.ledger: list[Recorded] = []

    @initialize(
        room=st.integers(0, 300),
        affords=st.integers(0, 6),
        few=st.sampled_from([1, 2, 4, 8]),
        price=st.integers(1, 300),
    )
    def starts_from_a_snapshot_near_the_limits(
        self, room: int, affords: int, few: int, price: int
    ) -> None:
        wallets = {RICH: 10**15 - room, POOR: price * affords}
        shelves = {FULL: (price, 10**9 - room % 4), FEW: (price, few)}
        self.start = (
            {at: CustomerState(balance) for at, balance in wallets.items()},
            {at: ProductState(base, stock, stock) for at, (base, stock) in shelves.items()},
        )
        self.fold = self._fresh()
        for at, balance in wallets.items():
            self.auditor.open_wallet(at, balance)
        for at, (base, stock) in shelves.items():
            self.auditor.list_product(at, base, stock, stock)

    @rule(at=mostly(CUSTOMERS), balance=balances)
    def registers(self, at: UUID, balance: int) -> None:
        self._deliver(at, CustomerRegistered("ann", balance))

    @rule(at=mostly(CUSTOMERS))
    def erases(self, at: UUID) -> None:
        self._deliver(at, CustomerErased())

    def _seen(self, at: UUID, ago: int | None) -> int | None:
        """What a client names that saw the state at hand, or an earlier or later one."""
        states = (self.fold.customers, self.fold.products, self.fold.orders)
        state = next((states_[at] for states_ in states if at in states_), None)
        return None if ago is None else max(0, (state.position if state else 0) - ago)

    @rule(at=mostly(CUSTOMERS), amount=amounts, ago=seen)
    def pays_in(self, at: UUID, amount: int, ago: int | None) -> None:
        expected = self._seen(at, ago)
        self._deliver(at, WalletCredited(amount, expected_position=expected))

    @rule(at=mostly(PRODUCTS), price=amounts, stock=stocks)
    def lists(self, at: UUID, price: int, stock: int) -> None:
        self._deliver(at, ProductListed("pen", "", price, stock))

    @rule(at=mostly(PRODUCTS), price=amounts, initial_stock=stocks, stock=stocks)
    def lists_what_was_imported(self, at: UUID, price: int, initial_stock: int, stock: int) -> None:
        self._deliver(at, ProductListed("pen", "", price, initial_stock, stock))

    @rule(at=mostly(PRODUCTS), quantity=receipts, ago=seen)
    def receives(self, at: UUID, quantity: int, ago: int | None) -> None:
        expected = self._seen(at, ago)
        self._deliver(at, StockReceived(quantity, expected_position=expected))

    @rule(at=mostly(PRODUCTS), price=amounts, ago=seen)
    def reprices(self, at: UUID, price: int, ago: int | None) -> None:
        self._deliver(at, PriceChanged(price, expected_position=self._seen(at, ago)))

    @rule(at=mostly(ORDERS), by=mostly(CUSTOMERS), of=mostly(PRODUCTS), quantity=quantities)
    def orders(self, at: UUID, by: UUID, of: UUID, quantity: int) -> None:
        self._deliver(at, OrderPlaced(by, of, quantity))

    @rule(
        at=st.sampled_from(ORDERS),
        by=st.sampled_from([RICH, POOR]),
        of=st.sampled_from([FULL, FEW]),
        quantity=st.integers(1, 4),
    )
    def orders_what_is_there(self, at: UUID, by: UUID, of: UUID, quantity: int) -> None:
        self._deliver(at, OrderPlaced(by, of, quantity))

    @rule(at=mostly(ORDERS), by=mostly(CUSTOMERS), of=mostly(PRODUCTS), history=histories)
    def orders_as_history(self, at: UUID, by: UUID, of: UUID, history: OrderHistory) -> None:
        self._deliver(at, OrderPlaced(by, of, 1, history))

    @precondition(lambda self: self.fold.products)
    @rule(at=st.sampled_from(ORDERS), data=st.data())
    def orders_half_of_what_is_left(self, at: UUID, data: st.DataObject) -> None:
        of = data.draw(st.sampled_from(list(self.fold.products)))
        half = max(1, self.fold.products[of].stock // 2)
        self._deliver(at, OrderPlaced(RICH, of, half))

    @rule(at=mostly(ORDERS), ago=seen)
    def cancels(self, at: UUID, ago: int | None) -> None:
        self._deliver(at, OrderCancelRequested(expected_position=self._seen(at, ago)))

    @precondition(lambda self: self.fold.orders)
    @rule(data=st.data())
    def cancels_what_was_ordered(self, data: st.DataObject) -> None:
        self._deliver(data.draw(st.sampled_from(list(self.fold.orders))), OrderCancelRequested())

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def the_broker_delivers_again(self, data: st.DataObject) -> None:
        before = remembered(self.fold)
        self._take(data.draw(st.sampled_from(self.deliveries)))
        assert remembered(self.fold) == before

    def _deliver(self, stream: UUID, payload: SubmittedPayload) -> None:
        self._take((UUID(int=len(self.deliveries) + 1), stream, payload))

    def _take(self, delivery: Delivery) -> None:
        event_id, stream, payload = delivery
        self.deliveries.append(delivery)
        if event_id in self.seen:
            return
        self.seen.add(event_id)
        before = remembered(self.fold)
        position = len(self.ledger) + 1
        decided = self.fold.decide_and_apply(stream, payload, position)
        told = self.auditor.decide(stream, *plain(payload), position)
        assert [plain(each) for each in decided] == told
        refusal_changes_nothing(decided, before, remembered(self.fold), stream)
        self.decided.append(decided)
        self._record(stream, payload)
        for each in decided:
            self._record(stream, each)

    def _record(self, stream: UUID, payload: AnyPayload) -> None:
        self.ledger.append(Recorded(len(self.ledger) + 1, stream, 0, 0, payload))

    def _fresh(self) -> Fold:
        customers, products = self.start
        return Fold(dict(customers), dict(products))

    @invariant()
    def every_balance_and_every_stock_is_the_auditors(self) -> None:
        fold, auditor = self.fold, self.auditor
        assert {k: v.balance_minor for k, v in fold.customers.items()} == auditor.money
        assert {k: shelf(v) for k, v in fold.products.items()} == auditor.shop
        assert {k: bill(v) for k, v in fold.orders.items()} == auditor.orders

    @invariant()
    def every_state_names_the_position_that_last_changed_it(self) -> None:
        states = {**self.fold.customers, **self.fold.products, **self.fold.orders}
        positions = {k: v.position for k, v in states.items() if v.position}
        assert positions == {k: v for k, v in self.auditor.changed_at.items() if k in states}

    @invariant()
    def money_and_units_are_neither_made_nor_lost(self) -> None:
        wallets = sum(each.balance_minor for each in self.fold.customers.values())
        assert wallets == self.auditor.paid_in - self.auditor.spent()
        for product, each in self.fold.products.items():
            assert each.stock == self.auditor.delivered[product] - self.auditor.sold(product)

    @invariant()
    def nothing_is_below_zero_or_over_its_limit(self) -> None:
        assert all(0 <= each.balance_minor <= 10**15 for each in self.fold.customers.values())
        assert all(0 <= each.stock <= 10**9 for each in self.fold.products.values())

    def teardown(self) -> None:
        if len(self.decided) < len(self.seen):
            return  # a step failed, and its own message says more
        self._the_money_of_the_record_adds_up()
        self._a_replay_ends_in_the_same_state()
        self._the_same_history_is_decided_the_same_way()
        self._each_order_is_told_by_its_own_stream()

    def _the_money_of_the_record_adds_up(self) -> None:
        moved = sum(money_moved_minor(event.payload) for event in effective(self.ledger))
        wallets = sum(each.balance_minor for each in self.fold.customers.values())
        assert wallets == sum(each.balance_minor for each in self.start[0].values()) + moved

    def _a_replay_ends_in_the_same_state(self) -> None:
        fold, forgetful = self._fresh(), self._fresh()
        for event in effective(self.ledger):
            fold.apply(event)
            if type(event.payload) in SUBMITTED.values():
                forgetful.orders.clear()
            forgetful.apply(event)
        assert remembered(fold) == remembered(self.fold)
        assert forgetful.customers == self.fold.customers
        assert forgetful.products == self.fold.products

    def _the_same_history_is_decided_the_same_way(self) -> None:
        fold, forgetful = self._fresh(), self._fresh()
        kept: dict[UUID, OrderState] = {}
        decided: list[tuple[DecidedPayload, ...]] = []
        position = 1
        for _, stream, payload in once(self.deliveries):
            decided.append(fold.decide_and_apply(stream, payload, position))
            forgetful.orders = {stream: kept[stream]} if stream in kept else {}
            assert forgetful.decide_and_apply(stream, payload, position) == decided[-1]
            position += 1 + len(decided[-1])
            kept |= forgetful.orders
        assert decided == self.decided
        assert remembered(fold) == remembered(self.fold)
        assert kept == self.fold.orders

    def _each_order_is_told_by_its_own_stream(self) -> None:
        for stream in {event.stream_id for event in self.ledger}:
            order: OrderState | None = None
            for event in effective([e for e in self.ledger if e.stream_id == stream]):
                order = evolve_order(order, event.payload, event.position)
            assert order == self.fold.orders.get(stream)


def plain(payload: AnyPayload) -> tuple[str, dict[str, object]]:
    fields = {name: value for name, value in structs.asdict(payload).items() if value is not UNSET}
    return TYPE_OF[type(payload)], {
        name: structs.asdict(value) if isinstance(value, Struct) else value
        for name, value in fields.items()
    }


def shelf(product: ProductState) -> dict[str, int]:
    return {
        "price": product.base_price_minor,
        "stock": product.stock,
        "initial": product.initial_stock,
    }


def bill(order: OrderState) -> dict[str, object]:
    return {
        "customer": order.customer_id,
        "product": order.product_id,
        "quantity": order.quantity,
        "status": order.status,
        "total": order.total_minor,
    }


def refusal_changes_nothing(
    decided: tuple[DecidedPayload, ...], before: Remembered, after: Remembered, stream: UUID
) -> None:
    match decided:
        case (SubmissionRefused() | OrderCancelRefused(),):
            assert after == before
        case (OrderFailed(),):
            assert after[:2] == before[:2]
            assert {k: v for k, v in after[2].items() if k != stream} == before[2]


def once(deliveries: list[Delivery]) -> list[Delivery]:
    """The deliveries without repeats: the first of each event id counts."""
    first: dict[UUID, Delivery] = {}
    for delivery in deliveries:
        first.setdefault(delivery[0], delivery)
    return list(first.values())


TestBookkeeping = Bookkeeping.TestCase
TestBookkeeping.settings = settings(max_examples=200, stateful_step_count=40)
