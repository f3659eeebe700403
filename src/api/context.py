"""Everything that a handler works with."""

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from api.auth.guard import Guard, client_of
from api.auth.rate_limit import Client, Turns
from api.reads.consistent_reads import ConsistentReads, ProductCache, Query, T, Waiters
from api.reads.event_stream import EventStreams
from api.reads.pending import Peers, PendingOrders
from api.reads.slow_reads import (
    MAX_READS,
    STRANGERS_READS,
    TURN_TIMEOUT_S,
    AsOfReads,
    TrialBalanceReads,
)
from api.submission import Submissions
from ledger.eventlog.identity import HeadWatch
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import QueueDepths
from ledger.runtime.cache import SingleFlight
from projections.announcements import Announcements
from projections.queries import Feed, Views
from projections.views.stock import StockRow

# To parse a batch takes the event loop for some milliseconds; others are served in between.
BATCH_TURN_TIMEOUT_S: Final = 5.0


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
    watch: HeadWatch | None = None

    def __post_init__(self) -> None:
        self.views = Views(self.engine)
        self.feed = Feed(self.engine)
        strangers_reads = STRANGERS_READS if self.guard else MAX_READS
        self.read_turns = Turns(MAX_READS, TURN_TIMEOUT_S, strangers_reads)
        # Apart from those, so that products can be read while all turns of slow reads are taken.
        self.product_turns = Turns(MAX_READS, TURN_TIMEOUT_S, strangers_reads)
        self.batch_turns = Turns(1, BATCH_TURN_TIMEOUT_S)
        self.as_of = AsOfReads(self.engine, self.read_turns)
        self.trial_balance = TrialBalanceReads(self.engine, self.read_turns)
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
        self.product_reads: SingleFlight[tuple[UUID, bool], tuple[StockRow | None, int]] = (
            SingleFlight()
        )
        self.streams = EventStreams(self.feed, self.reads)
        for part in (self.product_cache, self.pending, self.waiters, self.streams):
            self.announcements.subscribe(part.announced)
        for part in (self.product_cache, self.pending):
            self.announcements.on_reset(part.reset)
        if self.watch:
            self.watch.on_lost(self.announcements.forget)

    def client(self, request: Request) -> Client:
        """Whose share a request is of."""
        return client_of(self.guard, request.scope)

    async def read_in_turn(self, request: Request, query: Query[T]) -> tuple[T, int]:
        """What a query answers that takes long, in its client's turn.

        Raises what the query raises, and NoTurn.
        """
        async with self.read_turns.turn(self.client(request)):
            return await query()
