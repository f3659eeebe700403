"""/products: put on sale, show, list, receive stock, change the price."""

import asyncio
from typing import Final
from uuid import UUID

from starlette.responses import Response

from api import schemas as s
from api.auth.principal import Scope
from api.context import Context
from api.http import parameters as p
from api.http.parameters import Call
from api.http.preconditions import etag_of, expected_position, representation
from api.http.problems import FieldError, Problem
from api.http.responses import encode, page_headers, reply
from api.operation import PREFIX, Operation
from api.reads.consistent_reads import MAX_AGE_S, ProductPage
from api.reads.slow_reads import as_of
from api.submission import Resource
from ledger.core.events import PriceChanged, ProductListed, StockReceived
from projections.views.stock import STOCK, ProductAsOf, StockRow

CATALOGUE: Final = Scope.CATALOGUE_WRITE
_PRODUCT: Final = Resource(
    f"{PREFIX}/products",
    STOCK,
    s.product,
    lambda event, row: s.AcceptedProduct(event.stream_id, s.DECIDED if row else s.ACCEPTED),
)
_NO_CACHE: Final = (b"cache-control", b"no-cache")
_IMMUTABLE: Final = (b"cache-control", b"public, max-age=31536000, immutable")


@Operation(
    CATALOGUE,
    "List a product",
    {201: s.Product, 202: s.AcceptedProduct},
    p.SUBMIT,
    body=s.CreateProduct,
    id="createProduct",
)
async def create(context: Context, call: Call[s.CreateProduct]) -> Response:
    """List a product: put it on sale."""
    body = call.body
    listed = ProductListed(body.name, body.description, body.base_price, body.stock)
    return await context.submissions.submit_and_answer(call, "POST /products", listed, _PRODUCT)


@Operation(
    CATALOGUE,
    "Receive stock",
    {200: s.Product, 202: s.AcceptedProduct},
    (p.PRODUCT_ID, *p.CHANGE),
    problems=("unknown-product", "stock-limit"),
    body=s.ReceiveStock,
    id="receiveStock",
)
async def receive(context: Context, call: Call[s.ReceiveStock]) -> Response:
    """Receive units of a product into stock; `If-Match` names the product's ETag."""
    received = StockReceived(call.body.quantity, expected_position=expected_position(call))
    return await context.submissions.submit_and_answer(
        call, "POST /products/receipts", received, _PRODUCT, call[p.PRODUCT_ID]
    )


@Operation(
    CATALOGUE,
    "Change a price",
    {200: s.Product, 202: s.AcceptedProduct},
    (p.PRODUCT_ID, *p.CHANGE),
    problems=("unknown-product",),
    body=s.ChangePrice,
    id="changePrice",
)
async def change(context: Context, call: Call[s.ChangePrice]) -> Response:
    """Change the base price of a product.

    With `If-Match` it changes only if the product is as the client saw it. Each sale changes it,
    too, as stock and current price are part of it.
    """
    changed = PriceChanged(call.body.base_price, expected_position=expected_position(call))
    return await context.submissions.submit_and_answer(
        call, "PATCH /products", changed, _PRODUCT, call[p.PRODUCT_ID]
    )


@Operation(
    None,
    "Show a product",
    {200: s.Product, 304: None},
    (p.PRODUCT_ID, *p.AS_OF, *p.VERSIONED),
    problems=("unknown-product", "busy"),
    id="getProduct",
)
async def show(context: Context, call: Call[None]) -> Response:
    """Show a product with what a unit costs now.

    With `as_of_position` or `as_of_time`, as it was then, with the price it had then.
    """
    product_id = call[p.PRODUCT_ID]
    if not call.query:
        cached = context.product_cache.get(product_id)
        if cached:
            return _answer(call, *cached)
    client = context.client(call.request)
    if when := as_of(call):
        async with context.as_of.open(when, client) as (reader, moment):
            then = await reader.row(STOCK, product_id, moment.position)
        page = _render(then, product_id, moment.position)
        # An answer that is not final yet may still change: a later event can be of the same time.
        cache_control = _IMMUTABLE if moment.final else _NO_CACHE
        return _answer(call, page, moment.position, cache_control)

    async def read() -> tuple[StockRow | None, int]:
        async with context.product_turns.turn(client):
            return await context.views.row(STOCK, product_id)

    generation = context.product_cache.generation
    # Who has a key shares no read with strangers, and so not their turn either.
    row, position = await context.reads.read_at_least(
        call[p.MIN_POSITION],
        lambda: context.product_reads.join_next((product_id, client.known), read),
    )
    page = _render(row, product_id, position)
    context.product_cache.put(product_id, page, generation)
    return _answer(call, page, position)


def _render(row: StockRow | ProductAsOf | None, product_id: UUID, position: int) -> ProductPage:
    if row is None:
        raise Problem("unknown-product", f"there is no product {product_id}")
    body = encode(s.product(row))
    expires_at = asyncio.get_running_loop().time() + MAX_AGE_S
    return ProductPage(body, etag_of(row.position, body), position, expires_at)


def _answer(
    call: Call[None],
    page: ProductPage,
    position: int,
    cache_control: tuple[bytes, bytes] = _NO_CACHE,
) -> Response:
    headers = [cache_control, (b"ledger-position", b"%d" % position)]
    return representation(call, page.body, page.etag, headers)


@Operation(
    None,
    "List products",
    {200: s.ProductList},
    (p.AFTER_PRODUCT, *p.PAGE),
    problems=("unknown-product",),
    id="listProducts",
)
async def browse(context: Context, call: Call[None]) -> Response:
    """List the products on sale, in the order in which they were listed.

    Whoever keeps the last product's id as `after` finds what is listed later.
    """
    after, limit = call[p.AFTER_PRODUCT], call[p.LIMIT]
    rows, position = await context.reads.read_at_least(
        call[p.MIN_POSITION],
        lambda: context.read_in_turn(
            call.request, lambda: context.views.products(after, limit + 1)
        ),
    )
    if rows is None:
        detail = f"there is no product {after}: begin without `after`"
        errors = [FieldError(p.AFTER_PRODUCT.name, detail)]
        raise Problem("unknown-product", f"after: {detail}", errors)
    next_after = rows[limit - 1].product_id if len(rows) > limit else None
    products = s.ProductList([s.product(row) for row in rows[:limit]], next_after)
    return reply(200, products, page_headers(call, position, next_after))
