"""Metrics of publisher and writer, and the registry in which a process exposes its metrics.

No collector registers itself (`registry=None`): each process exposes those of its own parts, with
`registry_of`.
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
    "1 while this process is connected to the inbox and no confirm is overdue",
    registry=None,
)

DECIDED: Final = Counter(
    "ledger_decided_events",
    "Submitted events in the ledger, by outcome, and by reason where they were refused",
    ["outcome", "reason"],
    registry=None,
)
DUPLICATES: Final = Counter(
    "ledger_repeats", "Submitted events skipped because the ledger had them already", registry=None
)
PARKED: Final = Counter(
    "ledger_parked",
    "Messages, or parts of one, that could not be decoded and were parked",
    registry=None,
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
    "ledger_head_position",
    "The last position of the ledger that this writer has read or written",
    registry=None,
)
EPOCH: Final = Gauge(
    "ledger_epoch", "The epoch in which this writer leads, 0 while it stands by", registry=None
)
CLOCK_AHEAD_S: Final = Gauge(
    "ledger_clock_ahead_seconds",
    "By how much this writer's clock is ahead of the database's; below 0: behind",
    registry=None,
)
RECORDED_AHEAD_S: Final = Gauge(
    "ledger_recorded_ahead_seconds",
    "By how much the newest event's recorded time is ahead of this writer's clock, or 0",
    registry=None,
)
CLOCK_WRONG: Final = Gauge(
    "ledger_clock_wrong",
    "1 while this writer records nothing, as clocks differ by more than LEDGER_CLOCK_LIMIT_S",
    registry=None,
)
SNAPSHOTS_REFUSED: Final = Counter(
    "ledger_snapshots_refused",
    "Times that this process passed over a snapshot that is torn or not sealed with its key",
    registry=None,
)
INBOX_MESSAGES: Final = Gauge(
    "ledger_inbox_messages", "Messages in the inbox that are not delivered yet", registry=None
)
PARKING_MESSAGES: Final = Gauge(
    "ledger_parking_messages", "Messages in the parking queue", registry=None
)
POLICY_PROBLEMS: Final = Gauge(
    "ledger_policy_problems",
    "Policies of the broker that may drop, move or refuse messages of the queues",
    registry=None,
)
FOREIGN_LEDGER: Final = Gauge(
    "ledger_foreign",
    "1 while this process knows of another ledger on its virtual host, or that its own went back",
    registry=None,
)
WRITER: Final = (
    FOREIGN_LEDGER,
    CONNECTED,
    DECIDED,
    DUPLICATES,
    PARKED,
    COMMIT_S,
    COMMIT_EVENTS,
    MESSAGE_EVENTS,
    HEAD_POSITION,
    EPOCH,
    CLOCK_AHEAD_S,
    RECORDED_AHEAD_S,
    CLOCK_WRONG,
    SNAPSHOTS_REFUSED,
    INBOX_MESSAGES,
    PARKING_MESSAGES,
    POLICY_PROBLEMS,
)


class PublisherMetrics:
    """Metrics of one publisher; a process may have several."""

    def __init__(self) -> None:
        self.accepted = Counter(
            "ledger_accepted_events", "Submitted events that the broker confirmed", registry=None
        )
        self.not_accepted = Counter(
            "ledger_not_accepted_events",
            "Submitted events that were refused, by reason and whether the inbox may have them",
            ["reason", "accepted"],
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
            "ledger_publish_waiting_events", "Events waiting to be published", registry=None
        )
        self.blocked = Gauge(
            "ledger_inbox_blocked",
            "1 while the broker, short of memory or disk, blocks publishers",
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
    """A registry of these collectors, and of the process's memory, CPU time and open files."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry
