"""Encryption of customers' names, each with a key of its own that erasure destroys.

Without its key a name is unreadable for ever, while every byte of the ledger stays as it was
(crypto-shredding). The cipher is deterministic AES-SIV (RFC 5297), bound to the event; the length
of a name shows in steps of 64 bytes only. An encrypted name is called sealed, as it is stored.
"""

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import partial
from secrets import token_bytes
from typing import Annotated, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.padding import PKCS7
from msgspec import Meta, Struct
from msgspec.json import Decoder, Encoder

from ledger.core.events import MAX_AMOUNT_MINOR, NO_NAME, CustomerErased, CustomerRegistered
from ledger.eventlog.records import Record, Submitted, VerificationFailed

REGISTERED: Final = "customer.registered"
# The schema_version of a sealed registration. Submitted ones are of version 1, in the clear.
SEALED_VERSION: Final = 2

# The events that can't be recorded without the encryption key of their customer.
NEEDS_KEY: Final = (CustomerRegistered, CustomerErased)

KEY_BYTES: Final = 64
_PADDING: Final = PKCS7(512)


class WrongKey(VerificationFailed):
    """A key does not decrypt its name: one of the two was changed, or is of another ledger."""

    def __init__(self, position: int) -> None:
        super().__init__(position, "the customer's key does not decrypt the name")


class SealedRegistration(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The `data` of a registration as the ledger keeps it."""

    opening_balance_minor: Annotated[int, Meta(ge=0, le=MAX_AMOUNT_MINOR)]
    sealed_username: Annotated[str, Meta(min_length=1, max_length=1_000)]


class KeyRow(Struct, frozen=True):
    """A customer's encryption key, None once it was destroyed. Times are those of the records."""

    customer_id: bytes
    sealing_key: bytes | None
    created_at_us: int
    erased_at_us: int | None = None


_encode = Encoder(order="sorted").encode
_decode = Decoder(SealedRegistration).decode
# A random key for one customer.
new_key: Final = partial(token_bytes, KEY_BYTES)


def seal(event_id: bytes, registration: CustomerRegistered, key: bytes) -> bytes:
    """The canonical data of a registration with its name encrypted."""
    padder = _PADDING.padder()
    name = padder.update(registration.username.encode()) + padder.finalize()
    sealed = urlsafe_b64encode(AESSIV(key).encrypt(name, [event_id])).decode()
    return _encode(SealedRegistration(registration.opening_balance_minor, sealed))


def unseal(record: Record, key: bytes | None) -> CustomerRegistered:
    """The registration of a sealed record, with NO_NAME if there is no key.

    Raises WrongKey, and msgspec.DecodeError for bad data.
    """
    sealed = _decode(record.data)
    if key is None:
        return CustomerRegistered(NO_NAME, sealed.opening_balance_minor)
    try:
        encrypted = b64decode(sealed.sealed_username, b"-_", validate=True)
        unpadder = _PADDING.unpadder()
        padded = AESSIV(key).decrypt(encrypted, [record.event_id])
        name = (unpadder.update(padded) + unpadder.finalize()).decode()
    except (InvalidTag, ValueError) as error:
        raise WrongKey(record.position) from error
    return CustomerRegistered(name, sealed.opening_balance_minor)


def is_sealed(record: Record) -> bool:
    """True for a registration with an encrypted name."""
    return record.schema_version == SEALED_VERSION and record.type == REGISTERED


class CustomerKeys:
    """The encryption keys that one batch needs: those that are `stored`, made and destroyed.

    Only a registration that takes effect makes a key that is stored. A refused one is sealed with
    the customer's key or, if there is none any more, with a key that nobody keeps.
    """

    def __init__(
        self, stored: Mapping[bytes, bytes | None], make_key: Callable[[], bytes] = new_key
    ) -> None:
        self._keys = dict(stored)
        self._make_key = make_key
        self.made: dict[bytes, KeyRow] = {}
        self.destroyed: dict[bytes, int] = {}

    def seal_or_erase(self, event: Submitted, at_us: int, *, took_effect: bool) -> bytes | None:
        """Return the sealed data of a registration; for an erasure destroy the customer's key."""
        customer_id, key = event.stream_id.bytes, self._keys.get(event.stream_id.bytes)
        match event.payload:
            case CustomerRegistered() as registration:
                sealing_key = key or self._make_key()
                # A restored backup may have left a key, or the row of one that was destroyed.
                if took_effect and customer_id not in self._keys:
                    self._keys[customer_id] = sealing_key
                    self.made[customer_id] = KeyRow(customer_id, sealing_key, at_us)
                return seal(event.event_id.bytes, registration, sealing_key)
            case CustomerErased() if took_effect and key:
                self._keys[customer_id] = None
                if row := self.made.get(customer_id):
                    self.made[customer_id] = KeyRow(customer_id, None, row.created_at_us, at_us)
                else:
                    self.destroyed[customer_id] = at_us
        return None
