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
from collections.abc import Callable, Collection, Coroutine, Mapping
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
# How long a revoked API key may still be accepted while the database answers.
FRESH_S: Final = 5.0
# How long an API key is accepted while the database is away: nobody can revoke it there then.
STALE_S: Final = 3600.0
# How often the table is copied, so that a key is seldom older than this.
COPY_EVERY_S: Final = 1.0
# Less than FRESH_S together with COPY_EVERY_S: no request has to wait to learn of an outage.
COPY_TIMEOUT_S: Final = 2.5
MAX_COPIED: Final = 10_000
COPY_PAGE: Final = 500
# Of prefixes that the copy has not.
LOOKUP_TIMEOUT_S: Final = 1.5
LOOKUP_FRESH_S: Final = 2.0
MAX_LOOKED_UP: Final = 10_000
MAX_WAITING: Final = 1_000
# A busy process may find the deadline past and the answer there at one moment.
GRACE_S: Final = 0.2
# One to copy the table, one for look-ups: neither waits for what the views are read with.
KEY_CONNECTIONS: Final = 2

AWAY: Final = "the API key can't be checked: the database is away"
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


class ApiKeyTable(Protocol):
    """What an `ApiKeyCache` asks of the database; every method raises DATABASE_ERRORS."""

    async def usable(self, after: str) -> tuple[int, Mapping[str, StoredApiKey]]:
        """A page of the keys that have not ended, by prefix, and the database's time in µs."""

    async def find(self, prefixes: Collection[str]) -> Mapping[str, StoredApiKey]:
        """The keys with these prefixes, whether ended or not."""


@dataclass(eq=False)
class StoredApiKeys:
    """The table of API keys, read with the API's account."""

    engine: AsyncEngine

    async def usable(self, after: str) -> tuple[int, Mapping[str, StoredApiKey]]:
        """A page of the keys that have not ended, by prefix, and the database's time in µs."""
        async with self.engine.connect() as connection:
            time_us = await database_now_us(connection)
            rows = await select(
                connection,
                f"SELECT {_COLUMNS} FROM api_keys WHERE prefix > %s"
                " AND (revoked_at_us IS NULL OR revoked_at_us > %s)"
                " AND (expires_at_us IS NULL OR expires_at_us > %s) ORDER BY prefix LIMIT %s",
                (after, time_us, time_us, COPY_PAGE),
            )
        return time_us, {row[0]: _stored(row) for row in rows}

    async def find(self, prefixes: Collection[str]) -> Mapping[str, StoredApiKey]:
        """The keys with these prefixes, whether ended or not."""
        async with self.engine.connect() as connection:
            return await find_api_keys(connection, prefixes)


class ApiKeyCache:
    """The API keys as they were a moment ago, so that a request costs the database no query.

    A task copies the table every COPY_EVERY_S, on a connection of its own: that is how a revoked
    key ends, whatever strangers send meanwhile. While the database is away, the last copy is good
    for STALE_S. Prefixes that the copy has not (new keys, ended ones, made-up ones) are looked up
    by a second task, all that wait at a time by one query; no more than MAX_WAITING may wait.
    """

    def __init__(self, table: ApiKeyTable, now_s: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._now_s = now_s
        self._copy: Mapping[str, StoredApiKey] = {}
        self._copied_at_s = -math.inf
        self._database_ahead_us = now_us() - int(now_s() * SECOND_US)
        self._away = False
        self._copy_ended = asyncio.Event()
        self._lookups = BoundedDict[str, Lookup](MAX_LOOKED_UP)
        self._waiting: dict[str, asyncio.Future[Lookup | None]] = {}
        self._wanted = asyncio.Event()

    def now_us(self) -> int:
        """The time of the database's clock, by which keys end; a step of this machine's is none."""
        return int(self._now_s() * SECOND_US) + self._database_ahead_us

    def copied(self, prefix: str) -> StoredApiKey | None:
        """The API key in the copy, if that is recent enough to go by."""
        max_age_s = STALE_S if self._away else FRESH_S
        return self._copy.get(prefix) if self._now_s() < self._copied_at_s + max_age_s else None

    async def get(self, prefix: str) -> StoredApiKey | None:
        """The API key as it was at most FRESH_S ago, while the database is away at most STALE_S.

        Raises KeysUnavailable where neither can be had.
        """
        while not self._away and (prefix in self._copy or self._copied_at_s == -math.inf):
            if api_key := self.copied(prefix):
                return api_key
            # Either there is no copy yet, or this process was too busy to make one in time. That
            # says nothing about the database, so an old copy must not be gone by.
            await self._copy_ended.wait()
        if api_key := self.copied(prefix):
            return api_key
        lookup = self._lookups.get(prefix)
        if lookup is None or self._now_s() >= lookup.fresh_until_s:
            lookup = await self._ask(prefix)
        return lookup.api_key

    async def _ask(self, prefix: str) -> Lookup:
        if self._away:
            raise KeysUnavailable(AWAY)
        waiting = self._waiting.get(prefix)
        if waiting is None:
            if len(self._waiting) >= MAX_WAITING:
                raise KeysUnavailable(f"{MAX_WAITING} unknown API keys wait to be looked up")
            waiting = self._waiting[prefix] = asyncio.get_running_loop().create_future()
            self._wanted.set()
        # A client who hangs up must not cancel the look-up for others.
        lookup = await asyncio.shield(waiting)
        if lookup is None:
            raise KeysUnavailable(AWAY)
        return lookup

    async def run(self) -> None:
        """Copy the table and look prefixes up, for as long as the process runs."""
        await first_to_end(self._keep_copy(), self._look_up_wanted())

    async def _keep_copy(self) -> None:
        while True:
            await self.copy()
            await asyncio.sleep(COPY_EVERY_S)

    async def copy(self) -> None:
        """Copy the table as it is now, or note that the database is away."""
        began_s = self._now_s()
        try:
            copy, time_us = await _answer(self._read_all(), COPY_TIMEOUT_S)
        except DATABASE_ERRORS as error:
            if not self._away:
                log.warning(
                    "API keys can't be checked: %s; the %d known ones are accepted for %g s",
                    error,
                    len(self._copy),
                    STALE_S,
                )
            self._away = True
        else:
            if self._away:
                log.info("API keys can be checked again")
            self._away = False
            # As of the beginning, because a key may be revoked while the table is read.
            self._copy, self._copied_at_s = copy, began_s
            self._database_ahead_us = time_us - int(began_s * SECOND_US)
        self._copy_ended.set()
        self._copy_ended = asyncio.Event()

    async def _read_all(self) -> tuple[Mapping[str, StoredApiKey], int]:
        time_us, page = await self._table.usable("")
        copy = dict(page)
        while len(page) == COPY_PAGE and len(copy) < MAX_COPIED:
            _, page = await self._table.usable(next(reversed(copy)))
            copy.update(page)
        return copy, time_us

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
    """What the database answers; raises TimeoutError once it is sure that it has not.

    A busy event loop may find deadline and answer at one moment, and the answer counts then: or
    strangers who keep this process busy could make it take the database for away.
    """
    task = asyncio.ensure_future(query)
    try:
        done, _ = await asyncio.wait((task,), timeout=timeout_s)
        if not done:
            done, _ = await asyncio.wait((task,), timeout=GRACE_S)
        if not done:
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        return task.result()
    finally:
        await end((task,))
