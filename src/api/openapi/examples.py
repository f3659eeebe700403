"""Examples for the OpenAPI document: each body can be posted, each answer is a real shape."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from pydantic import BaseModel

from api import schemas as s
from projections.trial_balance import JournalBalance, Sums
from projections.views.journal import UNIT_OF

_CUSTOMER: Final = UUID("43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")
_PRODUCT: Final = UUID("a1b2c3d4-e5f6-7890-1234-567890abcdef")
_ORDER: Final = UUID("01a2031b-bc0e-73eb-8cd5-4c3d4062033a")
_PLACED: Final = "2026-11-22T11:54:38.990659Z"
_DECIDED: Final = "2026-11-22T11:54:38.994873Z"

BODIES: Final[Mapping[type[BaseModel], dict[str, Any]]] = {
    s.PlaceOrder: {"customer_id": str(_CUSTOMER), "product_id": str(_PRODUCT), "quantity": 2},
    s.PlaceOrders: {
        "orders": [
            {"customer_id": str(_CUSTOMER), "product_id": str(_PRODUCT)},
            {"customer_id": str(_CUSTOMER), "product_id": str(_PRODUCT), "quantity": 2},
        ],
        "atomic": True,
    },
    s.RegisterCustomer: {"username": "ada"},
    s.Deposit: {"amount": 12.5},
    s.ListProduct: {
        "name": "Pocket Telescope",
        "description": "Sees as far as lunch.",
        "base_price": 40.0,
        "stock": 10,
    },
    s.ReceiveStock: {"quantity": 25},
    s.ChangePrice: {"base_price": 44.99},
    s.Nothing: {},
}

_CUSTOMER_NOW: Final = s.Customer(_CUSTOMER, "ada", Decimal("4920.00"), 9)
_PRODUCT_NOW: Final = s.Product(
    _PRODUCT,
    "Pocket Telescope",
    "Sees as far as lunch.",
    Decimal("40.00"),
    Decimal("48.00"),
    4,
    9,
)
_ORDER_NOW: Final = s.Order(
    _ORDER,
    _PRODUCT,
    _CUSTOMER,
    2,
    "COMPLETED",
    _PLACED,
    _DECIDED,
    Decimal("40.00"),
    Decimal("80.00"),
    None,
    9,
)

_SUMS: Final = {
    "deposits": Sums(500_000, 0),
    "wallet": Sums(8_000, 500_000),
    "revenue": Sums(0, 8_000),
    "stock": Sums(10, 2),
    "received": Sums(0, 10),
    "sold": Sums(2, 0),
}
_TRIAL_BALANCE: Final = JournalBalance(
    9, {(account, unit): _SUMS.get(account, Sums()) for account, unit in UNIT_OF.items()}
)

ANSWERS: Final[Mapping[type[Struct], Struct]] = {
    type(example): example
    for example in (
        _CUSTOMER_NOW,
        _PRODUCT_NOW,
        _ORDER_NOW,
        s.PlacedOrders([_ORDER_NOW]),
        s.DryRun(_PRODUCT, _CUSTOMER, 2, "COMPLETED", Decimal("40.00"), Decimal("80.00"), None, 9),
        s.AcceptedOrder(_ORDER, _PRODUCT, _CUSTOMER, 2, "PENDING", _PLACED, _PLACED),
        s.AcceptedCancel(_ORDER, s.ACCEPTED),
        s.AcceptedCustomer(_CUSTOMER, s.ACCEPTED),
        s.AcceptedProduct(_PRODUCT, s.ACCEPTED),
        s.Products([_PRODUCT_NOW], None),
        s.Orders([_ORDER_NOW], 8),
        s.trial_balance(_TRIAL_BALANCE),
        s.Live(),
        s.Explained("/problems/out-of-stock", "Not enough in stock", 409, "Order fewer units"),
        s.Ready("ready", True, True, True, 9, 0, True),
    )
}
