"""API keys: their form, their table, and a cache of recent look-ups.

An API key is `lk_<prefix>_<secret>`. The prefix finds it and names it in logs; the secret has 256
random bits, so one SHA-256 of it is as hard to undo as any slow hash would be.
"""

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, Final, NamedTuple
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.runtime.cache import BoundedDict, SingleFlight
from ledger.runtime.database import DATABASE_ERRORS

SECRET_BYTES: Final = 32
MAX_NAME: Final = 100
START: Final = "lk_"
# How long a look-up counts, and so how long a revoked API key may still be accepted.
FRESH_S: Final = 5.0
# How long a key that was found is accepted while the database is away: nobody can revoke it then.
STALE_S: Final = 300.0
LOOKUP_TIMEOUT_S: Final = 1.5
MAX_CACHED: Final = 10_000
# At once, so that made-up prefixes can't take the connections that the views are read with.
MAX_LOOKUPS: Final = 2
MAX_QUEUE: Final = 200

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


async def find_api_key(connection: AsyncConnection, prefix: str) -> StoredApiKey | None:
    """The API key with this prefix."""
    rows = await connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM api_keys WHERE prefix = %s", (prefix,)
    )
    row = rows.first()
    return _stored(row) if row else None


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


class Lookup(Struct):
    """The answer to a look-up, when it came, and when it is to be asked anew."""

    api_key: StoredApiKey | None
    looked_up_at_s: float
    fresh_until_s: float


class ApiKeyCache:
    """Recent look-ups by prefix, so that a request seldom costs the database a query.

    The oldest look-ups are dropped first. Those of unknown prefixes are held apart, so that made-up
    ones can't push out a key.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[StoredApiKey | None]],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._now_s = now_s
        self._known = BoundedDict[str, Lookup](MAX_CACHED)
        self._unknown = BoundedDict[str, Lookup](MAX_CACHED)
        self._lookups = SingleFlight[str, Lookup]()
        self._turns = asyncio.Semaphore(MAX_LOOKUPS)

    async def get(self, prefix: str) -> StoredApiKey | None:
        """The API key as it was at most FRESH_S ago; raises KeysUnavailable.

        While the database is away, a key that was found is good for STALE_S.
        """
        cached = self._known.get(prefix) or self._unknown.get(prefix)
        if cached is not None and self._now_s() < cached.fresh_until_s:
            return cached.api_key
        try:
            return (await self._look_up(prefix)).api_key
        except KeysUnavailable:
            now_s = self._now_s()
            known = self._known.get(prefix)
            if known is None or now_s >= known.looked_up_at_s + STALE_S:
                raise
            # So that requests don't each wait for a database that does not answer.
            known.fresh_until_s = now_s + FRESH_S
            return known.api_key

    async def _look_up(self, prefix: str) -> Lookup:
        if prefix not in self._lookups and len(self._lookups) >= MAX_QUEUE:
            raise KeysUnavailable("too many API keys are being looked up")
        return await self._lookups.join(prefix, lambda: self._query(prefix))

    async def _query(self, prefix: str) -> Lookup:
        async with self._turns:
            api_key = await self._find(prefix)
        now_s = self._now_s()
        lookup = Lookup(api_key, now_s, now_s + FRESH_S)
        self._known.pop(prefix, None)
        self._unknown.pop(prefix, None)
        (self._known if api_key else self._unknown)[prefix] = lookup
        return lookup


def api_key_cache(engine: AsyncEngine) -> ApiKeyCache:
    """A cache over the table of API keys, read with the API's account."""

    async def find(prefix: str) -> StoredApiKey | None:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S), engine.connect() as connection:
                return await find_api_key(connection, prefix)
        except DATABASE_ERRORS as error:
            raise KeysUnavailable("the API key can't be checked: the database is away") from error

    return ApiKeyCache(find)
