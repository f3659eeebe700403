"""/products: list, show, restock, price."""

import asyncio
from typing import Final
from uuid import UUID
from zlib import crc32

from starlette.requests import Request
from starlette.responses import Response

from api import requests, schemas
from api.as_of import WHEN, AsOf, as_of
from api.consistent_reads import min_position_of
from api.context import Context
from api.etags import has
from api.idempotency import Draft, draft
from api.pagination import follow, limit_of
from api.prefer import DEFAULT_WAIT_S, preference
from api.problems import Problem
from api.product_cache import MAX_AGE_S, ProductPage
from api.responses import JSON, PREFIX, at, encode, reply
from api.submission import answer, submit
from ledger.core.events import PriceChanged, ProductListed, StockReceived
from projections.views.stock import ProductAsOf, StockRow

_CONTENT_TYPE: Final = (b"content-type", JSON.encode())
_ASK_AGAIN: Final = (b"cache-control", b"no-cache")
_FOR_EVER: Final = (b"cache-control", b"public, max-age=31536000, immutable")


async def create(context: Context, request: Request) -> Response:
    """Put a product on sale."""
    body = await requests.body(request, schemas.ListProduct)
    listed = ProductListed(body.name, body.description, body.base_price, body.stock)
    new = draft(request, "POST /products", listed)
    return await _answer(context, request, new, created=True)


async def receive(context: Context, request: Request) -> Response:
    """Take units into stock."""
    product_id = requests.path_id(request, "product_id")
    body = await requests.body(request, schemas.ReceiveStock)
    received = StockReceived(body.quantity)
    new = draft(request, "POST /products/receipts", received, product_id)
    return await _answer(context, request, new, created=False)


async def change(context: Context, request: Request) -> Response:
    """Set a new base price."""
    product_id = requests.path_id(request, "product_id")
    body = await requests.body(request, schemas.ChangePrice)
    new = draft(request, "PATCH /products", PriceChanged(body.base_price), product_id)
    return await _answer(context, request, new, created=False)


async def _answer(context: Context, request: Request, new: Draft, *, created: bool) -> Response:
    submission = await submit(context, new, preference(request, DEFAULT_WAIT_S))
    product_id = new.event.stream_id
    return await answer(
        context,
        submission,
        lambda: context.views.product(product_id),
        schemas.product,
        location=_path(product_id),
        accepted=schemas.AcceptedProduct(product_id, schemas.ACCEPTED),
        created=created,
    )


def _path(product_id: UUID) -> str:
    return f"{PREFIX}/products/{product_id}"


async def show(context: Context, request: Request) -> Response:
    """One product, from the cache where that is known to be right.

    As of a moment of the past, if one is given: as the ledger had it, with the price of then.
    """
    if not request.scope["query_string"]:
        cached = context.product_cache.get(request.path_params["product_id"])
        if cached:
            return _page(request, *cached)
    product_id = requests.path_id(request, "product_id")
    found = requests.parameters(request, *WHEN)
    if when := as_of(found):
        return await _show_then(context, request, product_id, when)
    generation = context.product_cache.generation
    row, position = await context.reads.read_at_least(
        min_position_of(found),
        lambda: context.product_reads.join_next(
            product_id, lambda: context.views.product(product_id)
        ),
    )
    page = _render(row, product_id, position)
    context.product_cache.put(product_id, page, generation)
    return _page(request, page, position)


async def _show_then(context: Context, request: Request, product_id: UUID, when: AsOf) -> Response:
    row, moment = await context.as_of.read(
        when, lambda history, position: history.product(product_id, position)
    )
    page = _render(row, product_id, moment.position)
    return _page(request, page, moment.position, _FOR_EVER if moment.final else _ASK_AGAIN)


def _render(row: StockRow | ProductAsOf | None, product_id: UUID, position: int) -> ProductPage:
    """The row alone makes the body. A rebuilt view may have another row at the same position."""
    if row is None:
        raise Problem("unknown-product", f"there is no product {product_id}")
    body = encode(schemas.product(row))
    etag = f'"{row.position}-{crc32(body):08x}"'
    expires_at = asyncio.get_running_loop().time() + MAX_AGE_S
    return ProductPage(body, etag.encode(), position, expires_at)


def _page(
    request: Request, page: ProductPage, position: int, kept: tuple[bytes, bytes] = _ASK_AGAIN
) -> Response:
    headers = [kept, (b"etag", page.etag), (b"ledger-position", b"%d" % position)]
    if has(request, page.etag):
        response = Response(None, 304)
    else:
        response = Response(page.body)
        headers.append(_CONTENT_TYPE)
    response.raw_headers += headers
    return response


async def browse(context: Context, request: Request) -> Response:
    """A page of the catalogue, by id."""
    found = requests.parameters(request, "after", "limit", "min_position")
    after, limit = found.get("after"), limit_of(found)
    after_id = requests.uuid_of("after", after) if after is not None else None
    rows, position = await context.reads.read_at_least(
        min_position_of(found), lambda: context.views.products(after_id, limit + 1)
    )
    next_after = rows[limit - 1].product_id if len(rows) > limit else None
    products = schemas.Products([schemas.product(row) for row in rows[:limit]], next_after)
    return reply(200, products, {**at(position), **follow(request, found, next_after)})
