"""The peer's worker: one task an order, one transaction a task."""

from celery import Celery
from sqlalchemy import create_engine, select, update
from sqlalchemy.engine import Connection

from bench.peer.tables import CUSTOMERS, DATABASE_URL, ORDERS, PRODUCTS, REDIS_URL, price

app = Celery("peer", broker=REDIS_URL)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)
engine = create_engine(DATABASE_URL, pool_size=1, pool_pre_ping=False)


@app.task(bind=True, max_retries=10)
def process(self, order_id: str) -> None:
    """Decide an order; a deadlock or a lost connection makes the task try again."""
    try:
        with engine.begin() as connection:
            decide(connection, order_id)
    except Exception as error:
        raise self.retry(exc=error, countdown=0.1) from error


def decide(connection: Connection, order_id: str) -> None:
    """Lock the order, its product and its customer, move money and stock, or refuse."""
    order = connection.execute(
        select(ORDERS).where(ORDERS.c.order_id == order_id).with_for_update()
    ).one()
    if order.status != "PENDING":
        return
    product = connection.execute(
        select(PRODUCTS).where(PRODUCTS.c.product_id == order.product_id).with_for_update()
    ).one()
    customer = connection.execute(
        select(CUSTOMERS).where(CUSTOMERS.c.customer_id == order.customer_id).with_for_update()
    ).one()
    paid = price(product.base_price, product.stock, product.initial_stock)
    reason = None
    if product.stock < 1:
        reason = "INSUFFICIENT_STOCK"
    elif customer.wallet_balance < paid:
        reason = "INSUFFICIENT_BALANCE"
    if reason is None:
        connection.execute(
            update(PRODUCTS)
            .where(PRODUCTS.c.product_id == product.product_id)
            .values(stock=product.stock - 1)
        )
        connection.execute(
            update(CUSTOMERS)
            .where(CUSTOMERS.c.customer_id == customer.customer_id)
            .values(wallet_balance=customer.wallet_balance - paid)
        )
    connection.execute(
        update(ORDERS)
        .where(ORDERS.c.order_id == order_id)
        .values(
            status="FAILED" if reason else "COMPLETED",
            price_paid=None if reason else paid,
            failure_reason=reason,
        )
    )
