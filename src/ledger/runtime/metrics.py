"""What publisher and writer measure. Each process shows the collectors of its own parts.

Nothing here is registered by itself; `registry_of` gathers what one process shows.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]

LATENCY_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

CONNECTED: Final = Gauge(
    "ledger_inbox_connected",
    "Whether this process has its connection to the inbox, and no confirm is overdue",
    registry=None,
)

DECIDED: Final = Counter(
    "ledger_decided_events",
    "Submitted events in the ledger, by what came of them and why they were refused, if they were",
    ["outcome", "reason"],
    registry=None,
)
REPEATS: Final = Counter(
    "ledger_repeats", "Submitted events passed over: the ledger had them already", registry=None
)
PARKED: Final = Counter(
    "ledger_parked", "Messages, or parts of one, that can't be read and were parked", registry=None
)
COMMIT_S: Final = Histogram(
    "ledger_commit_seconds",
    "From the first INSERT of a batch to the answer to its COMMIT",
    buckets=LATENCY_S,
    registry=None,
)
COMMIT_EVENTS: Final = Histogram(
    "ledger_commit_events",
    "Events appended by a COMMIT, submitted and decided",
    buckets=SIZES,
    registry=None,
)
MESSAGE_EVENTS: Final = Histogram(
    "ledger_message_events", "Submitted events in a delivered message", buckets=SIZES, registry=None
)
HEAD_POSITION: Final = Gauge(
    "ledger_head_position", "The last position of the ledger that this writer knows", registry=None
)
EPOCH: Final = Gauge(
    "ledger_epoch", "The epoch in which this writer leads; 0: it stands by", registry=None
)
INBOX_MESSAGES: Final = Gauge(
    "ledger_inbox_messages", "Messages in the inbox that are not yet delivered", registry=None
)
PARKING_MESSAGES: Final = Gauge(
    "ledger_parking_messages", "Messages in the parking queue", registry=None
)
WRITER: Final = (
    CONNECTED,
    DECIDED,
    REPEATS,
    PARKED,
    COMMIT_S,
    COMMIT_EVENTS,
    MESSAGE_EVENTS,
    HEAD_POSITION,
    EPOCH,
    INBOX_MESSAGES,
    PARKING_MESSAGES,
)


class Publishing:
    """What one publisher measures."""

    def __init__(self) -> None:
        self.accepted = Counter(
            "ledger_accepted_events", "Submitted events that the broker confirmed", registry=None
        )
        self.not_accepted = Counter(
            "ledger_not_accepted_events",
            "Submitted events that the broker did not confirm, by reason",
            ["reason"],
            registry=None,
        )
        self.publish_s = Histogram(
            "ledger_publish_seconds",
            "From publishing a group to its confirm",
            buckets=LATENCY_S,
            registry=None,
        )
        self.group_events = Histogram(
            "ledger_publish_group_events",
            "Submitted events in a confirmed group",
            buckets=SIZES,
            registry=None,
        )
        self.waiting = Gauge(
            "ledger_publish_waiting_events", "Events that wait to be published", registry=None
        )
        self.blocked = Gauge(
            "ledger_inbox_blocked",
            "Whether the broker, in need of memory or disk, did not read what was published last",
            registry=None,
        )
        self.collectors: tuple[Collector, ...] = (
            CONNECTED,
            self.accepted,
            self.not_accepted,
            self.publish_s,
            self.group_events,
            self.waiting,
            self.blocked,
        )


def registry_of(collectors: Iterable[Collector]) -> CollectorRegistry:
    """What one process shows: these, and its own memory, CPU time and open files."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry
