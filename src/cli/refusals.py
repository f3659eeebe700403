"""What ends a command with one sentence rather than with a traceback.

It names what may fail in every part of the ledger, and so imports them all: see `cli.running`.
"""

from typing import Final

from cli.exports import BadExport, ExportRefused, ImportRefused, NoParquet
from cli.lines import OutputFailed
from cli.replays import ReplayRefused, ReplayStopped
from cli.settings import MissingSecret
from cli.submitting import NotShown
from ledger.broker import BROKER_ERRORS
from ledger.database import DATABASE_ERRORS, UnsafeDatabase
from ledger.parking import ParkingBusy
from ledger.publisher import InboxUnavailable
from ledger.sealing import WrongKey
from ledger.store import LedgerDamaged
from ledger.topology import OldParkingInUse
from ledger.tracing import NoOpenTelemetry
from projections.history import Beyond
from projections.projection import ViewDamaged
from projections.queries import ViewsUnavailable
from projections.swapping import RebuildRefused
from projections.trial_balance import JournalBehind
from projections.views import CheckpointLost, ViewOutdated

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
    Beyond,
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
