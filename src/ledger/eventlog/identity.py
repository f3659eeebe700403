"""What tells a ledger from others, and from copies of itself: its id, and a hash at a position.

A restored copy has the id of its original, and the same hashes up to where it was made. From there
on both differ, or one has positions that the other lacks. So whoever passes something on to another
process names the head that it has seen, and whoever gets it compares that with its own database.
Two copies that have the same head are one ledger as far as anybody can tell.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final
from uuid import UUID

from msgspec import MsgspecError, Struct
from msgspec.json import Decoder, Encoder
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.eventlog.reader import MAX_POSITION, EventReader, NoIdentity
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.metrics import FOREIGN_LEDGER

log = logging.getLogger(__name__)

CHECK_S: Final = 1.0
# What was committed on the same server shows at once; a replica that is further behind than that
# can't be told from a ledger that lost its end.
GRACE_S: Final = 2.0
# A writer that leads and a projector repeat their heads more often, however idle they are.
HEARD_FOR_S: Final = 10.0
MAX_HEARD: Final = 1_000

LEDGER_HEADER: Final = "x-ledger-id"
POSITION_HEADER: Final = "x-ledger-position"
HASH_HEADER: Final = "x-ledger-hash"


class ForeignLedger(Exception):
    """Something is of another ledger, or of a history that this one does not have."""


class SeenHead(Struct, frozen=True):
    """A head that somebody has seen: which ledger, a position in it, and the hash there."""

    ledger_id: UUID
    position: int
    hash: bytes

    def headers(self) -> dict[str, Any]:
        """The AMQP headers of a message by somebody who has seen it."""
        return {
            LEDGER_HEADER: str(self.ledger_id),
            POSITION_HEADER: self.position,
            HASH_HEADER: self.hash.hex(),
        }

    def __str__(self) -> str:
        return f"ledger {self.ledger_id}, position {self.position}, hash {self.hash.hex()[:16]}…"


encode_head: Final = Encoder().encode
_decode = Decoder(SeenHead).decode


def decode_head(body: bytes) -> SeenHead | None:
    """The head in a notification of the writer; None in one of a version that names only where."""
    try:
        return _decode(body)
    except MsgspecError:
        return None


def head_of(headers: Mapping[str, Any]) -> SeenHead | None:
    """The head that the headers of a message name; None where they name none that can be read."""
    if LEDGER_HEADER not in headers:
        return None
    try:
        head = SeenHead(
            UUID(headers[LEDGER_HEADER]),
            headers[POSITION_HEADER],
            bytes.fromhex(headers[HASH_HEADER]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        head = None
    if head is None or type(head.position) is not int or not 0 <= head.position <= MAX_POSITION:
        log.warning("a message names a ledger in headers that can't be read; they are ignored")
        return None
    return head


async def read_head(connection: AsyncConnection) -> SeenHead:
    """The last record of this ledger; raises NoIdentity."""
    return SeenHead(*await EventReader(connection).identified_end())


class HeadCheck:
    """Compares heads that others have seen with this ledger's own; it asks once about each.

    Others' positions after `lost_after` are believed to be lost in a restore, and not compared.
    """

    def __init__(self, ledger_id: UUID, lost_after: int | None = None) -> None:
        self._ledger_id = ledger_id
        self._lost_after = MAX_POSITION if lost_after is None else lost_after
        self._known: set[SeenHead] = set()

    async def refuse_foreign(
        self, connection: AsyncConnection, heads: Collection[SeenHead]
    ) -> None:
        """Raise ForeignLedger unless this ledger has them all, each with the same hash."""
        unknown = {head for head in heads if head not in self._known}
        if not unknown:
            return
        own = {head for head in unknown if head.ledger_id == self._ledger_id}
        found = await EventReader(connection).hashes_at({head.position for head in own})
        for head in unknown:
            if why := difference(head, self._ledger_id, found):
                if head in own and head.position > self._lost_after:
                    continue
                raise ForeignLedger(
                    f"the inbox has orders that were accepted by who had seen {head}, but {why}:"
                    " they are of another ledger, or of one that has more than this one. Nothing"
                    " was decided, and all is in the inbox still. Let this writer's settings name"
                    " the ledger of that API, or give each ledger a virtual host of its own; where"
                    " this one was restored from a backup, see LEDGER_LOST_AFTER"
                )
        # Bounded: an API names a new one now and then, and the old ones don't come again.
        if len(self._known) > MAX_HEARD:
            self._known.clear()
        self._known |= unknown


def difference(head: SeenHead, ledger_id: UUID, hashes: Mapping[int, bytes]) -> str | None:
    """Say how a head differs from a ledger with some hashes at positions, if it does."""
    if head.ledger_id != ledger_id:
        return f"this is ledger {ledger_id}"
    if (found := hashes.get(head.position)) == head.hash:
        return None
    if found is None:
        return f"this ledger has no position {head.position}"
    return f"this ledger has the hash {found.hex()[:16]}… there"


class HeadWatch:
    """Watches this ledger, and the heads that a process hears of, for as long as it runs.

    `head` is where this ledger ends, as of the last check. `foreign` says what is wrong while a
    head was heard in the last HEARD_FOR_S that this ledger does not have, and `lost` while this
    ledger does not have any more what it had. Both are None else.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._heard: dict[SeenHead, float] = {}
        self._foreign_s = 0.0
        self._lost_s: float | None = None
        self._on_lost: list[Callable[[], None]] = []
        self.head: SeenHead | None = None
        self.foreign: str | None = None
        self.lost: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong, in one sentence; None while nothing is known to be."""
        return self.lost or self.foreign

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call this when the ledger has gone back: what was remembered of it may be gone."""
        self._on_lost.append(callback)

    def hear(self, head: SeenHead | None) -> None:
        """Note a head that somebody else names; the next check compares it."""
        if head and head != self.head and len(self._heard) < MAX_HEARD:
            self._heard.setdefault(head, time.monotonic())

    def hear_of_foreign(self, why: str | None) -> None:
        """Note what another process of this ledger says is wrong."""
        if why:
            self._set_foreign(why)

    async def run(self) -> None:
        """Check for as long as the process runs."""
        while True:
            try:
                await self.check()
            except (*DATABASE_ERRORS, NoIdentity) as error:
                log.debug("the heads of others can't be compared now: %r", error)
            await asyncio.sleep(CHECK_S)

    async def check(self) -> None:
        """Compare what was heard, and what was seen last, with the ledger."""
        heard = dict(self._heard)
        last = self.head
        async with self._engine.connect() as connection:
            current = await read_head(connection)
            positions = {head.position for head in (*heard, *((last,) if last else ()))}
            hashes = await EventReader(connection).hashes_at(positions)
        now_s = time.monotonic()
        for head, since_s in heard.items():
            why = difference(head, current.ledger_id, hashes)
            is_early = head.ledger_id == current.ledger_id and head.position not in hashes
            if why and is_early and now_s - since_s < GRACE_S:
                continue
            del self._heard[head]
            if why:
                self._set_foreign(
                    f"another ledger works on this virtual host of the broker: it is at {head}, but"
                    f" {why}. Stop its processes, or give it a virtual host of its own"
                )
        if self.foreign and now_s - self._foreign_s > HEARD_FOR_S:
            log.warning("the other ledger was not heard for %g s", HEARD_FOR_S)
            self.foreign = None
        why = difference(last, current.ledger_id, hashes) if last else None
        self._note_lost(why, now_s)
        if self._lost_s is None:
            self.head = current
        FOREIGN_LEDGER.set(self.problem is not None)

    def _set_foreign(self, why: str) -> None:
        if self.foreign is None:
            log.error("%s", why)
        self.foreign, self._foreign_s = why, time.monotonic()

    def _note_lost(self, why: str | None, now_s: float) -> None:
        if why is None:
            if self.lost:
                log.warning("the ledger has again what it had")
            self._lost_s = self.lost = None
            return
        if self._lost_s is None:
            self._lost_s = now_s
        if self.lost is None and now_s - self._lost_s >= GRACE_S:
            self.lost = (
                f"the ledger went back: this process has seen {self.head}, but {why}. If it was"
                " restored from a backup, restart this process once the ledger is what it should be"
            )
            log.error("%s", self.lost)
            for callback in self._on_lost:
                callback()
