"""`ledger export` and `ledger import`: the ledger and its views as files, and the way back."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cli.export import Format
from cli.running import end, out, run, settings

commands = typer.Typer()


@commands.command("export")
def export_tables(
    names: Annotated[
        list[str] | None, typer.Argument(help="`events`, or a view; several at one position")
    ] = None,
    *,
    directory: Annotated[Path, typer.Option("--out", help="where the files go; made if missing")],
    every: Annotated[bool, typer.Option("--all", help="the events and every view")] = False,
    format_: Annotated[Format, typer.Option("--format", help="how to write them")] = Format.PARQUET,
    with_keys: Annotated[
        bool,
        typer.Option("--with-keys", help="also the keys of customers' names, in a secret file"),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="replace what an export left there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest")] = False,
) -> None:
    """Write events and views, all as of one position, as files with a manifest."""
    from cli.export import manifest
    from cli.export.exporter import Wish, take
    from cli.export.tables import TABLES

    unknown = [name for name in names or () if name not in TABLES]
    if unknown:
        raise end(2, f"there is no {unknown[0]} to export: choose of {', '.join(TABLES)}")
    if every == bool(names):
        raise end(2, f"say what to export: one or more of {', '.join(TABLES)}, or --all")
    if with_keys and not every and "events" not in (names or ()):
        raise end(2, "--with-keys goes with events, whose names the keys open")
    chosen = tuple(table for name, table in TABLES.items() if every or name in (names or ()))
    made = run(take(settings(), Wish(chosen, format_, directory, overwrite, with_keys)))
    if as_json:
        typer.echo(manifest.encode(made), nl=False)
        return
    for entry in made.files:
        out.print(f"{entry.file}: {entry.rows} rows", markup=False)
    out.print(f"exported to {directory}, as of position {made.position}", markup=False)


@commands.command("import")
def import_events(
    directory: Annotated[Path, typer.Argument(help="the directory of an export with events")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Load the events of an export into an empty ledger; after an interruption it goes on."""
    from cli.export.importer import load_export

    loaded = run(load_export(settings(), directory))
    if as_json:
        typer.echo(msgspec.json.encode(loaded))
        return
    out.print(f"imported {loaded.appended} events; the ledger ends like the export:")
    out.print(f"position {loaded.position}, hash {loaded.hash}")
    if not loaded.with_keys:
        out.print("without keys (`ledger export --with-keys`) names are shown as erased")
