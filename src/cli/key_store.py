"""The keys of the API, changed with the account of `ledger migrate`: the API itself only reads."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from api.auth.api_keys import (
    ApiKeyParts,
    StoredApiKey,
    find_api_key,
    hash_secret,
    insert_api_key,
    list_api_keys,
    new_api_key,
    revoke_api_key,
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


async def create(settings: Settings, wish: NewKey) -> tuple[StoredApiKey, ApiKeyParts]:
    """A new key, and what its holder needs: that is nowhere else."""
    parts, created_at_us = new_api_key(), now_us()
    key = StoredApiKey(
        parts.prefix,
        hash_secret(parts.secret),
        parts.prefix,
        wish.name,
        tuple(sorted(set(wish.scopes))),
        wish.customer_id,
        created_at_us,
        _end(created_at_us, wish.expires_in_days),
    )
    async with _connected(settings) as connection:
        await insert_api_key(connection, key)
    return key, parts


async def every(settings: Settings) -> list[StoredApiKey]:
    """All keys, the oldest first."""
    async with _connected(settings) as connection:
        return await list_api_keys(connection)


async def revoke(settings: Settings, prefix: str) -> StoredApiKey:
    """The key, ended now or earlier; raises NoSuchKey."""
    async with _connected(settings) as connection:
        await _find(connection, prefix)
        await revoke_api_key(connection, prefix, now_us())
        return await _find(connection, prefix)


async def rotate(
    settings: Settings, prefix: str, overlap_s: int, expires_in_days: int | None
) -> tuple[StoredApiKey, ApiKeyParts]:
    """A new key for the same client, the old one ended; both or neither. Raises NoSuchKey."""
    parts, created_at_us = new_api_key(), now_us()
    async with _connected(settings) as connection:
        old = await _find(connection, prefix)
        if why := old.ended(created_at_us):
            raise NoSuchKey(f"the key {prefix} is {why}: make a new one with `ledger keys create`")
        key = replace(
            old,
            prefix=parts.prefix,
            secret_hash=hash_secret(parts.secret),
            created_at_us=created_at_us,
            expires_at_us=_end(created_at_us, expires_in_days) or _same_life(old, created_at_us),
            revoked_at_us=None,
        )
        await insert_api_key(connection, key)
        await revoke_api_key(connection, prefix, created_at_us + overlap_s * SECOND_US)
    return key, parts


async def _find(connection: AsyncConnection, prefix: str) -> StoredApiKey:
    key = await find_api_key(connection, prefix)
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


def _same_life(old: StoredApiKey, created_at_us: int) -> int | None:
    """When a key made now ends that lives as long as the old one."""
    return (
        None if old.expires_at_us is None else created_at_us + old.expires_at_us - old.created_at_us
    )
