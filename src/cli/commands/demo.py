"""`ledger demo`: the catalogue and the customer of the demo, submitted once for ever."""

from typing import Any, Final
from uuid import UUID, uuid5

from cli import connections, console
from cli.inbox import submit
from cli.settings import Settings
from ledger.core.events import CustomerRegistered, ProductListed, SubmittedPayload
from ledger.eventlog.records import Submitted
from ledger.runtime.timestamps import now_us
from projections.queries import Views
from projections.views.projection import KeyedProjection
from projections.views.stock import STOCK
from projections.views.wallets import WALLETS

NAMESPACE: Final = UUID("6f7a2f0e-3f0b-5d0e-9c55-0d2f3a8c41de")
CUSTOMER_ID: Final = UUID("43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")

CATALOGUE: Final[dict[UUID, SubmittedPayload]] = {
    UUID("a1b2c3d4-e5f6-7890-1234-567890abcdef"): ProductListed(
        "Quantum Laptop", "Opens every spreadsheet in all of its states at once.", 10_000, 100
    ),
    UUID("b2c3d4e5-f6a7-8901-2345-67890abcdef1"): ProductListed(
        "Galactic Smartphone", "Full reception as far as the next spiral arm.", 80_000, 150
    ),
    UUID("c3d4e5f6-a7b8-9012-3456-7890abcdef12"): ProductListed(
        "Nebula Noise-Cancelling Headphones", "As quiet as the space between stars.", 25_000, 200
    ),
    UUID("d4e5f6a7-b8c9-0123-4567-890abcdef123"): ProductListed(
        "Ergonomic Starship Keyboard", "Split at the bridge, easy on every wrist.", 9_500, 75
    ),
    CUSTOMER_ID: CustomerRegistered("string", 9_945_000),
}


def demo() -> None:
    """Run `ledger demo`."""
    console.run(load_demo(console.read_settings()))
    console.out.print("the demo's products and customer are in the views")


async def load_demo(settings: Settings) -> None:
    """Submit the demo and wait until the views show it.

    Its event ids are fixed, so that the ledger takes it once, however often it is submitted.
    Raises InboxUnavailable, NotShown.
    """
    occurred_at_us = now_us()
    events = [
        Submitted(uuid5(NAMESPACE, str(stream_id)), stream_id, occurred_at_us, payload)
        for stream_id, payload in CATALOGUE.items()
    ]
    async with connections.engine(settings, "api", autocommit=True) as engine:
        views = Views(engine)

        async def is_shown() -> bool:
            for stream_id, payload in CATALOGUE.items():
                is_product = isinstance(payload, ProductListed)
                view: KeyedProjection[Any] = STOCK if is_product else WALLETS
                row, _ = await views.row(view, stream_id)
                if row is None:
                    return False
            return True

        await submit(settings, engine, "/demo", events, is_shown)
