"""/products: list, show, restock, price."""

import asyncio
from typing import Final
from uuid import UUID
from zlib import crc32

from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.as_of import as_of
from api.auth.principal import Scope
from api.context import Context
from api.operation import PREFIX, operation
from api.parameters import (
    AFTER_PRODUCT,
    AS_OF,
    IF_NONE_MATCH,
    LIMIT,
    MIN_POSITION,
    PAGE,
    PRODUCT_ID,
    SUBMIT,
    Call,
)
from api.problems import Problem
from api.product_cache import MAX_AGE_S, ProductPage
from api.responses import JSON, encode, etag_matches, next_link, position_header, reply
from api.submission import (
    DEFAULT_WAIT_S,
    IdempotencyKey,
    idempotency_key,
    new_event,
    new_ids,
    preference_of,
)
from ledger.core.events import PriceChanged, ProductListed, StockReceived
from ledger.eventlog.records import Submitted
from projections.views.stock import STOCK, ProductAsOf, StockRow

_CONTENT_TYPE: Final = (b"content-type", JSON.encode())
_NO_CACHE: Final = (b"cache-control", b"no-cache")
_IMMUTABLE: Final = (b"cache-control", b"public, max-age=31536000, immutable")


@operation(
    Scope.CATALOGUE_WRITE,
    "List a product",
    {201: schemas.Product, 202: schemas.AcceptedProduct},
    *SUBMIT,
    body=schemas.ListProduct,
)
async def create(context: Context, call: Call[schemas.ListProduct]) -> Response:
    """Put a product on sale."""
    body = call.body
    listed = ProductListed(body.name, body.description, body.base_price, body.stock)
    key = idempotency_key(call.request, "POST /products")
    event = new_event(call.request, *new_ids(key), listed)
    return await _submit(context, call.request, event, key, created=True)


@operation(
    Scope.CATALOGUE_WRITE,
    "Take units in",
    {
        200: schemas.Product,
        202: schemas.AcceptedProduct,
        404: ("unknown-product",),
        409: ("stock-limit",),
    },
    PRODUCT_ID,
    *SUBMIT,
    body=schemas.ReceiveStock,
)
async def receive(context: Context, call: Call[schemas.ReceiveStock]) -> Response:
    """Take units into stock."""
    product_id = call[PRODUCT_ID]
    key = idempotency_key(call.request, "POST /products/receipts", product_id)
    event_id, _ = new_ids(key)
    event = new_event(call.request, event_id, product_id, StockReceived(call.body.quantity))
    return await _submit(context, call.request, event, key, created=False)


@operation(
    Scope.CATALOGUE_WRITE,
    "Change a price",
    {200: schemas.Product, 202: schemas.AcceptedProduct, 404: ("unknown-product",)},
    PRODUCT_ID,
    *SUBMIT,
    body=schemas.ChangePrice,
)
async def change(context: Context, call: Call[schemas.ChangePrice]) -> Response:
    """Set a new base price."""
    product_id = call[PRODUCT_ID]
    key = idempotency_key(call.request, "PATCH /products", product_id)
    event_id, _ = new_ids(key)
    event = new_event(call.request, event_id, product_id, PriceChanged(call.body.base_price))
    return await _submit(context, call.request, event, key, created=False)


async def _submit(
    context: Context,
    request: Request,
    event: Submitted,
    key: IdempotencyKey | None,
    *,
    created: bool,
) -> Response:
    preference = preference_of(request, DEFAULT_WAIT_S)
    submission = await context.submissions.submit((event,), preference, key)
    product_id = event.stream_id
    return await context.submissions.response(
        submission,
        lambda: context.views.product(product_id),
        schemas.product,
        location=f"{PREFIX}/products/{product_id}",
        accepted=schemas.AcceptedProduct(product_id, schemas.ACCEPTED),
        created=created,
    )


@operation(
    None,
    "Show a product",
    {200: schemas.Product, 304: None, 404: ("unknown-product",)},
    PRODUCT_ID,
    *AS_OF,
    IF_NONE_MATCH,
)
async def show(context: Context, call: Call[None]) -> Response:
    """One product, from the cache where that is known to be right.

    With `as_of_position` or `as_of_time`: as the ledger had it then, with the price of then.
    """
    product_id = call[PRODUCT_ID]
    if not call.query:
        cached = context.product_cache.get(product_id)
        if cached:
            return _page(call.request, *cached)
    if when := as_of(call):
        then, moment = await context.as_of.read(
            when, lambda reader, position: reader.row(STOCK, product_id, position)
        )
        page = _render(then, product_id, moment.position)
        # What is not final yet may still change: a later event can be of the same time.
        kept = _IMMUTABLE if moment.final else _NO_CACHE
        return _page(call.request, page, moment.position, kept)
    generation = context.product_cache.generation
    row, position = await context.reads.read_at_least(
        call[MIN_POSITION],
        lambda: context.product_reads.join_next(
            product_id, lambda: context.views.product(product_id)
        ),
    )
    page = _render(row, product_id, position)
    context.product_cache.put(product_id, page, generation)
    return _page(call.request, page, position)


def _render(row: StockRow | ProductAsOf | None, product_id: UUID, position: int) -> ProductPage:
    if row is None:
        raise Problem("unknown-product", f"there is no product {product_id}")
    body = encode(schemas.product(row))
    # A rebuilt view may have another row at the same position: the checksum tells them apart.
    etag = f'"{row.position}-{crc32(body):08x}"'
    expires_at = asyncio.get_running_loop().time() + MAX_AGE_S
    return ProductPage(body, etag.encode(), position, expires_at)


def _page(
    request: Request, page: ProductPage, position: int, kept: tuple[bytes, bytes] = _NO_CACHE
) -> Response:
    headers = [kept, (b"etag", page.etag), (b"ledger-position", b"%d" % position)]
    if etag_matches(request, page.etag):
        response = Response(None, 304)
    else:
        response = Response(page.body)
        headers.append(_CONTENT_TYPE)
    response.raw_headers += headers
    return response


@operation(None, "Show the catalogue", {200: schemas.Products}, AFTER_PRODUCT, *PAGE)
async def browse(context: Context, call: Call[None]) -> Response:
    """A page of the catalogue, by id."""
    limit = call[LIMIT]
    rows, position = await context.reads.read_at_least(
        call[MIN_POSITION], lambda: context.views.products(call[AFTER_PRODUCT], limit + 1)
    )
    next_after = rows[limit - 1].product_id if len(rows) > limit else None
    products = schemas.Products([schemas.product(row) for row in rows[:limit]], next_after)
    headers = {**position_header(position), **next_link(call.request, call.query, next_after)}
    return reply(200, products, headers)
