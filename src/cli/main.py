"""The `ledger` command."""

from typing import Annotated

import msgspec
import typer

from cli.commands import (
    asof,
    balance,
    erase_customer,
    export,
    head,
    parked,
    rebuild,
    replay,
    verify,
    whatif,
)
from cli.commands.keys import keys
from cli.running import out, run, settings

app = typer.Typer(
    help="An event-sourced order ledger.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(keys, name="keys")
app.add_typer(balance.commands)
app.add_typer(erase_customer.commands)
app.add_typer(export.commands)
app.add_typer(parked.commands, name="parked")
app.add_typer(asof.commands)
app.add_typer(head.commands)
app.add_typer(verify.commands)
app.add_typer(replay.commands)
app.add_typer(whatif.commands)
app.add_typer(rebuild.commands)


@app.command()
def up() -> None:
    """Start the local stack and run it until Ctrl-C: RabbitMQ, MariaDB, api, writer, projector."""
    from cli.commands.up import run_stack

    run_stack(settings())


@app.command()
def migrate() -> None:
    """Make or update tables, accounts, grants and queues; a second time changes nothing."""
    from cli.commands.migrate import migrate as work

    run(work(settings()))
    out.print("migrated: tables, accounts, grants and queues are as this version needs them")


@app.command()
def api() -> None:
    """Serve the REST API."""
    from cli.processes import run_api

    run(run_api(settings()))


@app.command()
def writer() -> None:
    """Write the ledger; of several writers one works and the others stand by."""
    from cli.processes import run_writer

    run(run_writer(settings()))


@app.command()
def projector() -> None:
    """Keep the views."""
    from cli.processes import run_projector

    run(run_projector(settings()))


@app.command()
def demo() -> None:
    """Load the demo's catalogue and customer; a second time changes nothing."""
    from cli.commands.demo import load_demo

    run(load_demo(settings()))
    out.print("the demo's products and customer are in the views")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show head, epoch, checkpoints, lag, and the depth of inbox and parking queue."""
    from cli.commands.status import as_table, read_status

    found = run(read_status(settings()))
    if as_json:
        typer.echo(msgspec.json.encode(found))
    else:
        out.print(as_table(found))
