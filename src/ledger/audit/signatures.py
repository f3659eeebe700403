"""Signed heads: who keeps one can tell later that nothing up to it was changed or cut off.

Ed25519 (RFC 8032) over a text that names what is signed.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Final

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

_PURPOSE: Final = b"order-ledger head 1\n"
_KEY_ID_CHARACTERS: Final = 16


class BadKey(Exception):
    """A file does not hold the Ed25519 key, as PEM, that it should."""


class BadHead(Exception):
    """A file is no head, or not one that the key signed."""


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


def make_key() -> tuple[bytes, bytes]:
    """A new private key and its public one, both as PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private, public


def private_key(pem: bytes) -> Ed25519PrivateKey:
    """The key to sign with; raises BadKey."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey("is not an Ed25519 private key as PEM, without a passphrase") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey("is a private key of another kind than Ed25519")
    return key


def public_key(pem: bytes) -> Ed25519PublicKey:
    """The key to check with; raises BadKey."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey("is not an Ed25519 public key as PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadKey("is a public key of another kind than Ed25519")
    return key


def sign(head: KeptHead, key: Ed25519PrivateKey) -> KeptHead:
    """The head with the name of the key and the signature."""
    named = replace(head, key=_key_id(key.public_key()), signature=None)
    return replace(named, signature=b64encode(key.sign(_signed(named))).decode())


def verify_signature(head: KeptHead, key: Ed25519PublicKey) -> None:
    """Raises BadHead unless the key signed the head."""
    if head.signature is None:
        raise BadHead("is not signed")
    if head.key != _key_id(key):
        raise BadHead(f"is signed by key {head.key}, and not by key {_key_id(key)}")
    try:
        key.verify(b64decode(head.signature, validate=True), _signed(head))
    except (InvalidSignature, Base64Error) as error:
        raise BadHead("was changed since the key signed it") from error


def encode(head: KeptHead) -> bytes:
    """The head as JSON."""
    return _encode(head)


def decode(body: bytes) -> KeptHead:
    """The head that was encoded; raises BadHead."""
    try:
        return _decode(body)
    except (DecodeError, UnicodeDecodeError) as error:
        raise BadHead(f"is not a head as `ledger head` writes it: {error}") from error


def _signed(head: KeptHead) -> bytes:
    return _PURPOSE + _encode(replace(head, signature=None))


def _key_id(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return sha256(raw).hexdigest()[:_KEY_ID_CHARACTERS]
