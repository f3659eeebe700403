"""The reader of the ledger: all SQL that reads `events`, but for what the append looks up itself.

Whoever follows the ledger reads pages of it, in which no decision is cut. The other methods are
look-ups, each by an index.
"""

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import Recorded
from ledger.eventlog.codec import NO_KEYS, decode_recorded, origin_of, uuid_of
from ledger.eventlog.decisions import REFUSED, Decision, last_decision_index, to_decisions
from ledger.eventlog.encryption import REGISTERED, KeyRow, is_sealed
from ledger.eventlog.records import (
    COLUMNS,
    GENESIS_HASH,
    ChainCheck,
    Head,
    LedgerDamaged,
    Record,
    VerificationFailed,
    gap_error,
)
from ledger.runtime.database import id_literals, placeholders, select

PAGE: Final = 5_000
MAX_POSITION: Final = 2**63 - 1
_FIELDS: Final = Record.__struct_fields__
_WIDTH: Final = len(_FIELDS)
# The encryption key of the name in an event, where it may have one.
_JOIN_KEYS: Final = (
    f"LEFT JOIN customer_keys k ON k.customer_id = e.stream_id AND e.type = '{REGISTERED}'"
)

_SELECT_IDENTIFIED_HEAD: Final = (
    "SELECT (SELECT ledger_id FROM ledger_identity) AS ledger_id,"
    " (SELECT MAX(position) FROM events) AS head"
)
_SELECT_IDENTIFIED_END: Final = (
    "SELECT ledger_id, position, hash FROM ledger_identity"
    " LEFT JOIN (SELECT position, hash FROM events ORDER BY position DESC LIMIT 1) e ON TRUE"
)
NO_IDENTITY: Final = "the ledger has no identity: run `ledger migrate`"

# Encryption keys by customer; None for one that was destroyed.
Keys = Mapping[bytes, bytes | None]

_position = attrgetter("position")


class EventPage(Struct, frozen=True):
    """Contiguous records, and the encryption keys of the names in them if they were asked for."""

    records: Sequence[Record]
    keys: Keys = NO_KEYS

    @property
    def position(self) -> int:
        """The position of the last record."""
        return self.records[-1].position

    def decisions(self) -> list[Decision]:
        """Split the records into decisions."""
        return to_decisions(self.records)

    def effective_events(self, decisions: Iterable[Decision] | None = None) -> list[Recorded]:
        """Return the events that took effect, in order; raises what `codec.decode_recorded` raises.

        `decisions` are those of the page, for a caller that has them already.

        Submissions that were refused are left out, the events that refuse them are not.
        """
        return [
            decode_recorded(record, self.keys)
            for decision in decisions or self.decisions()
            for record in decision.effective_records
        ]


class RecordWithCause(Struct, frozen=True, gc=False):
    """A record, the id of the event it was decided of, and the encryption key of a name in it."""

    record: Record
    cause_id: bytes | None
    encryption_key: bytes | None = None


class NoIdentity(Exception):
    """The table `ledger_identity` has no row."""


class IdentifiedHead(Struct, frozen=True):
    """The last position of a ledger, 0 if it is empty, and which ledger it is."""

    ledger_id: UUID
    position: int


class Scan(Struct, frozen=True):
    """Records in ledger order; all up to `scanned_to` were looked at, of those there are."""

    head: IdentifiedHead
    records: list[RecordWithCause]
    scanned_to: int


class LedgerEnd(Struct, frozen=True):
    """The last position that both `events` and `ledger_head` have, and where they differ."""

    position: int
    failure: VerificationFailed | None = None


class EventReader:
    """Reads the ledger on one connection. Transactions are the caller's."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def head(self) -> Head:
        """The head as it is now."""
        (row,) = await self._rows("SELECT position, hash, epoch FROM ledger_head WHERE id = 1")
        return Head(*row)

    async def compare_head(self) -> LedgerEnd:
        """Compare `ledger_head` with the last record, and return where the ledger ends."""
        # One statement sees head and events at one moment, whatever the writer does.
        rows = await self._rows(
            "SELECT h.position, h.hash, e.position, e.hash FROM ledger_head h"
            " LEFT JOIN events e ON e.position = (SELECT MAX(position) FROM events) WHERE h.id = 1"
        )
        if not rows:
            detail = "ledger_head has no row that says where the ledger ends"
            return LedgerEnd(0, VerificationFailed(1, detail))
        head, head_hash, last, last_hash = rows[0]
        last, last_hash = last or 0, last_hash or GENESIS_HASH
        end = min(head, last)
        if head != last:
            detail = f"ledger_head says that the ledger ends at {head}, but it ends at {last}"
            return LedgerEnd(end, VerificationFailed(end + 1, detail))
        if head_hash != last_hash:
            detail = "ledger_head has another hash than the record"
            return LedgerEnd(end, VerificationFailed(end, detail))
        return LedgerEnd(end)

    async def last_recorded(self, up_to: int = MAX_POSITION) -> tuple[int, int]:
        """Return position and recorded time of the last record up to one; (0, 0) without one."""
        rows = await self._rows(
            "SELECT position, recorded_at_us FROM events WHERE position <= %s"
            " ORDER BY position DESC LIMIT 1",
            up_to,
        )
        return rows[0] if rows else (0, 0)

    async def pages(
        self,
        after: int,
        up_to: int | None = None,
        *,
        limit: int | None = None,
        whole_batches: bool = False,
        with_keys: bool = False,
        chain: ChainCheck | None = None,
        up_to_damage: bool = False,
    ) -> AsyncGenerator[EventPage, None]:
        """The records after a position, page after page: up to another, or to where they end.

        A page has `limit` records, PAGE by default. It never ends within a decision, nor with
        `whole_batches` within an atomic batch, unless `up_to` does; one that is longer than a page
        is a page of its own. `with_keys` also reads the encryption keys of the names in it.
        `chain` checks the hashes on the way.

        Raises LedgerDamaged for an end before `up_to`, and for a page in which a position is
        missing or a hash is not the chain's; with `up_to_damage` only after yielding what such a
        page has before the missing position.
        """
        last, size = MAX_POSITION if up_to is None else up_to, limit or PAGE
        while after < last:
            # One record more than a page tells whether the page ends within a decision.
            rows = await self._rows(
                f"SELECT {COLUMNS} FROM events WHERE position > %s AND position <= %s"
                " ORDER BY position LIMIT %s",
                after,
                last,
                size + 1,
            )
            records = [Record(*row) for row in rows]
            if not records:
                if up_to is not None:
                    raise gap_error(after + 1, None)
                return
            failure = _first_gap(records, after)
            if failure and not up_to_damage:
                raise failure
            if failure:
                # The record after the gap stays: it tells whether more may belong to the last one.
                records = records[: failure.position - after]
            if failure or len(records) > size:
                end = last_decision_index(records, whole_batches=whole_batches)
                if not end and not failure:
                    size *= 2
                    continue
                records = records[:end]
            if chain:
                chain.check(records)
            if records:
                keys: Keys = NO_KEYS
                if with_keys:
                    sealed = [record.stream_id for record in records if is_sealed(record)]
                    keys = dict.fromkeys(sealed) | await self.encryption_keys(sealed)
                yield EventPage(records, keys)
                after, size = records[-1].position, limit or PAGE
            if failure:
                raise failure

    async def page(
        self, after: int, limit: int | None = None, *, with_keys: bool = False
    ) -> EventPage:
        """The page after a position, empty where the ledger ends; raises LedgerDamaged."""
        pages = self.pages(after, limit=limit, with_keys=with_keys)
        async with aclosing(pages):
            return await anext(pages, EventPage(()))

    async def identified_end(self) -> tuple[UUID, int, bytes]:
        """Which ledger it is, and position and hash of its last record; raises NoIdentity.

        Without a record they are those before the first one.
        """
        rows = await self._rows(_SELECT_IDENTIFIED_END)
        if not rows:
            raise NoIdentity(NO_IDENTITY)
        ledger_id, position, hash_ = rows[0]
        return uuid_of(ledger_id), position or 0, hash_ or GENESIS_HASH

    async def hashes_at(self, positions: Collection[int]) -> dict[int, bytes]:
        """The hashes at those of some positions that there are; at 0 stands the chain's begin."""
        if not positions:
            return {}
        rows = await self._rows(
            f"SELECT position, hash FROM events WHERE position IN ({placeholders(positions)})",
            *positions,
        )
        return {0: GENESIS_HASH, **dict(rows)}

    async def record_at(self, position: int) -> Record | None:
        """The record at a position, if there is one."""
        return (await self.records_at([position])).get(position)

    async def records_at(self, positions: Collection[int]) -> dict[int, Record]:
        """The records at some positions, by position."""
        if not positions:
            return {}
        rows = await self._rows(
            f"SELECT {COLUMNS} FROM events WHERE position IN ({placeholders(positions)})",
            *positions,
        )
        return {row[0]: Record(*row) for row in rows}

    async def streams(
        self, stream_ids: Sequence[bytes], before: int = MAX_POSITION
    ) -> dict[bytes, list[Record]]:
        """The records of some streams before a position, each stream in order."""
        histories: dict[bytes, list[Record]] = {}
        if not stream_ids:
            return histories
        rows = await self._rows(
            f"SELECT {COLUMNS} FROM events WHERE stream_id IN ({id_literals(stream_ids)})"
            " AND position < %s",
            before,
        )
        # Sorted here: with ORDER BY, MariaDB makes a temporary table on disk of what has BLOBs.
        for record in sorted((Record(*row) for row in rows), key=_position):
            histories.setdefault(record.stream_id, []).append(record)
        return histories

    async def last_positions(self, stream_ids: Sequence[bytes], after: int) -> dict[bytes, int]:
        """The last position of each of the streams that comes up after a position."""
        rows = await self._rows(
            "SELECT stream_id, MAX(position) FROM events WHERE position > %s"
            f" AND stream_id IN ({id_literals(stream_ids)}) GROUP BY stream_id",
            after,
        )
        return dict(rows)

    async def positions_of(self, event_ids: Sequence[bytes], before: int) -> dict[bytes, int]:
        """The positions of those of the events that stand before a position."""
        rows = await self._rows(
            f"SELECT event_id, position FROM events WHERE event_id IN ({id_literals(event_ids)})"
            " AND position < %s",
            before,
        )
        return dict(rows)

    async def decisions_by_id(self, event_ids: Sequence[bytes]) -> tuple[list[Decision], Keys]:
        """Return the decisions of those events that are recorded, and their encryption keys."""
        return await self._decisions(f"e.event_id IN ({placeholders(event_ids)})", *event_ids)

    async def decisions_of_stream(self, stream_id: UUID, types: Sequence[str]) -> list[Decision]:
        """The decisions of the submitted events of some types in one stream, in order."""
        where = f"e.stream_id = %s AND e.type IN ({placeholders(types)}) ORDER BY e.version"
        decisions, _ = await self._decisions(where, stream_id.bytes, *types)
        return decisions

    async def _decisions(self, where: str, *parameters: object) -> tuple[list[Decision], Keys]:
        rows = await self._rows(
            f"SELECT k.sealing_key, {_columns('e')}, {_columns('d')} FROM events e"
            " LEFT JOIN events d ON d.position = e.position + 1 AND d.cause_position = e.position"
            f" {_JOIN_KEYS} WHERE {where}",
            *parameters,
        )
        decisions: list[Decision] = []
        keys: dict[bytes, bytes | None] = {}
        for key, *columns in rows:
            cause = Record(*columns[:_WIDTH])
            # All NULL where nothing was decided of it.
            decided = (Record(*columns[_WIDTH:]),) if columns[_WIDTH] is not None else ()
            decisions.append(Decision(cause, decided))
            if key is not None:
                keys[cause.stream_id] = key
        return decisions, keys

    async def effective_events_of(
        self,
        stream_ids: Sequence[UUID],
        types: Sequence[str] = (),
        *,
        after: int = 0,
        up_to: int = MAX_POSITION,
        beyond_version: int = 0,
    ) -> list[Recorded]:
        """Return the events of these streams that took effect, in order; of some types, if given.

        They are those between two positions, of versions above `beyond_version`: whether a stream
        has any of these, the index alone tells.
        """
        events = await self._effective(
            f"e.stream_id IN ({id_literals(id_.bytes for id_ in stream_ids)}) AND e.version > %s"
            " AND e.position > %s AND e.position <= %s"
            + (f" AND e.type IN ({placeholders(types)})" if types else ""),
            beyond_version,
            after,
            up_to,
            *types,
        )
        return sorted(events, key=_position)

    async def effective_events_mentioning(
        self, key: UUID, types: Sequence[str], after: int, up_to: int
    ) -> list[Recorded]:
        """The events after a position and up to another that may concern an id.

        They are those of its stream, and those of some types with the id in their data. The caller
        keeps the window small: every record in it is looked at.
        """
        return await self._effective(
            "e.position > %s AND e.position <= %s"
            " AND (e.stream_id = %s"
            f" OR (e.type IN ({placeholders(types)}) AND INSTR(e.data, %s) > 0))",
            after,
            up_to,
            key.bytes,
            *types,
            str(key).encode(),
            # Without the hint the optimiser may walk through the whole index of streams for the OR.
            hint="FORCE INDEX (PRIMARY)",
            order="ORDER BY e.position",
        )

    async def _effective(
        self, where: str, *parameters: object, hint: str = "", order: str = ""
    ) -> list[Recorded]:
        rows = await self._rows(
            f"SELECT k.sealing_key, {_columns('e')} FROM events e {hint} LEFT JOIN events r"
            " ON r.position = e.position + 1 AND r.cause_position = e.position"
            f" AND r.type = '{REFUSED}' {_JOIN_KEYS}"
            f" WHERE r.position IS NULL AND {where} {order}",
            *parameters,
        )
        records = [(Record(*columns), key) for key, *columns in rows]
        return [decode_recorded(record, {record.stream_id: key}) for record, key in records]

    async def last_decided_record(self, up_to: int, window: int) -> Record | None:
        """The last decided event among the `window` positions up to one."""
        rows = await self._rows(
            f"SELECT {COLUMNS} FROM events WHERE position <= %s AND position > %s"
            " AND cause_position > 0 ORDER BY position DESC LIMIT 1",
            up_to,
            up_to - window,
        )
        return Record(*rows[0]) if rows else None

    async def identified_head(self) -> IdentifiedHead:
        """Which ledger this is, and where it ends."""
        (row,) = await self._rows(_SELECT_IDENTIFIED_HEAD)
        return _identified_head(row)

    async def version_at(self, stream_id: UUID, position: int) -> int:
        """The version that a stream had at a position, 0 before its first event.

        It takes look-ups in the number of the logarithm of the stream's length.
        """

        async def position_of(version: int) -> int:
            ((found,),) = await self._rows(
                "SELECT position FROM events WHERE stream_id = %s AND version = %s",
                stream_id.bytes,
                version,
            )
            return int(found)

        if not position:
            return 0
        last = await self._rows(
            "SELECT version, position FROM events WHERE stream_id = %s"
            " ORDER BY version DESC LIMIT 1",
            stream_id.bytes,
        )
        if not last:
            return 0
        if last[0][1] <= position:
            return int(last[0][0])
        low, high = 0, int(last[0][0])
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if await position_of(middle) > position else (middle, high)
        return low

    async def with_causes(
        self,
        after: int,
        up_to: int,
        limit: int,
        *,
        stream_id: UUID | None = None,
        types: Collection[str] = (),
        with_keys: bool = False,
    ) -> list[RecordWithCause]:
        """At most `limit` records between two positions, of a stream and of some types if given."""
        versions = None
        if stream_id:
            versions = (await self.version_at(stream_id, after), MAX_POSITION)
        select, parameters = _select_with_causes(
            (after, up_to), limit, stream_id, versions, types, with_keys
        )
        return _records_with_cause(await self._rows(select, *parameters))

    async def scan(
        self,
        after: int,
        window: int,
        limit: int,
        *,
        stream_id: UUID | None = None,
        types: Collection[str] = (),
    ) -> Scan:
        """At most `limit` records after a position, of a stream and of some types if given.

        It looks at `window` positions, or at so many events of the stream, and at no more.
        """
        versions, positions = None, (after, after + window)
        if stream_id:
            version = await self.version_at(stream_id, after)
            versions, positions = (version, version + window), (after, MAX_POSITION)
        select, parameters = _select_with_causes(
            positions, limit, stream_id, versions, types, with_keys=False
        )
        # One statement for two questions: a page is asked for often, and mostly it is empty.
        rows = await self._rows(
            f"SELECT h.*, p.* FROM ({_SELECT_IDENTIFIED_HEAD}) h LEFT JOIN ({select}) p ON TRUE",
            *parameters,
        )
        head = _identified_head(rows[0])
        records = _records_with_cause([row[2:] for row in rows if row[2] is not None])
        records.sort(key=lambda row: row.record.position)
        if len(records) == limit:
            scanned_to = records[-1].record.position
        elif versions and types:
            # Events of other types may have filled the window.
            last = await self._rows(
                "SELECT position FROM events WHERE stream_id = %s AND version = %s",
                stream_id and stream_id.bytes,
                versions[1],
            )
            scanned_to = min(last[0][0], head.position) if last else head.position
        else:
            scanned_to = min(positions[1], head.position)
        return Scan(head, records, max(after, scanned_to))

    async def atomic_batch_at(self, position: int) -> tuple[int, int] | None:
        """The first and last position of the atomic batch that holds a position, if one does."""
        record = await self.record_at(position)
        if record and record.cause_position:
            record = await self.record_at(record.cause_position)
        atomic_id = origin_of(record).atomicid if record else None
        if atomic_id is None:
            return None
        submitted = "SELECT position FROM events WHERE cause_position = 0 AND position"
        other, batch = "AND INSTR(meta, %s) = 0", str(atomic_id).encode()
        # LIMIT rather than MIN and MAX: so the server stops at the first row that it finds.
        before = await self._rows(
            f"{submitted} < %s {other} ORDER BY position DESC LIMIT 1", position, batch
        )
        after = await self._rows(
            f"{submitted} > %s {other} ORDER BY position LIMIT 1", position, batch
        )
        first = await self._rows(
            f"{submitted} > %s ORDER BY position LIMIT 1", before[0][0] if before else 0
        )
        last = after[0][0] - 1 if after else (await self.head()).position
        return first[0][0], last

    async def encryption_keys(self, customer_ids: Collection[bytes]) -> dict[bytes, bytes | None]:
        """Return the encryption key of each customer that ever had one; None if destroyed."""
        if not customer_ids:
            return {}
        rows = await self._rows(
            "SELECT customer_id, sealing_key FROM customer_keys"
            f" WHERE customer_id IN ({placeholders(customer_ids)})",
            *customer_ids,
        )
        return dict(rows)

    async def key_rows(self, after: bytes, created_up_to_us: int) -> list[KeyRow]:
        """A page of the encryption keys made up to a time, by customer, after one of these."""
        rows = await self._rows(
            f"SELECT {', '.join(KeyRow.__struct_fields__)} FROM customer_keys"
            " WHERE customer_id > %s AND created_at_us <= %s ORDER BY customer_id LIMIT %s",
            after,
            created_up_to_us,
            PAGE,
        )
        return [KeyRow(*row) for row in rows]

    async def _rows(self, statement: str, *parameters: object) -> Sequence[Any]:
        return await select(self._connection, statement, parameters)


def _first_gap(records: Sequence[Record], after: int) -> LedgerDamaged | None:
    """The error for the first missing position, if one is missing."""
    # They are in order and all different: so the last one tells whether any is missing.
    if records[-1].position == after + len(records):
        return None
    return next(gap_error(p, r) for p, r in enumerate(records, after + 1) if r.position != p)


def _columns(alias: str) -> str:
    return ", ".join(f"{alias}.{name} AS {alias}_{name}" for name in _FIELDS)


def _identified_head(row: Sequence[Any]) -> IdentifiedHead:
    ledger_id, position, *_ = row
    if ledger_id is None:
        raise NoIdentity(NO_IDENTITY)
    return IdentifiedHead(uuid_of(ledger_id), position or 0)


def _select_with_causes(
    positions: tuple[int, int],
    limit: int,
    stream_id: UUID | None,
    versions: tuple[int, int] | None,
    types: Collection[str],
    with_keys: bool,
) -> tuple[str, list[object]]:
    # The index is named, as the optimiser sometimes prefers to sort what the other one finds.
    index, order = ("events_stream", "e.version") if stream_id else ("PRIMARY", "e.position")
    conditions = ["e.position > %s", "e.position <= %s"]
    parameters: list[object] = [*positions]
    if stream_id and versions:
        conditions += ["e.stream_id = %s", "e.version > %s", "e.version <= %s"]
        parameters += (stream_id.bytes, *versions)
    if types:
        conditions.append(f"e.type IN ({placeholders(types)})")
        parameters += types
    key = "k.sealing_key" if with_keys else "NULL"
    select = (
        f"SELECT {_columns('e')}, c.event_id AS cause_id, {key} AS encryption_key"
        f" FROM events e FORCE INDEX ({index})"
        f" LEFT JOIN events c ON c.position = e.cause_position {_JOIN_KEYS if with_keys else ''}"
        f" WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT %s"
    )
    return select, [*parameters, limit]


def _records_with_cause(rows: Iterable[Sequence[Any]]) -> list[RecordWithCause]:
    return [RecordWithCause(Record(*row[:_WIDTH]), *row[_WIDTH:]) for row in rows]
