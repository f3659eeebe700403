"""A second opinion: the rules of the ledger written again, naively, from the design alone.

It shares no code with the fold. It decide submitted events as a type and plain data, keeps plain
dicts, reckons in fractions and predicts every decided event.
"""

from collections.abc import Callable
from fractions import Fraction
from math import floor
from typing import Any
from uuid import UUID

Data = dict[str, Any]
Events = list[tuple[str, Data]]

LARGEST_BALANCE = 10_000_000_000_000_00
LARGEST_STOCK = 1_000_000_000


class Auditor:
    """Keeps balances, stocks and orders by hand, and predicts each decision."""

    def __init__(self) -> None:
        self.money: dict[UUID, int] = {}
        self.shop: dict[UUID, Data] = {}
        self.orders: dict[UUID, Data] = {}
        self.imported: set[UUID] = set()
        self.paid_in = 0
        self.delivered: dict[UUID, int] = {}
        self.changed_at: dict[UUID, int] = {}

    def decide(self, stream: UUID, name: str, data: Data, position: int) -> Events:
        """What the ledger must decide of this event at a position."""
        seen = data.pop("expected_position", None)
        decided = self._decide(stream, name, data, seen)
        if not decided:
            self.changed_at[stream] = position
        for number, (kind, told) in enumerate(decided, 1):
            if kind == "order.failed":
                self.changed_at[stream] = position + number
            if kind in ("order.completed", "order.cancelled"):
                ids = stream, told["customer_id"], told["product_id"]
                self.changed_at.update(dict.fromkeys(ids, position + number))
        return decided

    def _decide(self, stream: UUID, name: str, data: Data, seen: int | None) -> Events:
        if name == "order.cancel-requested":
            return self._cancelled(stream, seen)
        of_kind = {"wallet": self.money, "stock": self.shop, "price": self.shop}
        there: Any = of_kind.get(name.split(".", maxsplit=1)[0], self.orders)
        if seen is not None and stream in there and seen != self.changed_at.get(stream, 0):
            return refused("PRECONDITION_FAILED")
        rules: dict[str, Callable[[UUID, Data], Events]] = {
            "customer.registered": self._registered,
            "customer.erased": self._erased,
            "wallet.credited": self._credited,
            "product.listed": self._listed,
            "stock.received": self._received,
            "price.changed": self._repriced,
            "order.placed": self._placed,
        }
        return rules[name](stream, data)

    def open_wallet(self, customer: UUID, balance: int) -> None:
        self.money[customer] = balance
        self.paid_in += balance

    def list_product(self, product: UUID, price: int, stock: int, initial: int) -> None:
        self.shop[product] = {"price": price, "stock": stock, "initial": initial}
        self.delivered[product] = stock

    def sold(self, product: UUID) -> int:
        """Units of the product in orders that stand."""
        return sum(
            order["quantity"]
            for stream, order in self.orders.items()
            if order["status"] == "COMPLETED"
            and order["product"] == product
            and stream not in self.imported
        )

    def spent(self) -> int:
        """Money in orders that stand."""
        return sum(o["total"] for o in self.orders.values() if o["status"] == "COMPLETED")

    def _taken(self, stream: UUID) -> bool:
        return stream in self.money or stream in self.shop or stream in self.orders

    def _registered(self, stream: UUID, data: Data) -> Events:
        if self._taken(stream):
            return refused("DUPLICATE_CUSTOMER")
        self.open_wallet(stream, data["opening_balance_minor"])
        return []

    def _erased(self, stream: UUID, _: Data) -> Events:
        return [] if stream in self.money else refused("UNKNOWN_CUSTOMER")

    def _credited(self, stream: UUID, data: Data) -> Events:
        if stream not in self.money:
            return refused("UNKNOWN_CUSTOMER")
        if self.money[stream] + data["amount_minor"] > LARGEST_BALANCE:
            return refused("BALANCE_LIMIT")
        self.money[stream] += data["amount_minor"]
        self.paid_in += data["amount_minor"]
        return []

    def _listed(self, stream: UUID, data: Data) -> Events:
        if self._taken(stream):
            return refused("DUPLICATE_PRODUCT")
        initial = data["initial_stock"]
        stock = data.get("stock", initial)
        self.list_product(stream, data["base_price_minor"], stock, initial)
        return []

    def _received(self, stream: UUID, data: Data) -> Events:
        if stream not in self.shop:
            return refused("UNKNOWN_PRODUCT")
        stock = self.shop[stream]["stock"] + data["quantity"]
        if stock > LARGEST_STOCK:
            return refused("STOCK_LIMIT")
        self.shop[stream].update(stock=stock, initial=stock)
        self.delivered[stream] += data["quantity"]
        return []

    def _repriced(self, stream: UUID, data: Data) -> Events:
        if stream not in self.shop:
            return refused("UNKNOWN_PRODUCT")
        self.shop[stream]["price"] = data["base_price_minor"]
        return []

    def _placed(self, stream: UUID, data: Data) -> Events:
        if self._taken(stream):
            return refused("DUPLICATE_ORDER")
        who, what, quantity = data["customer_id"], data["product_id"], data["quantity"]
        order = {"customer": who, "product": what, "quantity": quantity, "total": 0}
        self.orders[stream] = order
        if "history" in data:
            self.imported.add(stream)
            order["status"] = data["history"]["status"]
            return []
        why = self._order_failure(who, what, quantity)
        if why:
            order["status"] = "FAILED"
            return [("order.failed", {"reason": why})]
        price = self._price(what)
        order.update(status="COMPLETED", total=price * quantity)
        self.money[who] -= price * quantity
        self.shop[what]["stock"] -= quantity
        return [
            (
                "order.completed",
                {**data, "unit_price_minor": price, "total_minor": price * quantity},
            )
        ]

    def _order_failure(self, who: UUID, what: UUID, quantity: int) -> str | None:
        if what not in self.shop:
            return "UNKNOWN_PRODUCT"
        if who not in self.money:
            return "UNKNOWN_CUSTOMER"
        if self.shop[what]["stock"] < quantity:
            return "INSUFFICIENT_STOCK"
        if self.money[who] < self._price(what) * quantity:
            return "INSUFFICIENT_BALANCE"
        return None

    def _price(self, what: UUID) -> int:
        product = self.shop[what]
        left = Fraction(product["stock"], product["initial"] or 1)
        if left > Fraction(50, 100):
            factor = Fraction(1)
        elif left > Fraction(25, 100):
            factor = Fraction(12, 10)
        else:
            factor = Fraction(15, 10)
        price: int = product["price"]
        return floor(price * factor + Fraction(1, 2))

    def _cancelled(self, stream: UUID, seen: int | None) -> Events:
        if stream not in self.orders:
            return refused("UNKNOWN_ORDER")
        order = self.orders[stream]
        if order["status"] == "COMPLETED" and stream in self.imported:
            return [("order.cancel-refused", {"reason": "IMPORTED"})]
        why = self._cancel_refusal(order)
        if order["status"] == "COMPLETED" and seen not in (None, self.changed_at.get(stream, 0)):
            return refused("PRECONDITION_FAILED")
        if why:
            return [("order.cancel-refused", {"reason": why})]
        order["status"] = "CANCELLED"
        self.money[order["customer"]] += order["total"]
        self.shop[order["product"]]["stock"] += order["quantity"]
        return [
            (
                "order.cancelled",
                {
                    "customer_id": order["customer"],
                    "product_id": order["product"],
                    "quantity": order["quantity"],
                    "refund_minor": order["total"],
                },
            )
        ]

    def _cancel_refusal(self, order: Data) -> str | None:
        if order["status"] == "CANCELLED":
            return "ALREADY_CANCELLED"
        if order["status"] == "FAILED":
            return "NOT_COMPLETED"
        if self.money[order["customer"]] + order["total"] > LARGEST_BALANCE:
            return "BALANCE_LIMIT"
        if self.shop[order["product"]]["stock"] + order["quantity"] > LARGEST_STOCK:
            return "STOCK_LIMIT"
        return None


def refused(reason: str) -> Events:
    return [("submission.refused", {"reason": reason})]
