"""The peer's tables, its settings, and the price, which rises as the stock falls."""

import os
from decimal import ROUND_HALF_UP, Decimal

from sqlalchemy import CHAR, DECIMAL, Column, Integer, MetaData, String, Table

DATABASE_URL = os.environ["PEER_DATABASE_URL"]
REDIS_URL = os.environ["PEER_REDIS_URL"]

METADATA = MetaData()
CUSTOMERS = Table(
    "peer_customers",
    METADATA,
    Column("customer_id", CHAR(36), primary_key=True),
    Column("username", String(100), nullable=False),
    Column("wallet_balance", DECIMAL(15, 2), nullable=False),
)
PRODUCTS = Table(
    "peer_products",
    METADATA,
    Column("product_id", CHAR(36), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("base_price", DECIMAL(15, 2), nullable=False),
    Column("stock", Integer, nullable=False),
    Column("initial_stock", Integer, nullable=False),
)
ORDERS = Table(
    "peer_orders",
    METADATA,
    Column("order_id", CHAR(36), primary_key=True),
    Column("customer_id", CHAR(36), nullable=False),
    Column("product_id", CHAR(36), nullable=False),
    Column("status", String(20), nullable=False, index=True),
    Column("price_paid", DECIMAL(15, 2)),
    Column("failure_reason", String(40)),
)


def price(base_price: Decimal, stock: int, initial_stock: int) -> Decimal:
    """The price of the next unit."""
    left = Decimal(stock) / (initial_stock or 1)
    factor = Decimal("1.0") if left > Decimal("0.5") else Decimal("1.2")
    if left <= Decimal("0.25"):
        factor = Decimal("1.5")
    return (base_price * factor).quantize(Decimal("0.01"), ROUND_HALF_UP)
