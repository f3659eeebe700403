"""The passwords, one file an account, and the accounts that the two servers make of them.

Compose runs this module once at its start, to create the files and to set the owner of each.
"""

import base64
import hashlib
import json
import os
import secrets
from pathlib import Path

from cli.settings import AMQP_ROLES, DB_ROLES, SNAPSHOT_KEY, load_settings
from ledger.runtime.files import write_atomically

NAMES = (
    *(f"db_{role}" for role in (*DB_ROLES, "root")),
    *(f"amqp_{role}" for role in AMQP_ROLES),
    "erlang_cookie",
    SNAPSHOT_KEY,
)
PRIVATE = 0o600
DEFINITIONS = "definitions.json"
BOOTSTRAP = "bootstrap.sql"

# The user under which each role runs in compose, and both official images, mysql and rabbitmq.
USER_IDS = {"migrate": 10000, "api": 10001, "writer": 10002, "projector": 10003}
# The API measures the queues with an account besides its own, which may not take from them.
OWNER_IDS = USER_IDS | {"monitor": USER_IDS["api"]}
SERVER_USER_ID = 999
SERVER_FILES = {DEFINITIONS, BOOTSTRAP, "db_root"}

NOTHING = "^$"
EVERYTHING = ".*"
# What each role may configure, write and read in the virtual host, as RabbitMQ's patterns.
PERMISSIONS = {
    "migrate": (EVERYTHING, EVERYTHING, EVERYTHING),
    "api": (
        r"^ledger\.api\..*",
        r"^(ledger\.submitted|ledger\.accepted|ledger\.api\..*)$",
        r"^(ledger\.accepted|ledger\.announced|ledger\.api\..*)$",
    ),
    "writer": (NOTHING, r"^(ledger\.parking|ledger\.recorded)$", r"^ledger\.inbox$"),
    "projector": (
        r"^ledger\.projector\..*",
        r"^(ledger\.announced|ledger\.projector\..*)$",
        r"^(ledger\.recorded|ledger\.projector\..*)$",
    ),
    # RabbitMQ tells the depth of a queue to whoever has any right on it. Of the three this one does
    # least: to bind the queue, which takes an exchange that the account may read, and it has none.
    "monitor": (NOTHING, r"^ledger\.(inbox|parking)$", NOTHING),
}
# Where the management plugin is on, this account may list the queues with their policies.
TAGS = {"monitor": ("management",)}


def create_secrets(directory: Path) -> None:
    """Make the password files that don't exist yet; the ones that do are kept."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in NAMES:
        if not (directory / name).exists():
            write_atomically(directory / name, secrets.token_hex(24).encode(), PRIVATE)


def read_secret(directory: Path, name: str) -> str:
    """The password in the file of that name."""
    return (directory / name).read_text().strip()


def write_definitions(directory: Path, vhost: str) -> Path:
    """Write the definitions that the broker imports at each start; returns their path.

    They hold the virtual host and one user a role with only its own rights, and no `guest`.
    """
    definitions = {
        "users": [
            user_definition(
                f"ledger_{role}", read_secret(directory, f"amqp_{role}"), *TAGS.get(role, ())
            )
            for role in PERMISSIONS
        ],
        "vhosts": [{"name": vhost}],
        "permissions": [
            {
                "user": f"ledger_{role}",
                "vhost": vhost,
                "configure": configure,
                "write": write,
                "read": read,
            }
            for role, (configure, write, read) in PERMISSIONS.items()
        ],
    }
    path = directory / DEFINITIONS
    write_atomically(path, json.dumps(definitions, indent=1).encode(), PRIVATE)
    return path


def user_definition(name: str, password: str, *tags: str) -> dict[str, object]:
    """A user as RabbitMQ's definitions spell it, with the hash of its password."""
    return {
        "name": name,
        "password_hash": hash_password(password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    }


def hash_password(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256: base64 of four bytes of salt and the digest of salt + password.

    https://www.rabbitmq.com/docs/passwords#this-is-the-algorithm
    """
    salt = salt or secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def write_bootstrap(directory: Path, schema: str) -> Path:
    """Write the SQL that the database runs at its start; returns its path.

    It makes the schema and the account of `ledger migrate`, which makes the other accounts itself.
    It may be run again. One statement a line, as `init-file` wants it.
    """
    migrate = "'ledger_migrate'@'%'"
    password = read_secret(directory, "db_migrate")
    statements = (
        f"CREATE DATABASE IF NOT EXISTS `{schema}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        f"CREATE USER IF NOT EXISTS {migrate} IDENTIFIED BY '{password}'",
        f"ALTER USER {migrate} IDENTIFIED BY '{password}'",
        f"GRANT ALL PRIVILEGES ON `{schema}`.* TO {migrate} WITH GRANT OPTION",
        rf"GRANT ALL PRIVILEGES ON `ledger\_%`.* TO {migrate} WITH GRANT OPTION",
        f"GRANT CREATE USER ON *.* TO {migrate}",
    )
    path = directory / BOOTSTRAP
    write_atomically(path, "".join(f"{statement};\n" for statement in statements).encode(), PRIVATE)
    return path


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
        owner = SERVER_USER_ID if path.name in SERVER_FILES else OWNER_IDS.get(role, 0)
        os.chown(path, owner, USER_IDS["migrate"])
        if path.name == SNAPSHOT_KEY:
            # Whoever looks back must tell true snapshots from forged ones; only the writer's
            # account may write any.
            path.chmod(0o444)
            continue
        path.chmod(0o440 if path.name.startswith("db_") and path.name != "db_root" else 0o400)


if __name__ == "__main__":
    loaded = load_settings()
    hand_out(loaded.secrets_dir or loaded.home / "secrets", loaded.amqp_vhost, loaded.db_name)
