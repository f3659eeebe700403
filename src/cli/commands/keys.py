"""`ledger keys`: who may use the API."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import msgspec
import typer

from api.auth.principal import Scope
from cli.running import end, out, run, settings
from ledger.runtime.timestamps import now_us

if TYPE_CHECKING:
    from api.auth.api_keys import ApiKeyParts, StoredApiKey

keys = typer.Typer(help="Who may use the API.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Prefix = Annotated[str, typer.Argument(help="the middle part of the key, as `list` shows it")]
Days = Annotated[int | None, typer.Option(min=1, help="days after which it ends; else never")]


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
    from api.auth.api_keys import MAX_NAME
    from cli.key_store import NewKey, create

    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise typer.BadParameter(f"must be 1 to {MAX_NAME} printable characters", param_hint="name")
    wish = NewKey(name, tuple(scope), customer, expires_in_days)
    _show_new(*run(create(settings(), wish)), as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show every key that was ever made, without its secret."""
    from cli.key_store import every
    from cli.keys_shown import keys_table, shown_key

    shown = [shown_key(key, now_us()) for key in run(every(settings()))]
    if as_json:
        typer.echo(msgspec.json.encode({"keys": shown}))
    else:
        out.print(keys_table(shown))


@keys.command("revoke")
def revoke_key(prefix: Prefix, as_json: AsJson = False) -> None:
    """End a key now; every API process refuses it within 5 s."""
    from cli.key_store import NoSuchKey, revoke
    from cli.keys_shown import shown_key

    try:
        key = run(revoke(settings(), prefix))
    except NoSuchKey as error:
        raise end(1, str(error)) from None
    if as_json:
        typer.echo(msgspec.json.encode(shown_key(key, key.revoked_at_us or 0)))
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
    from cli.key_store import NoSuchKey, rotate

    try:
        made = run(rotate(settings(), prefix, overlap_s, expires_in_days))
    except NoSuchKey as error:
        raise end(1, str(error)) from None
    _show_new(*made, as_json)


def _show_new(key: "StoredApiKey", parts: "ApiKeyParts", as_json: bool) -> None:
    from cli.keys_shown import shown_key

    if as_json:
        shown = msgspec.structs.replace(shown_key(key, key.created_at_us), key=str(parts))
        typer.echo(msgspec.json.encode(shown))
    else:
        typer.echo(parts)
        typer.echo("This is shown once. Send it as `Authorization: Bearer KEY`.", err=True)
