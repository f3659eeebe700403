"""API keys: how they look, how they are kept, and how one is found.

A key is `lk_<prefix>_<secret>`. The prefix finds it and names it in logs; the secret has 256 random
bits, so one SHA-256 of it is as hard to undo as any slow hash would be.
"""

import hmac
import re
import secrets
from hashlib import sha256
from typing import Any, Final, NamedTuple
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

SECRET_BYTES: Final = 32
MAX_NAME: Final = 100
START: Final = "lk_"
_FORM: Final = re.compile(r"lk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})").fullmatch
_COLUMNS: Final = (
    "prefix, secret_hash, client, name, scopes, customer_id,"
    " created_at_us, expires_at_us, revoked_at_us"
)


class StoredKey(Struct, frozen=True):
    """A key as the table has it; times are µs since the Unix epoch.

    `client` is the prefix of the first key of its holder: rotation keeps it.
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

    def over(self, now_us: int) -> str | None:
        """Why the key can't be used any more, as a word; None if it can."""
        if self.revoked_at_us is not None and self.revoked_at_us <= now_us:
            return "revoked"
        if self.expires_at_us is not None and self.expires_at_us <= now_us:
            return "expired"
        return None

    def opens(self, secret: str) -> bool:
        """Whether this is the key's secret; takes as long for a wrong one."""
        return hmac.compare_digest(self.secret_hash, hash_of(secret))


class Parts(NamedTuple):
    """A key as its holder has it."""

    prefix: str
    secret: str

    def __str__(self) -> str:
        """What is shown once and sent with every request."""
        return f"{START}{self.prefix}_{self.secret}"


def new_parts() -> Parts:
    """A key that nobody has yet."""
    return Parts(secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES))


def parts_of(text: str) -> Parts | None:
    """The parts of a key; None if no key looks like this."""
    found = _FORM(text)
    return Parts(*found.groups()) if found else None


def hash_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return sha256(secret.encode()).digest()


async def find_key(connection: AsyncConnection, prefix: str) -> StoredKey | None:
    """The key of this prefix."""
    found = await connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM api_keys WHERE prefix = %s", (prefix,)
    )
    row = found.first()
    return _key(row) if row else None


async def all_keys(connection: AsyncConnection) -> list[StoredKey]:
    """Every key that was ever made, the oldest first."""
    found = await connection.exec_driver_sql(
        f"SELECT {_COLUMNS} FROM api_keys ORDER BY created_at_us, prefix"
    )
    return [_key(row) for row in found]


async def add_key(connection: AsyncConnection, key: StoredKey) -> None:
    """Keep a new key."""
    await connection.exec_driver_sql(
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            key.prefix,
            key.secret_hash,
            key.client,
            key.name,
            " ".join(key.scopes),
            key.customer_id and key.customer_id.bytes,
            key.created_at_us,
            key.expires_at_us,
            key.revoked_at_us,
        ),
    )


async def end_key(connection: AsyncConnection, prefix: str, at_us: int) -> None:
    """Refuse the key from `at_us` on; an earlier end stands."""
    await connection.exec_driver_sql(
        "UPDATE api_keys SET revoked_at_us = LEAST(COALESCE(revoked_at_us, %s), %s)"
        " WHERE prefix = %s",
        (at_us, at_us, prefix),
    )


def _key(row: Any) -> StoredKey:
    prefix, secret_hash, client, name, scopes, customer_id, created, expires, revoked = row
    return StoredKey(
        prefix,
        bytes(secret_hash),
        client,
        name,
        tuple(scopes.split()),
        UUID(bytes=customer_id) if customer_id else None,
        created,
        expires,
        revoked,
    )
