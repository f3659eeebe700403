"""What every handler works with."""

from dataclasses import dataclass
from uuid import UUID

from api.as_of import AsOfReads, TrialBalanceReads
from api.auth.guard import Guard
from api.consistent_reads import ConsistentReads, Waiters
from api.event_stream import EventStreams
from api.idempotency import Keys
from api.pending import Peers, PendingOrders
from api.product_cache import ProductCache
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import QueueDepths
from ledger.runtime.cache import SingleFlight
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
    as_of: AsOfReads
    trial_balance: TrialBalanceReads
    peers: Peers | None = None
    guard: Guard | None = None
    cors_origins: tuple[str, ...] = ()
    depths: QueueDepths | None = None


@dataclass(frozen=True)
class Context:
    """The others, and what one API process remembers. All of it may be lost at any time."""

    publisher: Publisher
    announcements: Announcements
    views: Views
    feed: Feed
    as_of: AsOfReads
    trial_balance: TrialBalanceReads
    waiters: Waiters
    reads: ConsistentReads
    pending: PendingOrders
    keys: Keys
    product_cache: ProductCache
    product_reads: SingleFlight[UUID, tuple[StockRow | None, int]]
    peers: Peers | None
    guard: Guard | None
    streams: EventStreams
    depths: QueueDepths | None


def make_context(deps: Deps) -> Context:
    """A context whose parts listen to the announcements."""
    waiters, pending, keys = Waiters(), PendingOrders(), Keys()
    reads = ConsistentReads(waiters)
    product_cache = ProductCache(deps.announcements, reads)
    streams = EventStreams(deps.feed, reads)
    for part in (product_cache, pending, waiters, streams):
        deps.announcements.subscribe(part.announced)
    for part in (product_cache, pending):
        deps.announcements.on_reset(part.reset)
    if deps.peers:
        deps.peers.hear_for(pending)
    return Context(
        deps.publisher,
        deps.announcements,
        deps.views,
        deps.feed,
        deps.as_of,
        deps.trial_balance,
        waiters,
        reads,
        pending,
        keys,
        product_cache,
        SingleFlight(),
        deps.peers,
        deps.guard,
        streams,
        deps.depths,
    )
