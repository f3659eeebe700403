"""What ends a command with one sentence rather than with a traceback.

It names what may fail in every part of the ledger, and so imports them all: see `cli.running`.
"""

from typing import Final

from cli.export import BadExport, ExportRefused, ImportRefused, NoParquet
from cli.lines import OutputFailed
from cli.replay import ReplayRefused, ReplayStopped
from cli.settings import MissingSecret
from cli.submitting import NotShown
from ledger.eventlog.encryption import WrongKey
from ledger.eventlog.store import LedgerDamaged
from ledger.messaging.parking import ParkingBusy
from ledger.messaging.publisher import InboxUnavailable
from ledger.messaging.rabbitmq import BROKER_ERRORS
from ledger.messaging.topology import OldParkingInUse
from ledger.runtime.database import DATABASE_ERRORS, UnsafeDatabase
from ledger.runtime.tracing import NoOpenTelemetry
from projections.as_of import PositionBeyondHead
from projections.queries import ViewsUnavailable
from projections.table_swap import RebuildRefused
from projections.tables import CheckpointLost, ViewOutdated
from projections.trial_balance import JournalBehind
from projections.views.projection import ViewDamaged

REFUSED: Final = (
    UnsafeDatabase,
    LedgerDamaged,
    ViewDamaged,
    ViewOutdated,
    CheckpointLost,
    RebuildRefused,
    WrongKey,
    InboxUnavailable,
    NotShown,
    ViewsUnavailable,
    OldParkingInUse,
    ParkingBusy,
    PositionBeyondHead,
    JournalBehind,
    ReplayRefused,
    ReplayStopped,
    OutputFailed,
    MissingSecret,
    NoOpenTelemetry,
    NoParquet,
    ExportRefused,
    BadExport,
    ImportRefused,
    *BROKER_ERRORS,
    *DATABASE_ERRORS,
)
"""The status is 1 then."""
