"""Names under seal: what the ledger keeps of a name, and the key that one customer's name opens to.

A destroyed key makes the name unreadable for ever, and leaves every byte of the ledger as it was.
Deterministic AES-SIV (RFC 5297), bound to the event; the length shows no more than steps of 64
bytes.
"""

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from secrets import token_bytes
from typing import Annotated, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.padding import PKCS7
from msgspec import Meta, Struct
from msgspec.json import Decoder, Encoder

from ledger.core.events import MAX_AMOUNT_MINOR, NO_NAME, CustomerErased, CustomerRegistered
from ledger.eventlog.records import Record, Submitted

REGISTERED: Final = "customer.registered"
SEALED_VERSION: Final = 2
"""The schema_version of a sealed registration. What is submitted is of version 1, in the clear."""

KEYED: Final = (CustomerRegistered, CustomerErased)
"""What can't be recorded without the keys of its customer."""

KEY_BYTES: Final = 64
_PADDING: Final = PKCS7(512)


class WrongKey(Exception):
    """A key does not open what it should: one of the two was changed, or is of another ledger."""


class SealedRegistration(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The `data` of a registration as the ledger keeps it."""

    opening_balance_minor: Annotated[int, Meta(ge=0, le=MAX_AMOUNT_MINOR)]
    sealed_username: Annotated[str, Meta(min_length=1, max_length=1_000)]


class KeyRow(Struct, frozen=True):
    """A customer's key; None once it was destroyed. Times are those of the records."""

    customer_id: bytes
    sealing_key: bytes | None
    created_at_us: int
    erased_at_us: int | None = None


_encode = Encoder(order="sorted").encode
_decode = Decoder(SealedRegistration).decode


def new_key() -> bytes:
    """A random key for one customer."""
    return token_bytes(KEY_BYTES)


def sealed_data(event_id: bytes, registration: CustomerRegistered, key: bytes) -> bytes:
    """The canonical data of a registration with its name under seal."""
    padder = _PADDING.padder()
    name = padder.update(registration.username.encode()) + padder.finalize()
    sealed = urlsafe_b64encode(AESSIV(key).encrypt(name, [event_id])).decode()
    return _encode(SealedRegistration(registration.opening_balance_minor, sealed))


def opened(record: Record, key: bytes | None) -> CustomerRegistered:
    """The registration of a sealed record; with NO_NAME where there is no key.

    Raises WrongKey, and msgspec.DecodeError for bad data.
    """
    sealed = _decode(record.data)
    name = NO_NAME if key is None else _unseal(record, sealed.sealed_username, key)
    return CustomerRegistered(name, sealed.opening_balance_minor)


def _unseal(record: Record, sealed: str, key: bytes) -> str:
    try:
        padded = AESSIV(key).decrypt(b64decode(sealed, b"-_", validate=True), [record.event_id])
        unpadder = _PADDING.unpadder()
        return (unpadder.update(padded) + unpadder.finalize()).decode()
    except (InvalidTag, ValueError) as error:
        raise WrongKey(f"the name at position {record.position} does not open") from error


def is_sealed(record: Record) -> bool:
    """Whether a record holds a name under seal."""
    return record.schema_version == SEALED_VERSION and record.type == REGISTERED


def sealed_customers(records: Iterable[Record]) -> list[bytes]:
    """The customers whose keys it takes to read the names in these records."""
    return [record.stream_id for record in records if is_sealed(record)]


def named_customers(events: Iterable[Submitted]) -> set[bytes]:
    """The customers whose keys it takes to record these events."""
    return {event.stream_id.bytes for event in events if isinstance(event.payload, KEYED)}


class CustomerKeys:
    """The keys that one batch needs: as they are `stored`, and what it makes and destroys.

    Only a registration that takes effect makes a key that is stored. A refused one is sealed with
    the customer's key or, where there is none any more, with one that is thrown away.
    """

    def __init__(
        self, stored: Mapping[bytes, bytes | None], make_key: Callable[[], bytes] = new_key
    ) -> None:
        self._keys = dict(stored)
        self._make_key = make_key
        self.made: dict[bytes, KeyRow] = {}
        self.destroyed: dict[bytes, int] = {}

    def make(self, customer_id: bytes, at_us: int) -> bytes:
        """A new customer's key; the one that is there already, from a younger backup, if any."""
        if customer_id in self._keys:
            return self.at_hand(customer_id)
        key = self._keys[customer_id] = self._make_key()
        self.made[customer_id] = KeyRow(customer_id, key, at_us)
        return key

    def at_hand(self, customer_id: bytes) -> bytes:
        """The customer's key; one that nobody keeps where there is none."""
        return self._keys.get(customer_id) or self._make_key()

    def destroy(self, customer_id: bytes, at_us: int) -> None:
        """Forget the customer's key; nothing happens where there is none."""
        if self._keys.get(customer_id) is None:
            return
        self._keys[customer_id] = None
        if row := self.made.get(customer_id):
            self.made[customer_id] = KeyRow(customer_id, None, row.created_at_us, at_us)
        else:
            self.destroyed[customer_id] = at_us
