"""The `ledger` command: its subcommands, each in a module that is imported when it is run."""

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand

# The line of each command in the help.
COMMANDS: Final = {
    "up": "Start and run the local stack until Ctrl-C: RabbitMQ, MariaDB, api, writer, projector.",
    "migrate": "Make or update tables, accounts, grants and queues; a second time changes nothing.",
    "api": "Serve the REST API.",
    "writer": "Write the ledger; of several writers one works and the others stand by.",
    "projector": "Keep the views up to date.",
    "demo": "Load the demo's catalogue and customer; a second time changes nothing.",
    "status": "Show head, epoch, checkpoints, lag, and the depth of inbox and parking queue.",
    "keys": "Create, list, revoke and rotate API keys.",
    "balance": "Show the trial balance: debits and credits of every account must come to the same.",
    "erase-customer": "Destroy the key of a customer's encrypted name; money and orders stay.",
    "export": "Write events and views, all as of one position, as files with a manifest.",
    "import": "Append an export's events to an empty ledger; run it again after an interruption.",
    "import-old": "Bring the data of the old API's MySQL database into an empty ledger.",
    "parked": "Inspect, resubmit and discard messages that could not be read (dead letters).",
    "asof": "Show orders, wallets or stock as they were, all of them or one.",
    "head": "Show where the ledger ends: position, hash and recorded time; or sign it, to keep.",
    "verify": "Check each hash, decision, invariant and view; name the first wrong position.",
    "replay": "Print recorded events as JSON lines, or submit them again to another ledger.",
    "whatif": "Decide all that was submitted by other pricing rules and compare; writes nothing.",
    "rebuild": "Rebuild views from the ledger, compare them with the live ones and swap them in.",
}
# The functions of the commands that are not `name` in the module `cli.commands.name`.
FUNCTIONS: Final = {
    "migrate": "cli.commands.migrate:migrate_command",
    "api": "cli.commands.processes:api",
    "writer": "cli.commands.processes:writer",
    "projector": "cli.commands.processes:projector",
    "import": "cli.commands.export:import_",
}

EPILOG: Final = (
    "Settings are variables of the environment, such as LEDGER_HOME and LEDGER_API_PORT; all of"
    " them are in docs/reference/settings.md."
)


class LazyCommand(TyperCommand):
    """A command that is imported when it is run: a name and a line of help until then.

    This is click's pattern of lazily loaded subcommands. Help, a typo and shell completion are so
    answered without SQLAlchemy, aio-pika and the rest, which take five times as long to import.
    """

    def make_context(self, *args: Any, **extra: Any) -> typer.Context:
        """The context of the command itself, which is loaded now."""
        command: Any = load(self.name or "")
        command.name, command.help, command.epilog = self.name, self.help, EPILOG
        context: typer.Context = command.make_context(*args, **extra)
        return context


def load(name: str) -> object:
    """The click command of this name: a function with options, or a group."""
    identifier = name.replace("-", "_")
    target = FUNCTIONS.get(name, f"cli.commands.{identifier}:{identifier}")
    module, attribute = target.split(":")
    command = getattr(import_module(module), attribute)
    if not isinstance(command, typer.Typer):
        function, command = command, typer.Typer(add_completion=False)
        command.command()(function)
    return typer.main.get_command(command)


app = typer.Typer(
    help="An event-sourced order ledger.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name, _help in COMMANDS.items():
    app.command(_name, cls=LazyCommand, help=_help)(lambda: None)
