"""What the writer tells of a batch once it is committed: counts, log lines, spans."""

import logging
from collections.abc import Sequence

from ledger.eventlog.composer import Composer
from ledger.eventlog.records import Submitted
from ledger.eventlog.store import Head
from ledger.runtime import tracing
from ledger.runtime.metrics import COMMIT_EVENTS, COMMIT_S, DECIDED, HEAD_POSITION

log = logging.getLogger(__name__)


def tell_commit(
    events: Sequence[Submitted], composer: Composer, head: Head, began_ns: int, commit_s: float
) -> None:
    """Tell of submitted events whose batch began at `began_ns` and took `commit_s` to append."""
    COMMIT_S.observe(commit_s)
    COMMIT_EVENTS.observe(len(composer.records))
    HEAD_POSITION.set(head.position)
    for labels, count in composer.outcomes.items():
        DECIDED.labels(*labels).inc(count)
    if tracing.enabled() or log.isEnabledFor(logging.DEBUG):
        _tell_each(events, composer, head.epoch, began_ns)


def _tell_each(events: Sequence[Submitted], composer: Composer, epoch: int, began_ns: int) -> None:
    submitted = (record for record in composer.records if not record.cause_position)
    for event, record in zip(events, submitted, strict=True):
        event_id = str(event.event_id)
        log.debug(
            "writer: recorded",
            extra={"event_id": event_id, "position": record.position, "epoch": epoch},
        )
        if event.traceparent:
            about: tracing.Attributes = {
                "ledger.event_id": event_id,
                "ledger.position": record.position,
            }
            tracing.record_span("decide and commit", event.traceparent, about, began_ns)
