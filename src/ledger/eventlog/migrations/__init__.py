"""The migrations of the ledger's own tables, run by Alembic; each object has its SQL file."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

HERE: Final = Path(__file__).parent


class MadeByNewerCode(Exception):
    """The tables of the ledger were made by a newer version than this one."""


def upgrade(connection: Connection) -> None:
    """Bring the ledger's tables to the newest revision; nothing happens where they are there.

    Each statement of a revision may have been run before: there is no transaction around DDL, so
    that one which was killed is begun again. Raises MadeByNewerCode.
    """
    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MadeByNewerCode(
            f"the tables of this ledger were made by a newer version ({error}): run that one"
        ) from error


def sql(name: str) -> str:
    """The statement that makes one object."""
    return (HERE / "sql" / f"{name}.sql").read_text()
