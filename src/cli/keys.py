"""`ledger keys`: who may use the API."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec
import typer
from msgspec import Struct
from rich.table import Table

from api.keys import MAX_NAME, Parts, StoredKey
from api.principals import Scope
from cli.key_store import NewKey, NoSuchKey, create, every, revoke, rotate
from cli.running import end, out, run, settings

keys = typer.Typer(help="Who may use the API.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Prefix = Annotated[str, typer.Argument(help="the middle part of the key, as `list` shows it")]
Days = Annotated[int | None, typer.Option(min=1, help="days after which it ends; else never")]


class ShownKey(Struct, frozen=True, omit_defaults=True):
    """A key as people and programs see it; `key` is the whole of it, shown once."""

    prefix: str
    name: str
    scopes: tuple[str, ...]
    state: str
    created_at: str
    client: str
    customer_id: UUID | None = None
    expires_at: str | None = None
    revoked_at: str | None = None
    key: str | None = None


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="whose it is, for people")],
    scope: Annotated[list[Scope], typer.Option(help="what it may do; may be given again")],
    customer: Annotated[
        UUID | None, typer.Option(help="the only customer that it may see and touch")
    ] = None,
    expires_in_days: Days = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise typer.BadParameter(f"must be 1 to {MAX_NAME} printable characters", param_hint="name")
    wish = NewKey(name, tuple(scope), customer, expires_in_days)
    _show_new(*run(create(settings(), wish)), as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show every key that was ever made, without its secret."""
    now_us = int(datetime.now(UTC).timestamp() * 1_000_000)
    shown = [_shown(key, now_us) for key in run(every(settings()))]
    if as_json:
        typer.echo(msgspec.json.encode({"keys": shown}))
    else:
        out.print(_table(shown))


@keys.command("revoke")
def revoke_key(prefix: Prefix, as_json: AsJson = False) -> None:
    """End a key now; every API process refuses it within 5 s."""
    try:
        key = run(revoke(settings(), prefix))
    except NoSuchKey as error:
        raise end(1, str(error)) from None
    if as_json:
        typer.echo(msgspec.json.encode(_shown(key, key.revoked_at_us or 0)))
    else:
        out.print(f"revoked {key.prefix} of {key.name}: refused within 5 s", markup=False)


@keys.command("rotate")
def rotate_key(
    prefix: Prefix,
    overlap_s: Annotated[
        int, typer.Option(min=0, help="seconds for which the old key goes on to work")
    ] = 0,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, help="days after which the new one ends; else as the old")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new key with the rights of this one, print it, once, and end this one."""
    try:
        made = run(rotate(settings(), prefix, overlap_s, expires_in_days))
    except NoSuchKey as error:
        raise end(1, str(error)) from None
    _show_new(*made, as_json)


def _show_new(key: StoredKey, parts: Parts, as_json: bool) -> None:
    if as_json:
        shown = msgspec.structs.replace(_shown(key, key.created_at_us), key=str(parts))
        typer.echo(msgspec.json.encode(shown))
    else:
        typer.echo(parts)
        typer.echo("This is shown once. Send it as `Authorization: Bearer KEY`.", err=True)


def _shown(key: StoredKey, now_us: int) -> ShownKey:
    return ShownKey(
        key.prefix,
        key.name,
        key.scopes,
        key.over(now_us) or "active",
        _time(key.created_at_us) or "",
        key.client,
        key.customer_id,
        _time(key.expires_at_us),
        _time(key.revoked_at_us),
    )


def _time(time_us: int | None) -> str | None:
    if time_us is None:
        return None
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _table(shown: list[ShownKey]) -> Table:
    table = Table("prefix", "name", "scopes", "customer", "state", "created", "expires", box=None)
    for key in shown:
        customer = str(key.customer_id or "any")
        cells = (key.prefix, key.name, " ".join(key.scopes), customer, key.state)
        table.add_row(*cells, key.created_at, key.expires_at or "never")
    return table
