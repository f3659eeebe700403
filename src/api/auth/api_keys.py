"""API keys: their form, their table, and the copy of it that a process checks requests by.

An API key is `lk_<prefix>_<secret>`. The prefix finds it and names it in logs; the secret has 256
random bits, so one SHA-256 of it is as hard to undo as any slow hash would be.
"""

import asyncio
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.runtime.cache import BoundedDict
from ledger.runtime.database import DATABASE_ERRORS, placeholders, select
from ledger.runtime.reconnect import end, first_to_end
from ledger.runtime.timestamps import SECOND_US, now_us

log = logging.getLogger(__name__)

SECRET_BYTES: Final = 32
MAX_NAME: Final = 100
START: Final = "lk_"
# How long a revoked API key may still be accepted while the database answers in time,
FRESH_S: Final = 5.0
# while it can be reached and is slow,
SLOW_S: Final = 60.0
# and while it is away: nobody can revoke the key there then.
STALE_S: Final = 3600.0
# How often the database is asked whether its table is another, so that a key is seldom older.
ASK_EVERY_S: Final = 1.0
# Less than FRESH_S together with ASK_EVERY_S: no request has to wait to learn that it is slow.
LATE_S: Final = 2.5
# An answer is waited for, as what slow databases say counts, too; reconnecting comes after it.
ANSWER_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 4.0
# The table is copied after this time at the latest, whatever the database says of it: behind a
# proxy that spreads statements, the rows may have come from a server that was behind.
COPY_AGAIN_S: Final = 60.0
MAX_COPIED: Final = 10_000
COPY_PAGE: Final = 500
# Of prefixes that the copy has not.
LOOKUP_TIMEOUT_S: Final = 1.5
LOOKUP_FRESH_S: Final = 2.0
MAX_LOOKED_UP: Final = 10_000
MAX_WAITING: Final = 1_000
# A busy process may find the deadline past and the answer there at one moment.
GRACE_S: Final = 0.2
# One for the copy, one for look-ups: neither waits for what the views are read with.
KEY_CONNECTIONS: Final = 2

UNKNOWN: Final = "the API key can't be checked: the database does not answer"
T = TypeVar("T")

_FORM: Final = re.compile(r"lk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})").fullmatch
_COLUMNS: Final = (
    "prefix, secret_hash, client, name, scopes, customer_id,"
    " created_at_us, expires_at_us, revoked_at_us"
)


class StoredApiKey(Struct, frozen=True):
    """A row of the table `api_keys`; times are µs since the Unix epoch.

    `client` is the prefix of the holder's first key: rotation keeps it.
    """

    prefix: str
    secret_hash: bytes
    client: str
    name: str
    scopes: tuple[str, ...]
    customer_id: UUID | None
    created_at_us: int
    expires_at_us: int | None = None
    revoked_at_us: int | None = None

    def ended(self, now_us: int) -> str | None:
        """`revoked` or `expired` if the key can't be used any more, else None."""
        if self.revoked_at_us is not None and self.revoked_at_us <= now_us:
            return "revoked"
        if self.expires_at_us is not None and self.expires_at_us <= now_us:
            return "expired"
        return None

    def has_secret(self, secret: str) -> bool:
        """Whether this is the key's secret; takes as long for a wrong one."""
        return hmac.compare_digest(self.secret_hash, hash_secret(secret))


class ApiKeyParts(NamedTuple):
    """An API key as its holder has it."""

    prefix: str
    secret: str

    def __str__(self) -> str:
        """The text that is shown once and sent with every request."""
        return f"{START}{self.prefix}_{self.secret}"


def new_api_key() -> ApiKeyParts:
    """A random API key."""
    return ApiKeyParts(secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES))


def parse_api_key(text: str) -> ApiKeyParts | None:
    """The parts of an API key; None if the text does not have the form of one."""
    match = _FORM(text)
    return ApiKeyParts(*match.groups()) if match else None


def hash_secret(secret: str) -> bytes:
    """The SHA-256 that the table holds of a secret."""
    return sha256(secret.encode()).digest()


# CONCAT_WS leaves NULL out, so which columns are NULL is written beside it.
_ROW_AS_TEXT: Final = f"CONCAT_WS('|', {_COLUMNS}, customer_id IS NULL, expires_at_us IS NULL)"
# Not NOW(): in the hour that the end of summer time repeats, that is read as one hour of the two.
_DATABASE_NOW_US: Final = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


async def find_api_keys(
    connection: AsyncConnection, prefixes: Collection[str]
) -> dict[str, StoredApiKey]:
    """The API keys with these prefixes, by prefix."""
    rows = await select(
        connection,
        f"SELECT {_COLUMNS} FROM api_keys WHERE prefix IN ({placeholders(prefixes)})",
        tuple(prefixes),
    )
    return {row[0]: _stored(row) for row in rows}


async def find_api_key(connection: AsyncConnection, prefix: str) -> StoredApiKey | None:
    """The API key with this prefix."""
    return (await find_api_keys(connection, (prefix,))).get(prefix)


async def database_now_us(connection: AsyncConnection) -> int:
    """The time of the database's clock: keys end by it, whatever clock a command or an API has."""
    return int((await select(connection, f"SELECT {_DATABASE_NOW_US}"))[0][0])


async def list_api_keys(connection: AsyncConnection) -> list[StoredApiKey]:
    """Every API key that was ever made, the oldest first."""
    rows = await connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM api_keys ORDER BY created_at_us, prefix"
    )
    return [_stored(row) for row in rows]


async def insert_api_key(connection: AsyncConnection, api_key: StoredApiKey) -> None:
    """Add a new API key to the table."""
    await connection.exec_driver_sql(
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            api_key.prefix,
            api_key.secret_hash,
            api_key.client,
            api_key.name,
            " ".join(api_key.scopes),
            api_key.customer_id and api_key.customer_id.bytes,
            api_key.created_at_us,
            api_key.expires_at_us,
            api_key.revoked_at_us,
        ),
    )


async def revoke_api_key(connection: AsyncConnection, prefix: str, at_us: int) -> None:
    """Refuse the API key from `at_us` on; an earlier end stands."""
    await connection.exec_driver_sql(
        "UPDATE api_keys SET revoked_at_us = LEAST(COALESCE(revoked_at_us, %s), %s)"
        " WHERE prefix = %s",
        (at_us, at_us, prefix),
    )


def _stored(row: Any) -> StoredApiKey:
    prefix, secret_hash, client, name, scopes, customer_id, *times = row
    bound_to = UUID(bytes=customer_id) if customer_id else None
    return StoredApiKey(
        prefix, bytes(secret_hash), client, name, tuple(scopes.split()), bound_to, *times
    )


class KeysUnavailable(Exception):
    """The API key can't be checked now."""


class Lookup(Struct, frozen=True):
    """The answer to a look-up, and until when it counts."""

    api_key: StoredApiKey | None
    fresh_until_s: float


# Of all rows: how many there are, how many are revoked, the sum of those times, that of checksums.
Fingerprint = tuple[int, ...]


class ApiKeyTable(Protocol):
    """What an `ApiKeyCache` asks of the database; every method raises DATABASE_ERRORS."""

    async def fingerprint(self) -> tuple[int, Fingerprint]:
        """The database's time in µs, and numbers that differ once the table does."""

    async def usable(self, after: str, time_us: int) -> Mapping[str, StoredApiKey]:
        """A page of the keys that have not ended at a time, by prefix."""

    async def find(self, prefixes: Collection[str]) -> Mapping[str, StoredApiKey]:
        """The keys with these prefixes, whether ended or not."""


@dataclass(eq=False)
class StoredApiKeys:
    """The table of API keys, read with the API's account."""

    engine: AsyncEngine

    async def fingerprint(self) -> tuple[int, Fingerprint]:
        """The database's time in µs, and numbers that differ once the table does.

        A new key changes the first number, a revocation the second, an earlier one the third, and
        nothing ever takes that back: so these, and an older table that was restored, are seen for
        certain. The last one, a sum of checksums, is for changes by hand and after a restore.
        """
        async with self._connection() as connection:
            rows = await select(
                connection,
                f"SELECT {_DATABASE_NOW_US}, COUNT(*), COUNT(revoked_at_us),"
                f" COALESCE(SUM(revoked_at_us), 0), COALESCE(SUM(CRC32({_ROW_AS_TEXT})), 0)"
                " FROM api_keys",
            )
        time_us, *fingerprint = map(int, rows[0])
        return time_us, tuple(fingerprint)

    async def usable(self, after: str, time_us: int) -> Mapping[str, StoredApiKey]:
        """A page of the keys that have not ended at a time, by prefix."""
        async with self._connection() as connection:
            rows = await select(
                connection,
                f"SELECT {_COLUMNS} FROM api_keys WHERE prefix > %s"
                " AND (revoked_at_us IS NULL OR revoked_at_us > %s)"
                " AND (expires_at_us IS NULL OR expires_at_us > %s) ORDER BY prefix LIMIT %s",
                (after, time_us, time_us, COPY_PAGE),
            )
        return {row[0]: _stored(row) for row in rows}

    async def find(self, prefixes: Collection[str]) -> Mapping[str, StoredApiKey]:
        """The keys with these prefixes, whether ended or not."""
        async with self._connection() as connection:
            return await find_api_keys(connection, prefixes)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self.engine.connect()
        except TimeoutError:
            # Not a slow answer: it takes the connection, as a stopped process does, and no more.
            raise ConnectionError("the database greets nobody") from None
        try:
            yield connection
        finally:
            await connection.close()


class ApiKeyCache:
    """The API keys as they were a moment ago, so that a request costs the database no query.

    A task asks every ASK_EVERY_S whether the table is another, and copies it if so, on a connection
    of its own: that is how a revoked key ends, whatever strangers send meanwhile. How old the copy
    may be depends on how the database answers: FRESH_S if in time, SLOW_S if late, STALE_S while
    there is no way to it. Prefixes that the copy has not (new keys, ended ones, made-up ones) are
    looked up by a second task, all that wait at a time by one query; no more than MAX_WAITING may
    wait.
    """

    def __init__(self, table: ApiKeyTable, now_s: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._now_s = now_s
        self._copy: Mapping[str, StoredApiKey] = {}
        self._fingerprint: Fingerprint = ()
        self._read_at_s = -math.inf
        # When it was last known to be as the table was.
        self._copied_at_s = -math.inf
        self._database_ahead_us = now_us() - int(now_s() * SECOND_US)
        self._max_age_s = FRESH_S
        self._noted = asyncio.Event()
        self._lookups = BoundedDict[str, Lookup](MAX_LOOKED_UP)
        self._waiting: dict[str, asyncio.Future[Lookup | None]] = {}
        self._wanted = asyncio.Event()

    def now_us(self) -> int:
        """The time of the database's clock, by which keys end; a step of this machine's is none."""
        return int(self._now_s() * SECOND_US) + self._database_ahead_us

    def copied(self, prefix: str) -> StoredApiKey | None:
        """The API key in the copy, if that is recent enough to go by."""
        is_recent = self._now_s() < self._copied_at_s + self._max_age_s
        return self._copy.get(prefix) if is_recent else None

    async def get(self, prefix: str) -> StoredApiKey | None:
        """The API key as it was at most FRESH_S ago, SLOW_S if the database is slow, else STALE_S.

        Raises KeysUnavailable where none of these can be had.
        """
        while self._max_age_s == FRESH_S and (
            prefix in self._copy or self._copied_at_s == -math.inf
        ):
            if api_key := self.copied(prefix):
                return api_key
            # Either there is no copy yet, or this process was too busy to make one in time. That
            # says nothing about the database, so an old copy must not be gone by.
            await self._noted.wait()
        if api_key := self.copied(prefix):
            return api_key
        lookup = self._lookups.get(prefix)
        if lookup is None or self._now_s() >= lookup.fresh_until_s:
            lookup = await self._ask(prefix)
        return lookup.api_key

    async def _ask(self, prefix: str) -> Lookup:
        if self._max_age_s == STALE_S:
            raise KeysUnavailable(UNKNOWN)
        waiting = self._waiting.get(prefix)
        if waiting is None:
            if len(self._waiting) >= MAX_WAITING:
                raise KeysUnavailable(f"{MAX_WAITING} unknown API keys wait to be looked up")
            waiting = self._waiting[prefix] = asyncio.get_running_loop().create_future()
            self._wanted.set()
        # A client who hangs up must not cancel the look-up for others.
        lookup = await asyncio.shield(waiting)
        if lookup is None:
            raise KeysUnavailable(UNKNOWN)
        return lookup

    async def run(self) -> None:
        """Keep the copy and look prefixes up, for as long as the process runs."""
        await first_to_end(self._keep_copy(), self._look_up_wanted())

    async def _keep_copy(self) -> None:
        while True:
            await self.copy()
            await asyncio.sleep(ASK_EVERY_S)

    async def copy(self) -> None:
        """Make the copy what the table is now, or note that the database is slow or away."""
        began_s = self._now_s()
        reading = asyncio.ensure_future(self._read_changes())
        try:
            in_time = await _ends_within(reading, LATE_S)
            if not in_time and self._max_age_s != STALE_S:
                self._note(SLOW_S, f"no answer within {LATE_S:g} s")
            time_us = await reading
        except TimeoutError as error:
            if self._max_age_s != STALE_S:
                self._note(SLOW_S, str(error))
        except DATABASE_ERRORS as error:
            self._note(STALE_S, str(error))
        else:
            # As of the beginning, because a key may be revoked while the table is read.
            self._copied_at_s = began_s
            self._database_ahead_us = time_us - int(began_s * SECOND_US)
            self._note(FRESH_S if in_time else SLOW_S, "the database answers late")
        finally:
            await end((reading,))

    def _note(self, max_age_s: float, why: str) -> None:
        """Say how old the copy may be, and have those look again who wait for it."""
        if max_age_s != self._max_age_s:
            if max_age_s == FRESH_S:
                log.info("API keys can be checked again")
            else:
                log.warning(
                    "API keys can't be checked in time: %s; the %d known ones are accepted for %g s"
                    " after they were last checked",
                    why,
                    len(self._copy),
                    max_age_s,
                )
            self._max_age_s = max_age_s
        self._noted.set()
        self._noted = asyncio.Event()

    async def _read_changes(self) -> int:
        """Read the table if it is not what was copied; return the database's time in µs."""
        read_at_s = self._now_s()
        # First: what is changed while the rows are read shows in the next one.
        time_us, fingerprint = await _answer(self._table.fingerprint(), ANSWER_TIMEOUT_S)
        if fingerprint != self._fingerprint or read_at_s >= self._read_at_s + COPY_AGAIN_S:
            copy: dict[str, StoredApiKey] = {}
            more = True
            while more and len(copy) < MAX_COPIED:
                after = next(reversed(copy), "")
                page = await _answer(self._table.usable(after, time_us), ANSWER_TIMEOUT_S)
                copy.update(page)
                more = len(page) == COPY_PAGE
            self._copy, self._fingerprint, self._read_at_s = copy, fingerprint, read_at_s
        return time_us

    async def _look_up_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while prefixes := list(islice(self._waiting, COPY_PAGE)):
                found: Mapping[str, StoredApiKey] | None
                try:
                    found = await _answer(self._table.find(prefixes), LOOKUP_TIMEOUT_S)
                except DATABASE_ERRORS:
                    found = None
                fresh_until_s = self._now_s() + LOOKUP_FRESH_S
                for prefix in prefixes:
                    lookup = None
                    if found is not None:
                        lookup = Lookup(found.get(prefix), fresh_until_s)
                        self._lookups.renew(prefix, lookup)
                    self._waiting.pop(prefix).set_result(lookup)


async def _answer(query: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """What the database answers; raises TimeoutError once it is sure that it has not."""
    task = asyncio.ensure_future(query)
    try:
        if not await _ends_within(task, timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        return task.result()
    finally:
        await end((task,))


async def _ends_within(task: "asyncio.Future[T]", timeout_s: float) -> bool:
    """Whether a task ends in time.

    A busy event loop may find deadline and answer at one moment, and the answer counts then: or
    strangers who keep this process busy could make it take the database for slow or away.
    """
    done, _ = await asyncio.wait((task,), timeout=timeout_s)
    if not done:
        done, _ = await asyncio.wait((task,), timeout=GRACE_S)
    return bool(done)
