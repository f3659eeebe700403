"""Takes an export: events and views as they are at one position."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.exports import ExportRefused, keys, manifest
from cli.exports.directory import Draft, drafting
from cli.exports.formats import MakeRows, rows_of
from cli.exports.manifest import Entry, Format, Manifest
from cli.exports.reading import Page, count, events, pin_head, pin_views, view_rows
from cli.exports.tables import EVENTS, Table
from cli.progress import progress
from cli.settings import Settings
from ledger.database import DATABASE_ERRORS, make_engine


class Wish(Struct, frozen=True):
    """What is to be exported, how, and where to."""

    tables: tuple[Table, ...]
    format: Format
    directory: Path
    overwrite: bool = False
    with_keys: bool = False


async def take(settings: Settings, wish: Wish) -> Manifest:
    """Export what is wished for; whole when this returns, and else nothing.

    Raises ExportRefused, NoParquet, LedgerDamaged and what the database raises at its start.
    """
    make_rows = rows_of(wish.format)
    names = [_file(table, wish.format) for table in wish.tables]
    names += [keys.FILE] if wish.with_keys else []
    engine = make_engine(settings.db_url("projector"), settings.db_ca_file)
    try:
        async with engine.connect() as connection:
            with drafting(wish.directory, names, overwrite=wish.overwrite) as draft:
                made = await _take(connection, draft, wish, make_rows)
                draft.publish(made)
    finally:
        await engine.dispose()
    return made


async def _take(
    connection: AsyncConnection, draft: Draft, wish: Wish, make_rows: MakeRows
) -> Manifest:
    views = [table for table in wish.tables if table is not EVENTS]
    try:
        pin = await (pin_views(connection, views) if views else pin_head(connection))
        entries = {}
        for table in views:
            total = await count(connection, table)
            pages = view_rows(connection, table)
            entries[table.name] = await _write(draft, table, wish.format, make_rows, pages, total)
        await connection.rollback()
        if EVENTS in wish.tables:
            pages = events(connection, pin)
            entries[EVENTS.name] = await _write(
                draft, EVENTS, wish.format, make_rows, pages, pin.position
            )
        key_file = (
            await keys.write_keys(connection, draft, pin.position) if wish.with_keys else None
        )
    except DATABASE_ERRORS as error:
        reason = getattr(error, "orig", None) or error
        raise ExportRefused(f"the database failed meanwhile: {reason}") from error
    return Manifest(
        manifest.VERSION,
        wish.format,
        pin.position,
        pin.hash.hex(),
        datetime.now(UTC),
        version("order-ledger"),
        tuple(entries[table.name] for table in wish.tables),
        key_file,
    )


def _file(table: Table, format_: Format) -> str:
    return f"{table.name}.{format_}"


async def _write(
    draft: Draft,
    table: Table,
    format_: Format,
    make_rows: MakeRows,
    pages: AsyncIterator[Page],
    total: int,
) -> Entry:
    file = draft.create(_file(table, format_))
    rows = make_rows(file, table.columns)
    written = 0
    with progress(table.name, total) as moved:
        async for page in pages:
            rows.write(page)
            written += len(page)
            moved(len(page))
    rows.close()
    file.finish()
    return Entry(
        file.final.name,
        written,
        file.bytes,
        file.sha256,
        name=table.name,
        columns=table.columns,
        view_version=table.view_version,
    )
