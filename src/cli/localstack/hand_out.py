"""Run once by compose at its start: create the secrets and set the owner of each file."""

import os
from pathlib import Path

from cli.localstack.secrets import (
    BOOTSTRAP,
    DEFINITIONS,
    create_secrets,
    write_bootstrap,
    write_definitions,
)
from cli.settings import load_settings

# The user under which each role runs in compose.
USER_IDS = {"migrate": 10000, "api": 10001, "writer": 10002, "projector": 10003}

# The user under which both official images, mysql and rabbitmq, run their server.
SERVER_USER_ID = 999

SERVER_FILES = {DEFINITIONS, BOOTSTRAP, "db_root"}


def hand_out(directory: Path, vhost: str, schema: str) -> None:
    """Make what is missing and give each file to its reader; must run as root.

    A container runs under its role's user id and so reads its own passwords only; `ledger migrate`
    also reads, by its group, those of the database accounts that it creates.
    """
    create_secrets(directory)
    write_definitions(directory, vhost)
    write_bootstrap(directory, schema)
    directory.chmod(0o711)
    for path in directory.iterdir():
        role = path.name.rpartition("_")[2]
        owner = SERVER_USER_ID if path.name in SERVER_FILES else USER_IDS.get(role, 0)
        os.chown(path, owner, USER_IDS["migrate"])
        path.chmod(0o440 if path.name.startswith("db_") and path.name != "db_root" else 0o400)


if __name__ == "__main__":
    settings = load_settings()
    hand_out(
        settings.secrets_dir or settings.home / "secrets", settings.amqp_vhost, settings.db_name
    )
