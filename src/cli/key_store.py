"""The keys of the API, changed with the account of `ledger migrate`: the API itself only reads."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from api.auth.api_keys import (
    Parts,
    StoredKey,
    add_key,
    all_keys,
    end_key,
    find_key,
    hash_of,
    new_parts,
)
from cli.settings import Settings
from ledger.runtime.database import make_engine
from ledger.runtime.timestamps import SECOND_US, now_us

DAY_US: Final = 24 * 60 * 60 * SECOND_US


class NoSuchKey(Exception):
    """No key in use has this prefix."""


class NewKey(Struct, frozen=True):
    """What a key is to be."""

    name: str
    scopes: tuple[str, ...]
    customer_id: UUID | None = None
    expires_in_days: int | None = None


async def create(settings: Settings, wish: NewKey) -> tuple[StoredKey, Parts]:
    """A new key, and what its holder needs: that is nowhere else."""
    parts, created_at_us = new_parts(), now_us()
    key = StoredKey(
        parts.prefix,
        hash_of(parts.secret),
        parts.prefix,
        wish.name,
        tuple(sorted(set(wish.scopes))),
        wish.customer_id,
        created_at_us,
        _end(created_at_us, wish.expires_in_days),
    )
    async with _connected(settings) as connection:
        await add_key(connection, key)
    return key, parts


async def every(settings: Settings) -> list[StoredKey]:
    """All keys, the oldest first."""
    async with _connected(settings) as connection:
        return await all_keys(connection)


async def revoke(settings: Settings, prefix: str) -> StoredKey:
    """The key, ended now or earlier; raises NoSuchKey."""
    async with _connected(settings) as connection:
        await _find(connection, prefix)
        await end_key(connection, prefix, now_us())
        return await _find(connection, prefix)


async def rotate(
    settings: Settings, prefix: str, overlap_s: int, expires_in_days: int | None
) -> tuple[StoredKey, Parts]:
    """A new key for the same client, the old one ended; both or neither. Raises NoSuchKey."""
    parts, created_at_us = new_parts(), now_us()
    async with _connected(settings) as connection:
        old = await _find(connection, prefix)
        if why := old.over(created_at_us):
            raise NoSuchKey(f"the key {prefix} is {why}: make a new one with `ledger keys create`")
        key = replace(
            old,
            prefix=parts.prefix,
            secret_hash=hash_of(parts.secret),
            created_at_us=created_at_us,
            expires_at_us=_end(created_at_us, expires_in_days) or _same_life(old, created_at_us),
            revoked_at_us=None,
        )
        await add_key(connection, key)
        await end_key(connection, prefix, created_at_us + overlap_s * SECOND_US)
    return key, parts


async def _find(connection: AsyncConnection, prefix: str) -> StoredKey:
    key = await find_key(connection, prefix)
    if key is None:
        raise NoSuchKey(f"there is no key {prefix}: `ledger keys list` shows all of them")
    return key


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[AsyncConnection]:
    engine = make_engine(settings.db_url("migrate"), settings.db_ca_file)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


def _end(created_at_us: int, days: int | None) -> int | None:
    return None if days is None else created_at_us + days * DAY_US


def _same_life(old: StoredKey, created_at_us: int) -> int | None:
    """When a key made now ends that lives as long as the old one."""
    return (
        None if old.expires_at_us is None else created_at_us + old.expires_at_us - old.created_at_us
    )
