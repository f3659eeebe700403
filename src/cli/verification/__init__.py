"""`ledger verify`: the ledger decided again, views compared with it, and heads that were kept."""

from pathlib import Path

from msgspec import Struct

from ledger.audit.signatures import KeptHead
from projections.check import CheckedView


class Wish(Struct, frozen=True):
    """What is to be verified, from where, and against which kept head.

    With `views` it is these, and not the ledger. `helps` is the process that this is a part for.
    """

    since_position: int = 0
    quick: bool = False
    resume: Path | None = None
    against: KeptHead | None = None
    views: tuple[str, ...] = ()
    helps: int = 0


class Audited(Struct, frozen=True):
    """A ledger that is right up to a position, and after `since`, which was trusted."""

    position: int
    hash: str
    since: int


class Verified(Struct, frozen=True):
    """What was found right, and how long each part took."""

    ledger: Audited | None
    views: list[CheckedView]
    ledger_s: float
    views_s: float


class Finding(Struct, frozen=True):
    """The first position where something is wrong, and what."""

    position: int
    what: str
