"""The peer's REST API: the routes of the contract that the benchmark and the race test use."""

from decimal import Decimal
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import create_engine, insert, select
from sqlalchemy.engine import Connection, RowMapping

from bench.peer.tables import CUSTOMERS, DATABASE_URL, METADATA, ORDERS, PRODUCTS, price
from bench.peer.tasks import process

engine = create_engine(DATABASE_URL, pool_size=20, max_overflow=20)
METADATA.create_all(engine)
app = FastAPI()


class Customer(BaseModel):
    username: str


class Product(BaseModel):
    name: str
    base_price: Decimal
    stock: int


class Deposit(BaseModel):
    amount: Decimal


class Order(BaseModel):
    customer_id: UUID
    product_id: UUID


def transaction():
    with engine.begin() as connection:
        yield connection


Transaction = Annotated[Connection, Depends(transaction)]


@app.post("/api/v1/customers", status_code=201)
def register(body: Customer, db: Transaction) -> dict[str, object]:
    row = {"customer_id": str(uuid4()), "username": body.username, "wallet_balance": Decimal(5000)}
    db.execute(insert(CUSTOMERS).values(row))
    return row


@app.post("/api/v1/customers/{customer_id}/deposits", status_code=201)
def deposit(customer_id: UUID, body: Deposit, db: Transaction) -> dict[str, object]:
    mine = CUSTOMERS.c.customer_id == str(customer_id)
    row = found(db, select(CUSTOMERS).where(mine).with_for_update())
    balance = row["wallet_balance"] + body.amount
    db.execute(CUSTOMERS.update().where(mine).values(wallet_balance=balance))
    return {**row, "wallet_balance": balance}


@app.post("/api/v1/products", status_code=201)
def list_product(body: Product, db: Transaction) -> dict[str, object]:
    row = {"product_id": str(uuid4()), "initial_stock": body.stock, **body.model_dump()}
    db.execute(insert(PRODUCTS).values(row))
    return row


@app.get("/api/v1/products/{product_id}")
def show_product(product_id: UUID, db: Transaction) -> dict[str, object]:
    row = found(db, select(PRODUCTS).where(PRODUCTS.c.product_id == str(product_id)))
    now = price(row["base_price"], row["stock"], row["initial_stock"])
    return {**row, "current_price": now}


@app.post("/api/v1/orders", status_code=202)
def place(body: Order) -> dict[str, object]:
    """Commit the order first and hand it to Celery then, as the system that is replaced did."""
    row = {"order_id": str(uuid4()), "status": "PENDING", **body.model_dump(mode="json")}
    with engine.begin() as db:
        db.execute(insert(ORDERS).values(row))
    process.delay(row["order_id"])
    return row


@app.get("/api/v1/orders/{order_id}")
def show_order(order_id: UUID, db: Transaction) -> dict[str, object]:
    return dict(found(db, select(ORDERS).where(ORDERS.c.order_id == str(order_id))))


def found(db: Connection, query) -> RowMapping:
    row = db.execute(query).mappings().one_or_none()
    if row is None:
        raise HTTPException(404)
    return row
