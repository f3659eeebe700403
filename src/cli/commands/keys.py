"""`ledger keys`: API keys, made and ended with the account of `ledger migrate`.

The API itself only reads them.
"""

from collections.abc import Iterable
from typing import Annotated, Final
from uuid import UUID

import msgspec
import typer
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from api.auth.api_keys import (
    MAX_NAME,
    ApiKeyParts,
    StoredApiKey,
    database_now_us,
    find_api_key,
    hash_secret,
    insert_api_key,
    list_api_keys,
    new_api_key,
    revoke_api_key,
)
from api.auth.principal import Scope
from cli import connections, console
from cli.settings import Settings
from ledger.core.names import BadText, clean_name
from ledger.runtime.timestamps import MAX_US, SECOND_US, format_us, now_us

DAY_US: Final = 24 * 60 * 60 * SECOND_US
MAX_DAYS: Final = 36_500
MAX_OVERLAP_S: Final = 366 * 24 * 60 * 60

keys = typer.Typer(no_args_is_help=True, add_completion=False)

Prefix = Annotated[str, typer.Argument(help="the middle part of the key, as `list` shows it")]


class NoSuchKey(Exception):
    """No key in use has this prefix."""


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="whose it is, for people")],
    scope: Annotated[list[Scope], typer.Option(help="what it may do; may be given again")],
    customer: Annotated[
        UUID | None, typer.Option(help="the only customer that it may see and touch")
    ] = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, help="days after which it ends; else never")
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    try:
        name = clean_name(name, MAX_NAME)
    except BadText as error:
        console.usage_error(f"--name {error}")
    _refuse_endless(expires_in_days)
    making = create(console.read_settings(), name, scope, customer, expires_in_days)
    _print_new_key(*console.run(making), as_json)


@keys.command("list")
def list_keys(as_json: console.AsJson = False) -> None:
    """Show every key that was ever made, without its secret."""
    settings = console.read_settings()

    async def read() -> tuple[list[StoredApiKey], int]:
        async with connections.connection(settings, "migrate") as connection:
            return await list_api_keys(connection), await database_now_us(connection)

    stored, read_at_us = console.run(read())
    if as_json:
        console.print_json({"keys": [_shown(key, read_at_us) for key in stored]})
        return
    table = Table("prefix", "name", "scopes", "customer", "state", "created", "expires", box=None)
    for key in stored:
        table.add_row(
            key.prefix,
            key.name,
            " ".join(key.scopes),
            str(key.customer_id or "any"),
            key.ended(read_at_us) or "active",
            _time(key.created_at_us),
            _time(key.expires_at_us) or "never",
        )
    console.out.print(table)


@keys.command("revoke")
def revoke_key(prefix: Prefix, as_json: console.AsJson = False) -> None:
    """End a key now; every API process refuses it within 5 s."""
    key = console.run(revoke(console.read_settings(), prefix))
    if as_json:
        console.print_json(_shown(key, key.revoked_at_us or 0))
    else:
        console.out.print(f"revoked {key.prefix} of {key.name}: refused within 5 s")


@keys.command("rotate")
def rotate_key(
    prefix: Prefix,
    overlap_s: Annotated[
        int,
        typer.Option(min=0, help="seconds for which the old key goes on to work (a year at most)"),
    ] = 0,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, help="days after which the new one ends; else as the old")
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Make a new key with the rights of this one, print it, once, and end this one."""
    _refuse_endless(expires_in_days)
    if overlap_s > MAX_OVERLAP_S:
        console.usage_error(f"--overlap-s {overlap_s} is over {MAX_OVERLAP_S}, which is a year")
    _print_new_key(
        *console.run(rotate(console.read_settings(), prefix, overlap_s, expires_in_days)), as_json
    )


async def create(
    settings: Settings,
    name: str,
    scopes: Iterable[str],
    customer_id: UUID | None = None,
    expires_in_days: int | None = None,
) -> tuple[StoredApiKey, ApiKeyParts]:
    """Store a new key; its parts, which its holder needs, are stored nowhere."""
    parts, created_at_us = new_api_key(), now_us()
    key = StoredApiKey(
        parts.prefix,
        hash_secret(parts.secret),
        parts.prefix,
        name,
        tuple(sorted(set(scopes))),
        customer_id,
        created_at_us,
        _expiry_us(created_at_us, expires_in_days),
    )
    async with connections.connection(settings, "migrate") as connection, connection.begin():
        await insert_api_key(connection, key)
    return key, parts


async def revoke(settings: Settings, prefix: str) -> StoredApiKey:
    """End a key, now or earlier, and return it; raises NoSuchKey."""
    async with connections.connection(settings, "migrate") as connection, connection.begin():
        await _find(connection, prefix)
        # A key that ended before keeps its time: the UPDATE leaves earlier ends alone. By the clock
        # of the database, as the API goes by that: one ahead of it would let the key work on.
        await revoke_api_key(connection, prefix, await database_now_us(connection))
        return await _find(connection, prefix)


async def rotate(
    settings: Settings, prefix: str, overlap_s: int, expires_in_days: int | None
) -> tuple[StoredApiKey, ApiKeyParts]:
    """Store a new key for the same client and end the old one; both or neither.

    Without `expires_in_days` the new key lives as long as the old one did. Raises NoSuchKey.
    """
    parts = new_api_key()
    async with connections.connection(settings, "migrate") as connection, connection.begin():
        created_at_us = await database_now_us(connection)
        old = await _find(connection, prefix)
        if ended := old.ended(created_at_us):
            raise NoSuchKey(
                f"the key {prefix} is {ended}: make a new one with `ledger keys create`"
            )
        expires_at_us = _expiry_us(created_at_us, expires_in_days)
        if expires_at_us is None and old.expires_at_us is not None:
            life_us = min(old.expires_at_us - old.created_at_us, MAX_DAYS * DAY_US)
            expires_at_us = created_at_us + life_us
        key = msgspec.structs.replace(
            old,
            prefix=parts.prefix,
            secret_hash=hash_secret(parts.secret),
            created_at_us=created_at_us,
            expires_at_us=expires_at_us,
            revoked_at_us=None,
        )
        # In one transaction: a client must never be left without a key that works.
        await insert_api_key(connection, key)
        await revoke_api_key(connection, prefix, created_at_us + overlap_s * SECOND_US)
    return key, parts


async def _find(connection: AsyncConnection, prefix: str) -> StoredApiKey:
    key = await find_api_key(connection, prefix)
    if key is None:
        raise NoSuchKey(f"there is no key {prefix}: `ledger keys list` shows all of them")
    return key


def _print_new_key(key: StoredApiKey, parts: ApiKeyParts, as_json: bool) -> None:
    if as_json:
        console.print_json({**_shown(key, key.created_at_us), "key": str(parts)})
    else:
        typer.echo(parts)
        typer.echo("This is shown once. Send it as `Authorization: Bearer KEY`.", err=True)


def _shown(key: StoredApiKey, at_us: int) -> dict[str, object]:
    """A key for programs, with its state at a time and without its secret."""
    fields = {
        "prefix": key.prefix,
        "name": key.name,
        "scopes": key.scopes,
        "state": key.ended(at_us) or "active",
        "created_at": _time(key.created_at_us),
        "client": key.client,
        "customer_id": key.customer_id,
        "expires_at": _time(key.expires_at_us),
        "revoked_at": _time(key.revoked_at_us),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _time(time_us: int | None) -> str | None:
    # Earlier releases made keys that end after the last year that RFC 3339 can write.
    return None if time_us is None else format_us(min(time_us, MAX_US), "seconds")


def _refuse_endless(days: int | None) -> None:
    if days is not None and days > MAX_DAYS:
        console.usage_error(
            f"--expires-in-days {days} is over {MAX_DAYS}, which is a hundred years:"
            " leave it out for a key that never expires"
        )


def _expiry_us(created_at_us: int, days: int | None) -> int | None:
    return None if days is None else created_at_us + days * DAY_US
