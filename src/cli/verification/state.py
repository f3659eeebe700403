"""The state of a verification, in a file: up to where all is right, and the fold there."""

import time
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder

from ledger.core.fold import Fold
from ledger.core.state import Customer, Product
from ledger.eventlog.chain import ChainCheck
from ledger.runtime.files import write_atomically

SAVE_EVERY_S: Final = 2.0
SHARE: Final = 20
"""At most one part in so many of the time goes into saving."""


class BadState(Exception):
    """The file is not one that `ledger verify --resume` wrote for this ledger."""


class StateNotSaved(Exception):
    """The state could not be written to its file."""


class State(Struct, frozen=True):
    """What was verified. `first_hash` is that of the first record: it tells ledgers apart."""

    kind: Literal["ledger verify 1"]
    first_hash: bytes
    position: int
    hash: bytes
    recorded_at_us: int
    customers: dict[UUID, tuple[int]]
    products: dict[UUID, tuple[int, int, int]]

    @property
    def chain(self) -> ChainCheck:
        """From where the chain goes on."""
        return ChainCheck(self.position, self.hash, self.recorded_at_us)

    @property
    def fold(self) -> Fold:
        """From where the decisions go on."""
        return Fold(
            {key: Customer(*each) for key, each in self.customers.items()},
            {key: Product(*each) for key, each in self.products.items()},
        )


_encode = Encoder().encode
_decode = Decoder(State).decode


def load(path: Path) -> State | None:
    """The state in a file, if there is one; raises BadState."""
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (DecodeError, OSError) as error:
        raise BadState(f"{path} can't be read as a state of `ledger verify`: {error}") from error


class StateFile:
    """Saves states, the first at once and then now and then; each replaces the one before it."""

    def __init__(self, path: Path, first_hash: bytes) -> None:
        self._path = path
        self._first_hash = first_hash
        self._next = 0.0

    def save_when_due(self, chain: ChainCheck, fold: Fold) -> None:
        """Save if it is time to; raises StateNotSaved."""
        if time.monotonic() >= self._next:
            self.save(chain, fold)

    def save(self, chain: ChainCheck, fold: Fold) -> None:
        """Save now; raises StateNotSaved."""
        began = time.monotonic()
        state = State(
            "ledger verify 1",
            self._first_hash,
            chain.position,
            chain.hash,
            chain.recorded_at_us,
            {key: (each.balance_minor,) for key, each in fold.customers.items()},
            {
                key: (each.base_price_minor, each.stock, each.initial_stock)
                for key, each in fold.products.items()
            },
        )
        try:
            write_atomically(self._path, _encode(state))
        except OSError as error:
            raise StateNotSaved(f"can't save how far it got: {error}") from error
        took_s = time.monotonic() - began
        self._next = time.monotonic() + max(SAVE_EVERY_S, SHARE * took_s)
