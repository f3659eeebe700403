"""Heads that are kept: read from the ledger, written and read as files, with their keys."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.table import Table

from cli.reading import reading
from cli.settings import Settings
from ledger.audit import signatures
from ledger.audit.signatures import KeptHead
from ledger.eventlog.chain import GENESIS_HASH
from ledger.eventlog.reader import EventReader
from ledger.runtime.files import read_secret, write_atomically, write_secret
from ledger.runtime.timestamps import format_rfc3339, from_us


class BadFile(Exception):
    """A file that was named can't be used."""


async def read_head(settings: Settings) -> KeptHead:
    """Where the ledger ends; raises VerificationFailed where `ledger_head` says something else."""
    async with reading(settings) as connection:
        reader = EventReader(connection)
        end = await reader.end()
        if end.failure:
            raise end.failure
        record = await reader.record_at(end.position)
    if record is None:
        return KeptHead(0, GENESIS_HASH.hex(), None)
    return KeptHead(record.position, record.hash.hex(), from_us(record.recorded_at_us))


def as_table(head: KeptHead) -> Table:
    """The head for a person to read."""
    table = Table(show_header=False, box=None)
    table.add_row("position", str(head.position))
    table.add_row("hash", head.hash)
    table.add_row(
        "recorded", format_rfc3339(head.recorded_at) if head.recorded_at else "nothing yet"
    )
    return table


def make_keys(path: Path) -> None:
    """Write a new private key into a file, and the public one beside it; raises BadFile."""
    private, public = signatures.make_key()
    try:
        write_secret(path, private)
        write_atomically(path.with_name(f"{path.name}.pub"), public)
    except OSError as error:
        raise BadFile(f"can't write {path}: {error.strerror}") from error


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file that only its owner may read; raises BadFile."""
    try:
        return signatures.private_key(read_secret(path))
    except signatures.BadKey as error:
        raise BadFile(f"{path} {error}") from error
    except OSError as error:
        raise BadFile(f"can't read {path}: {error.strerror or error}") from error


def write_head(path: Path, head: KeptHead) -> None:
    """Write a head into a file; raises BadFile."""
    try:
        write_atomically(path, signatures.encode(head) + b"\n")
    except OSError as error:
        raise BadFile(f"can't write {path}: {error.strerror}") from error


def load_head(path: Path, public_key: Path | None) -> KeptHead:
    """The head in a file, signed by the key if one is named; raises BadFile."""
    reads = path
    try:
        head = signatures.decode(path.read_bytes())
        if public_key:
            reads = public_key
            key = signatures.public_key(public_key.read_bytes())
            reads = path
            signatures.check(head, key)
    except (signatures.BadHead, signatures.BadKey) as error:
        raise BadFile(f"{reads} {error}") from error
    except OSError as error:
        raise BadFile(f"can't read {reads}: {error.strerror}") from error
    return head
