"""What the fold would decide of an order now, by the same `decide`; nothing is appended."""

from decimal import Decimal
from uuid import UUID

from msgspec import Struct
from starlette.responses import Response

from api.context import Context
from api.json_forms import money
from api.responses import at, reply
from ledger.core.decider import decide
from ledger.core.events import OrderCompleted, OrderFailed, OrderPlaced
from ledger.core.state import State, Status


class DryRun(Struct, frozen=True):
    """What would be decided of an order if it were the next event after `position`."""

    product_id: UUID
    customer_id: UUID
    quantity: int
    status: str
    unit_price: Decimal | None
    total: Decimal | None
    failure_reason: str | None
    position: int


async def dry_run(context: Context, placed: OrderPlaced) -> Response:
    """Decide an order on what the views hold at one position, which the answer names."""
    (customer, product), position = await context.reads.read(
        lambda: context.views.party(placed.customer_id, placed.product_id)
    )
    (decided,) = decide(State(None, customer, product), placed)
    price_minor = total_minor = reason = None
    if isinstance(decided, OrderCompleted):
        price_minor, total_minor = decided.unit_price_minor, decided.total_minor
    elif isinstance(decided, OrderFailed):
        reason = decided.reason.value
    answer = DryRun(
        placed.product_id,
        placed.customer_id,
        placed.quantity,
        (Status.FAILED if reason else Status.COMPLETED).value,
        None if price_minor is None else money(price_minor),
        None if total_minor is None else money(total_minor),
        reason,
        position,
    )
    return reply(200, answer, at(position))
