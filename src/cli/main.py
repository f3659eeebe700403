"""The `ledger` command: its subcommands, each in a module that is imported when it is run."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand

# Name: the function (or typer group) that is the command, and its line in the help.
COMMANDS: Final = {
    "up": (
        "cli.commands.up:up",
        "Start the local stack and run it until Ctrl-C: RabbitMQ, MariaDB, api, writer, projector.",
    ),
    "migrate": (
        "cli.commands.migrate:migrate_command",
        "Make or update tables, accounts, grants and queues; a second time changes nothing.",
    ),
    "api": ("cli.processes:api", "Serve the REST API."),
    "writer": (
        "cli.processes:writer",
        "Write the ledger; of several writers one works and the others stand by.",
    ),
    "projector": ("cli.processes:projector", "Keep the views up to date."),
    "demo": (
        "cli.commands.demo:demo",
        "Load the demo's catalogue and customer; a second time changes nothing.",
    ),
    "status": (
        "cli.commands.status:status",
        "Show head, epoch, checkpoints, lag, and the depth of inbox and parking queue.",
    ),
    "keys": ("cli.commands.keys:keys", "Create, list, revoke and rotate API keys."),
    "balance": (
        "cli.commands.balance:balance",
        "Show the trial balance: debits and credits of every account must come to the same.",
    ),
    "erase-customer": (
        "cli.commands.erase_customer:erase_customer",
        "Destroy the key that a customer's name is encrypted with; money and orders stay.",
    ),
    "export": (
        "cli.commands.export:export",
        "Write events and views, all as of one position, as files with a manifest.",
    ),
    "import": (
        "cli.commands.export:import_",
        "Append the events of an export to an empty ledger; run it again after an interruption.",
    ),
    "parked": (
        "cli.commands.parked:parked",
        "Inspect, resubmit and discard messages that could not be read (dead letters).",
    ),
    "asof": (
        "cli.commands.asof:asof",
        "Show orders, wallets or stock as they were, all of them or one.",
    ),
    "head": (
        "cli.commands.head:head",
        "Show where the ledger ends: position, hash and recorded time; or sign it, to keep.",
    ),
    "verify": (
        "cli.commands.verify:verify",
        "Check each hash, decision, invariant and view; name the first position that is wrong.",
    ),
    "replay": (
        "cli.commands.replay:replay_events",
        "Print recorded events as JSON lines, or submit them again to another ledger.",
    ),
    "whatif": (
        "cli.commands.whatif:whatif",
        "Decide all that was submitted by other pricing rules and compare; nothing is written.",
    ),
    "rebuild": (
        "cli.commands.rebuild:rebuild",
        "Rebuild views from the ledger, compare them with the live ones and swap them in.",
    ),
}


class LazyCommand(TyperCommand):
    """A command that is imported when it is run: a name and a line of help until then.

    This is click's pattern of lazily loaded subcommands. Help, a typo and shell completion are so
    answered without SQLAlchemy, aio-pika and the rest, which take five times as long to import.
    """

    def make_context(self, *args: Any, **extra: Any) -> typer.Context:
        """The context of the command itself, which is loaded now."""
        command: Any = self.callback() if self.callback else self
        command.name, command.help = self.name, self.help
        context: typer.Context = command.make_context(*args, **extra)
        return context


def load(target: str) -> object:
    """The click command that `module:attribute` names: a function with options, or a group."""
    module, attribute = target.split(":")
    command = getattr(import_module(module), attribute)
    if not isinstance(command, typer.Typer):
        function, command = command, typer.Typer(add_completion=False)
        command.command()(function)
    return typer.main.get_command(command)


def _loader(target: str) -> Callable[[], object]:
    return lambda: load(target)


app = typer.Typer(
    help="An event-sourced order ledger.", no_args_is_help=True, pretty_exceptions_enable=False
)
for _name, (_target, _help) in COMMANDS.items():
    app.command(_name, cls=LazyCommand, help=_help)(_loader(_target))
