"""The `ledger` command."""

import gc
import logging
from collections.abc import Coroutine
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
import uvloop
from rich.console import Console

from cli.settings import BadSettings, MissingSecret, Settings, load_settings
from ledger.broker import BROKER_ERRORS
from ledger.database import DATABASE_ERRORS, UnsafeDatabase
from ledger.publisher import InboxUnavailable
from ledger.store import LedgerDamaged
from projections.queries import ViewsUnavailable

app = typer.Typer(
    help="An event-sourced order ledger.", no_args_is_help=True, pretty_exceptions_enable=False
)
out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)
Answer = TypeVar("Answer")
COLLECT_AFTER: Final = (20_000, 50, 100)

REFUSED: Final = (
    UnsafeDatabase,
    LedgerDamaged,
    InboxUnavailable,
    ViewsUnavailable,
    MissingSecret,
    *BROKER_ERRORS,
    *DATABASE_ERRORS,
)
"""What ends a command with one sentence and status 1, rather than with a traceback."""


@app.command()
def up() -> None:
    """Start the local stack and run it until Ctrl-C: RabbitMQ, MariaDB, api, writer, projector."""
    from cli.stack.up import up as run

    run(_settings())


@app.command()
def migrate() -> None:
    """Make or update tables, accounts, grants and queues; a second time changes nothing."""
    from cli.migrate import migrate as run

    _run(run(_settings()))
    out.print("migrated: tables, accounts, grants and queues are as this version needs them")


@app.command()
def api() -> None:
    """Serve the REST API."""
    from cli.processes import run_api

    _run(run_api(_settings()))


@app.command()
def writer() -> None:
    """Write the ledger; of several writers one works and the others stand by."""
    from cli.processes import run_writer

    _run(run_writer(_settings()))


@app.command()
def projector() -> None:
    """Keep the views."""
    from cli.processes import run_projector

    _run(run_projector(_settings()))


@app.command()
def demo() -> None:
    """Load the demo's catalogue and customer; a second time changes nothing."""
    from cli.demo import load_demo

    _run(load_demo(_settings()))
    out.print("the demo's products and customer are in the views")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show head, epoch, checkpoints, lag, and the depth of inbox and parking queue."""
    from cli.status import as_table, read_status

    found = _run(read_status(_settings()))
    if as_json:
        typer.echo(msgspec.json.encode(found))
    else:
        out.print(as_table(found))


def _settings() -> Settings:
    try:
        return load_settings()
    except BadSettings as error:
        err.print(f"[red]✗[/] {error}")
        raise typer.Exit(2) from None


def _run(work: Coroutine[Any, Any, Answer]) -> Answer:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    for library, level in (("aiormq", "CRITICAL"), ("asyncmy", "ERROR"), ("alembic", "WARNING")):
        logging.getLogger(library).setLevel(level)
    # What is here now stays, and little garbage is in cycles: collect seldom, and the young first.
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        return uvloop.run(work)
    except REFUSED as error:
        err.print(f"[red]✗[/] {type(error).__name__}: {error}")
        raise typer.Exit(1) from None
