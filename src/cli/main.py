"""The `ledger` command."""

from typing import Annotated

import msgspec
import typer
from rich.console import Console

from cli.settings import BadSettings, MissingSecret
from cli.stack import StackRefused
from ledger.broker import BROKER_ERRORS
from ledger.database import DATABASE_ERRORS, UnsafeDatabase
from ledger.publisher import InboxUnavailable

app = typer.Typer(
    help="An event-sourced order ledger.", no_args_is_help=True, pretty_exceptions_enable=False
)
out = Console()
err = Console(stderr=True)

CAN_NOT = (
    BadSettings,
    MissingSecret,
    StackRefused,
    UnsafeDatabase,
    InboxUnavailable,
    *BROKER_ERRORS,
    *DATABASE_ERRORS,
)


@app.command()
def up() -> None:
    """Start the local stack and run it until Ctrl-C: RabbitMQ, MariaDB, api, writer, projector."""
    from cli.stack.up import up as run_stack

    _guarded(lambda: run_stack(_settings()))


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
