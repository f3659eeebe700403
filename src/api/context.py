"""Everything that a handler works with."""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth.guard import Guard
from api.reads.consistent_reads import ConsistentReads, ProductCache, Waiters
from api.reads.event_stream import EventStreams
from api.reads.pending import Peers, PendingOrders
from api.reads.slow_reads import AsOfReads, TrialBalanceReads
from api.submission import Submissions
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import QueueDepths
from ledger.runtime.cache import SingleFlight
from projections.announcements import Announcements
from projections.queries import Feed, Views
from projections.views.stock import StockRow


@dataclass
class Context:
    """The fields are given. What one API process remembers is made of them, and may be lost."""

    publisher: Publisher
    announcements: Announcements
    engine: AsyncEngine
    pending: PendingOrders = field(default_factory=PendingOrders)
    peers: Peers | None = None
    guard: Guard | None = None
    cors_origins: tuple[str, ...] = ()
    depths: QueueDepths | None = None

    def __post_init__(self) -> None:
        self.views = Views(self.engine)
        self.feed = Feed(self.engine)
        self.as_of = AsOfReads(self.engine)
        self.trial_balance = TrialBalanceReads(self.engine)
        self.waiters = Waiters()
        self.reads = ConsistentReads(self.waiters, self.feed)
        self.submissions = Submissions(
            self.publisher,
            self.pending,
            self.peers,
            self.waiters,
            self.reads,
            self.views,
            self.engine,
        )
        self.product_cache = ProductCache(self.announcements, self.reads)
        self.product_reads: SingleFlight[UUID, tuple[StockRow | None, int]] = SingleFlight()
        self.streams = EventStreams(self.feed, self.reads)
        for part in (self.product_cache, self.pending, self.waiters, self.streams):
            self.announcements.subscribe(part.announced)
        for part in (self.product_cache, self.pending):
            self.announcements.on_reset(part.reset)
