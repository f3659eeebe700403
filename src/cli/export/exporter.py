"""Takes an export: events and views as they are at one position."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.export import ExportRefused, Format, manifest, sealing_keys
from cli.export.directory import Draft, drafting
from cli.export.formats import MakeRows, rows_of
from cli.export.manifest import Entry, Manifest
from cli.export.reader import Page, count, events, pin_head, pin_views, view_rows
from cli.export.tables import EVENTS, Table
from cli.progress import progress
from cli.settings import Settings
from ledger.eventlog.store import LedgerDamaged
from ledger.runtime.database import DATABASE_ERRORS, make_engine


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
    names += [sealing_keys.FILE] if wish.with_keys else []
    engine = make_engine(settings.db_url("projector"), settings.db_ca_file)
    try:
        async with engine.connect() as connection:
            with drafting(wish.directory, names, overwrite=wish.overwrite) as draft:
                made = await _Taking(connection, draft, wish, make_rows).all()
                draft.publish(made)
    finally:
        await engine.dispose()
    return made


class _Taking:
    """One export on its way from a connection to a draft."""

    def __init__(
        self, connection: AsyncConnection, draft: Draft, wish: Wish, make_rows: MakeRows
    ) -> None:
        self._connection = connection
        self._draft = draft
        self._wish = wish
        self._make_rows = make_rows

    async def all(self) -> Manifest:
        """Write every file but the manifest."""
        try:
            return await self._all()
        except DATABASE_ERRORS as error:
            reason = getattr(error, "orig", None) or error
            raise ExportRefused(f"the database failed meanwhile: {reason}") from error

    async def _all(self) -> Manifest:
        connection, wish = self._connection, self._wish
        views = [table for table in wish.tables if table is not EVENTS]
        pin = await (pin_views(connection, views) if views else pin_head(connection))
        entries = {}
        for view in views:
            total = await count(connection, view)
            entries[view.name] = await self._write(view, view_rows(connection, view), total)
        await connection.rollback()
        if EVENTS in wish.tables:
            pages = events(connection, pin)
            entries[EVENTS.name] = await self._write(EVENTS, pages, pin.position)
        key_file = None
        if wish.with_keys:
            key_file = await sealing_keys.write_keys(connection, self._draft, pin.position)
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

    async def _write(self, table: Table, pages: AsyncIterator[Page], total: int) -> Entry:
        file = self._draft.create(_file(table, self._wish.format))
        rows = self._make_rows(file, table.columns)
        written = 0
        with progress(table.name, total) as moved:
            async for page in pages:
                try:
                    rows.write(page)
                except ValueError as error:
                    raise LedgerDamaged(f"{table.name} holds what is no text: {error}") from error
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


def _file(table: Table, format_: Format) -> str:
    return f"{table.name}.{format_}"
