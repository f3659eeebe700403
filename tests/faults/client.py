"""A seeded client of the API: what it asks for depends on the seed, when on how fast it is told.

It has one connection to every API process. When it does not know how a keyed operation ended, it
asks again with the same key, mostly elsewhere.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any, Final

import httpx

from tests.faults.history import Attempt, Body, Expected, History, Operation, Outcome, Read
from tests.faults.responses import connection_of, judged, named, position_of, shown_by

TIMEOUT_S: Final = 6.0
PAUSE_S: Final = 0.15
TRIES: Final = 3
CUSTOMERS: Final = 6
PRODUCTS: Final = 8
HOT: Final = 2
MAX_REMEMBERED: Final = 400


@dataclass(frozen=True)
class Request:
    """What is sent, the same at each attempt."""

    method: str
    path: str
    body: Body | None
    wait_s: int = 0


@dataclass
class Shop:
    """What clients know of: ids that answers named."""

    customers: list[str] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)

    def placed(self, orders: Sequence[str]) -> None:
        """Remember orders; old ones are forgotten."""
        self.orders += orders
        del self.orders[:-MAX_REMEMBERED]


class Client:
    """One client."""

    def __init__(
        self, name: str, chance: Random, shop: Shop, history: History, urls: Mapping[str, str]
    ) -> None:
        self._name = name
        self._chance = chance
        self._shop = shop
        self._history = history
        self._urls = urls
        self._https: dict[str, httpx.AsyncClient] = {}
        self._keys = 0
        self.idle = asyncio.Event()
        self.left: list[tuple[Operation, Request]] = []

    async def open(self, stack: AsyncExitStack) -> None:
        """Make its connections, one to each API process."""
        for name, url in self._urls.items():
            limits = httpx.Limits(max_connections=1)
            http = httpx.AsyncClient(base_url=f"{url}/api/v1", limits=limits, timeout=TIMEOUT_S)
            self._https[name] = await stack.enter_async_context(http)

    async def run(self, gate: asyncio.Event, pause_s: float) -> None:
        """Act whenever the gate is open."""
        acts = self._acts()
        chosen, weights = list(acts), list(acts.values())
        try:
            while True:
                self.idle.set()
                await gate.wait()
                self.idle.clear()
                await self._chance.choices(chosen, weights)[0]()
                await asyncio.sleep(self._chance.uniform(0, 2 * pause_s))
        finally:
            self.idle.set()

    def _acts(self) -> dict[Callable[[], Any], int]:
        return {
            self._order: 34,
            self._batch: 6,
            self._cancel: 12,
            self._deposit: 6,
            self._receive: 5,
            self._reprice: 2,
            self._look_at_order: 20,
            self._look_at_product: 10,
            self._look_at_wallet: 5,
        }

    async def stock_the_shop(self) -> None:
        """Register the customers and list the products, for certain."""
        for number in range(CUSTOMERS):
            customer = {"username": f"customer {number}"}
            event = Expected("customer.registered", {**customer, "opening_balance_minor": 500_000})
            self._shop.customers += await self._for_certain("/customers", customer, event)
        for number in range(PRODUCTS):
            price, stock = 10 * (number + 1), 400 if number < HOT else 10_000
            text = {"name": f"product {number}", "description": ""}
            event = Expected(
                "product.listed",
                {**text, "base_price_minor": 100 * price, "initial_stock": stock},
            )
            product = {**text, "base_price": price, "stock": stock}
            self._shop.products += await self._for_certain("/products", product, event)

    async def _for_certain(self, path: str, body: Body, event: Expected) -> list[str]:
        operation = self._history.begin(path, self._key(), [event])
        while operation.outcome is not Outcome.OK:
            await self._attempt(operation, Request("POST", path, body, 2))
        return operation.streams

    async def settle(self) -> None:
        """Ask again for all that is not known: now that everything works, there is an answer."""
        while self.left:
            operation, request = self.left.pop()
            for _ in range(TRIES):
                if operation.attempts[-1].outcome is Outcome.UNKNOWN:
                    await self._attempt(operation, request)
            if operation.attempts[-1].outcome is Outcome.UNKNOWN:
                self._history.violate(f"operation {operation.number} gets no answer")
            self._learn(operation)

    async def pay_in_and_wait(self) -> None:
        """Pay a cent in, and see it in the wallet: all that was accepted before is decided then."""
        path = f"/customers/{self._shop.customers[0]}/deposits"
        event = Expected("wallet.credited", {"amount_minor": 1}, self._shop.customers[0])
        operation = self._history.begin("barrier", self._key(), [event])
        while not operation.attempts or operation.attempts[-1].status != 200:
            await self._attempt(operation, Request("POST", path, {"amount": 0.01}, 5))

    async def _do(self, kind: str, request: Request, events: Sequence[Expected]) -> None:
        """One operation: half of them with a key, asked again while it is not known."""
        key = self._key() if self._chance.random() < 0.6 else None
        operation = self._history.begin(kind, key, events)
        await self._attempt(operation, request)
        again = 1 if self._chance.random() < 0.1 else 0
        while key and len(operation.attempts) < TRIES:
            if operation.outcome is not Outcome.UNKNOWN:
                if not again:
                    break
                again -= 1
            if operation.outcome is Outcome.OK:
                self._history.offered["by key"] += len(events)
            await self._attempt(operation, request)
        if key and operation.outcome is Outcome.UNKNOWN:
            self.left.append((operation, request))
        self._learn(operation)

    def _learn(self, operation: Operation) -> None:
        if operation.outcome is Outcome.OK and operation.kind in ("order", "batch"):
            self._shop.placed(operation.streams)

    def _key(self) -> str:
        self._keys += 1
        return f"{self._name}-{self._keys}"

    async def _attempt(self, operation: Operation, request: Request) -> None:
        api = self._chance.choice(list(self._https))
        trace = f"00-{operation.number:032x}-{len(operation.attempts) + 1:016x}-01"
        headers = {"traceparent": trace}
        if operation.key:
            headers["Idempotency-Key"] = operation.key
        headers["Prefer"] = f"wait={request.wait_s}" if request.wait_s else "respond-async"
        began = time.monotonic()
        streams: list[str] = []
        try:
            response = await self._https[api].request(
                request.method, request.path, json=request.body, headers=headers
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            outcome, status, detail = Outcome.FAILED, 0, repr(error)
        except httpx.TransportError as error:
            outcome, status, detail = Outcome.UNKNOWN, 0, repr(error)
        else:
            status = response.status_code
            outcome, detail = judged(response)
            streams = named(response.json()) if outcome is Outcome.OK else []
            self._note_answer(operation.kind, api, response, began)
        attempt = Attempt(outcome, api, status, detail, began, time.monotonic())
        self._history.attempted(operation, attempt, streams)
        if outcome is not Outcome.OK:
            await asyncio.sleep(self._chance.uniform(0, PAUSE_S))

    async def _order(self) -> None:
        body, event = self._wish()
        await self._do("order", Request("POST", "/orders", body, self._wait_s()), [event])

    async def _batch(self) -> None:
        wishes = [self._wish() for _ in range(self._chance.randint(1, 6))]
        body = {"orders": [wish for wish, _ in wishes], "atomic": self._chance.random() < 0.5}
        request = Request("POST", "/orders/batch", body, self._wait_s())
        await self._do("batch", request, [event for _, event in wishes])

    def _wish(self) -> tuple[Body, Expected]:
        hot = self._chance.random() < 0.6
        products = self._shop.products[:HOT] if hot else self._shop.products
        body = {
            "customer_id": self._chance.choice(self._shop.customers),
            "product_id": self._chance.choice(products),
            "quantity": self._chance.choice([1, 1, 1, 2, 5]),
        }
        return body, Expected("order.placed", body)

    async def _cancel(self) -> None:
        if self._shop.orders:
            order = self._chance.choice(self._shop.orders)
            request = Request("POST", f"/orders/{order}/cancel", {}, self._wait_s())
            await self._do("cancel", request, [Expected("order.cancel-requested", {}, order)])

    async def _deposit(self) -> None:
        customer, cents = self._chance.choice(self._shop.customers), self._chance.randint(1, 90_000)
        body = {"amount": float(Decimal(cents) / 100)}
        request = Request("POST", f"/customers/{customer}/deposits", body, self._wait_s())
        event = Expected("wallet.credited", {"amount_minor": cents}, customer)
        await self._do("deposit", request, [event])

    async def _receive(self) -> None:
        product, quantity = self._chance.choice(self._shop.products), self._chance.randint(1, 60)
        request = Request("POST", f"/products/{product}/receipts", {"quantity": quantity})
        event = Expected("stock.received", {"quantity": quantity}, product)
        await self._do("receipt", request, [event])

    async def _reprice(self) -> None:
        product, price = self._chance.choice(self._shop.products), self._chance.randint(1, 90)
        request = Request("PATCH", f"/products/{product}", {"base_price": price})
        event = Expected("price.changed", {"base_price_minor": 100 * price}, product)
        await self._do("price", request, [event])

    def _wait_s(self) -> int:
        return self._chance.choice([0, 0, 0, 1, 2])

    async def _look_at_order(self) -> None:
        if self._shop.orders:
            recent = self._shop.orders[-20:] if self._chance.random() < 0.7 else self._shop.orders
            await self._look("orders", self._chance.choice(recent))

    async def _look_at_product(self) -> None:
        await self._look("products", self._chance.choice(self._shop.products[: 2 * HOT]))

    async def _look_at_wallet(self) -> None:
        await self._look("customers", self._chance.choice(self._shop.customers))

    async def _look(self, what: str, id_: str) -> None:
        api, began = self._chance.choice(list(self._https)), time.monotonic()
        try:
            response = await self._https[api].get(f"/{what}/{id_}")
        except httpx.TransportError:
            await asyncio.sleep(PAUSE_S)
            return
        self._note_shown(what, id_, api, response, began)

    def _note_answer(self, kind: str, api: str, response: httpx.Response, began: float) -> None:
        """What an answer shows is held against the ledger, as what is read."""
        if shown := shown_by(kind, response):
            self._note_shown(*shown, api, response, began)
        elif position := position_of(response):
            self._history.seen(connection_of(response), position)

    def _note_shown(
        self, what: str, id_: str, api: str, response: httpx.Response, began: float
    ) -> None:
        read = Read(
            what,
            id_,
            api,
            response.status_code,
            position_of(response),
            json.loads(response.text, parse_float=Decimal),
            began,
            time.monotonic(),
        )
        self._history.shown(read, connection_of(response))
