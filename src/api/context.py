"""What every handler works with."""

from dataclasses import dataclass

from api.as_of import Past
from api.auth.guard import Guard
from api.consistent_reads import Reading, Shared
from api.event_stream import Streams
from api.idempotency import Keys
from api.peers import Peers
from api.pending import Pending
from api.product_cache import ProductCache
from api.shared_trial_balance import SharedBooks
from api.waiters import Waiting
from ledger.messaging.publisher import Publisher
from ledger.messaging.queue_depth import Depths
from projections.announcements import Announcements
from projections.feed import Feed
from projections.queries import Views
from projections.views.stock import StockRow


@dataclass(frozen=True)
class Deps:
    """What the API needs of others."""

    publisher: Publisher
    announcements: Announcements
    views: Views
    feed: Feed
    past: Past
    books: SharedBooks
    peers: Peers | None = None
    guard: Guard | None = None
    cors_origins: tuple[str, ...] = ()
    depths: Depths | None = None


@dataclass(frozen=True)
class Context:
    """The others, and what one API process remembers. All of it may be lost at any time."""

    publisher: Publisher
    announcements: Announcements
    views: Views
    feed: Feed
    past: Past
    books: SharedBooks
    waiting: Waiting
    reading: Reading
    pending: Pending
    keys: Keys
    products: ProductCache
    product_reads: Shared[tuple[StockRow | None, int]]
    peers: Peers | None
    guard: Guard | None
    streams: Streams
    depths: Depths | None


def make_context(deps: Deps) -> Context:
    """A context whose parts listen to the announcements."""
    waiting, pending, keys = Waiting(), Pending(), Keys()
    reading = Reading(waiting)
    products = ProductCache(deps.announcements, reading)
    streams = Streams(deps.feed, reading)
    for part in (products, pending, waiting, streams):
        deps.announcements.subscribe(part.announced)
    for part in (products, pending):
        deps.announcements.on_reset(part.reset)
    if deps.peers:
        deps.peers.hear_for(pending)
    return Context(
        deps.publisher,
        deps.announcements,
        deps.views,
        deps.feed,
        deps.past,
        deps.books,
        waiting,
        reading,
        pending,
        keys,
        products,
        Shared(),
        deps.peers,
        deps.guard,
        streams,
        deps.depths,
    )
