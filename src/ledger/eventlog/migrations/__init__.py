"""The migrations of the ledger's own tables, run by Alembic; each object has its SQL file."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

HERE: Final = Path(__file__).parent


def upgrade(connection: Connection) -> None:
    """Bring the ledger's tables to the newest revision; nothing happens where they are there."""
    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def sql(name: str) -> str:
    """The statement that makes one object."""
    return (HERE / "sql" / f"{name}.sql").read_text()
