"""How keys of the API look, for people and for programs."""

from uuid import UUID

from msgspec import Struct
from rich.table import Table

from api.auth.api_keys import StoredApiKey
from ledger.runtime.timestamps import format_us


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


def shown_key(key: StoredApiKey, now_us: int) -> ShownKey:
    """A key as it is at a time, without its secret."""
    return ShownKey(
        key.prefix,
        key.name,
        key.scopes,
        key.ended(now_us) or "active",
        _time(key.created_at_us) or "",
        key.client,
        key.customer_id,
        _time(key.expires_at_us),
        _time(key.revoked_at_us),
    )


def _time(time_us: int | None) -> str | None:
    if time_us is None:
        return None
    return format_us(time_us, "seconds")


def keys_table(shown: list[ShownKey]) -> Table:
    """Keys for people, a line each."""
    table = Table("prefix", "name", "scopes", "customer", "state", "created", "expires", box=None)
    for key in shown:
        customer = str(key.customer_id or "any")
        cells = (key.prefix, key.name, " ".join(key.scopes), customer, key.state)
        table.add_row(*cells, key.created_at, key.expires_at or "never")
    return table
