"""`ledger head`: where the ledger ends, signed for whoever keeps it.

`ledger verify --against` proves later that nothing up to a kept head was changed or cut off.
"""

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.table import Table

from cli import connections, console
from cli.settings import Settings
from ledger.audit import signatures
from ledger.audit.signatures import KeptHead
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import GENESIS_HASH, VerificationFailed
from ledger.runtime.files import read_secret, write_atomically, write_secret
from ledger.runtime.timestamps import format_rfc3339, from_us


class BadFile(Exception):
    """A file that was named can't be used."""


def head(
    sign: Annotated[bool, typer.Option("--sign", help="sign it with --key")] = False,
    key: Annotated[Path | None, typer.Option(help="the private key, as PEM")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="write it into this file")] = None,
    make_key: Annotated[
        Path | None, typer.Option(help="make a key instead: this file, and beside it FILE.pub")
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Run `ledger head`."""
    if sign != (key is not None) or (make_key and (sign or to or as_json)):
        console.usage_error(
            "say --sign and --key FILE together, and --make-key FILE without all others"
        )
    try:
        if make_key:
            make_signing_keys(make_key)
            console.out.print(f"made {make_key} to sign with, and {make_key}.pub for the others")
            return
        signing_key = load_signing_key(key) if key else None
        end = console.run(read_head(console.read_settings()), handled=(VerificationFailed,))
        kept = signatures.sign(end, signing_key) if signing_key else end
        if to:
            write_head(to, kept)
    except VerificationFailed as failure:
        console.fail(str(failure))
    except BadFile as error:
        console.usage_error(str(error))
    if as_json or (sign and not to):
        console.print_json(kept)
    elif not to:
        table = Table(show_header=False, box=None)
        table.add_row("position", str(end.position))
        table.add_row("hash", end.hash)
        recorded_at = format_rfc3339(end.recorded_at) if end.recorded_at else "nothing yet"
        table.add_row("recorded", recorded_at)
        console.out.print(table)


async def read_head(settings: Settings) -> KeptHead:
    """Where the ledger ends; raises VerificationFailed where `ledger_head` says something else."""
    async with connections.connection(settings, "projector", read_only=True) as connection:
        reader = EventReader(connection)
        end = await reader.compare_head()
        if end.failure:
            raise end.failure
        record = await reader.record_at(end.position)
    if record is None:
        return KeptHead(0, GENESIS_HASH.hex(), None)
    return KeptHead(record.position, record.hash.hex(), from_us(record.recorded_at_us))


def make_signing_keys(path: Path) -> None:
    """Write a new private key into a file, and the public one beside it; raises BadFile."""
    private, public = signatures.make_key()
    try:
        write_secret(path, private)
        write_atomically(path.with_name(f"{path.name}.pub"), public)
    except OSError as error:
        raise BadFile(f"can't write {path}: {error.strerror}") from error


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file that only its owner may read; raises BadFile."""
    try:
        return signatures.private_key(read_secret(path))
    except signatures.BadKey as error:
        raise BadFile(f"{path} {error}") from error
    except OSError as error:
        raise BadFile(f"can't read {path}: {error.strerror or error}") from error


def write_head(path: Path, kept: KeptHead) -> None:
    """Write a head into a file; raises BadFile."""
    try:
        # Atomically: a crash must not leave half of the only proof.
        write_atomically(path, signatures.encode(kept) + b"\n")
    except OSError as error:
        raise BadFile(f"can't write {path}: {error.strerror}") from error


def load_head(path: Path, public_key_path: Path | None) -> KeptHead:
    """The head in a file, signed with the key if one is named; raises BadFile."""
    reading = path  # the file that an error is about
    try:
        kept = signatures.decode(path.read_bytes())
        if public_key_path:
            reading = public_key_path
            public_key = signatures.public_key(public_key_path.read_bytes())
            reading = path
            signatures.verify_signature(kept, public_key)
    except (signatures.BadHead, signatures.BadKey) as error:
        raise BadFile(f"{reading} {error}") from error
    except OSError as error:
        raise BadFile(f"can't read {reading}: {error.strerror}") from error
    return kept
