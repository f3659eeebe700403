"""`ledger head`: where the ledger ends, signed for whoever keeps it.

`ledger verify --against` proves later that nothing up to a kept head was changed or cut off. The
signature is Ed25519 (RFC 8032) over a text that names what is signed.
"""

import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder, Encoder
from msgspec.structs import replace
from rich.table import Table

from cli import connections, console
from cli.settings import Settings
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import GENESIS_HASH, VerificationFailed
from ledger.runtime.files import write_atomically
from ledger.runtime.timestamps import format_rfc3339, from_us

_PURPOSE: Final = b"order-ledger head 1\n"
_KEY_ID_CHARACTERS: Final = 16


class BadFile(Exception):
    """A file that was named can't be used."""


class KeptHead(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where the ledger ended once: position, hash in hex, recorded time; perhaps signed.

    `key` tells which key that was: the beginning of the SHA-256 of the public one, in hex.
    """

    position: Annotated[int, Meta(ge=0)]
    hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    recorded_at: datetime | None
    key: str | None = None
    signature: str | None = None


_encode = Encoder().encode
_decode = Decoder(KeptHead).decode


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
        kept = sign_head(end, signing_key) if signing_key else end
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
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with _raising_bad_file("write", path):
        # Readable by its owner alone, and never in the place of another one.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(private)
        write_atomically(path.with_name(f"{path.name}.pub"), public)


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file that only its owner may read; raises BadFile."""
    with _raising_bad_file("read", path):
        if path.stat().st_mode & 0o077:
            raise PermissionError(f"others may read {path}: chmod 600 {path}")
        pem = path.read_bytes()
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadFile(
            f"{path} is not an Ed25519 private key as PEM, without a passphrase"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadFile(f"{path} is a private key of another kind than Ed25519")
    return key


def sign_head(head: KeptHead, key: Ed25519PrivateKey) -> KeptHead:
    """The head with the name of the key and the signature."""
    named = replace(head, key=_key_id(key.public_key()), signature=None)
    return replace(named, signature=b64encode(key.sign(_signed(named))).decode())


def write_head(path: Path, kept: KeptHead) -> None:
    """Write a head into a file; raises BadFile."""
    with _raising_bad_file("write", path):
        # Atomically: a crash must not leave half of the only proof.
        write_atomically(path, _encode(kept) + b"\n")


def load_head(path: Path, public_key_path: Path | None) -> KeptHead:
    """The head in a file, signed with the key if one is named; raises BadFile."""
    with _raising_bad_file("read", path):
        body = path.read_bytes()
    try:
        kept = _decode(body)
    except (DecodeError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} is not a head as `ledger head` writes it: {error}") from error
    if public_key_path:
        key = _load_public_key(public_key_path)
        if kept.signature is None:
            raise BadFile(f"{path} is not signed")
        if kept.key != _key_id(key):
            raise BadFile(f"{path} is signed by key {kept.key}, and not by key {_key_id(key)}")
        try:
            key.verify(b64decode(kept.signature, validate=True), _signed(kept))
        except (InvalidSignature, Base64Error) as error:
            raise BadFile(f"{path} was changed since the key signed it") from error
    return kept


def _load_public_key(path: Path) -> Ed25519PublicKey:
    with _raising_bad_file("read", path):
        pem = path.read_bytes()
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadFile(f"{path} is not an Ed25519 public key as PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadFile(f"{path} is a public key of another kind than Ed25519")
    return key


def _signed(head: KeptHead) -> bytes:
    return _PURPOSE + _encode(replace(head, signature=None))


def _key_id(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return sha256(raw).hexdigest()[:_KEY_ID_CHARACTERS]


@contextmanager
def _raising_bad_file(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadFile(f"can't {verb} {path}: {error.strerror or error}") from error
