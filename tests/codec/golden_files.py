"""The golden files: one event of each type and schema_version, as it was first written.

Run as a script, it writes the files that are missing. It never touches one that is there: what
once stood in a ledger must be read, and hash, the same for ever.
"""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

from ledger.core.events import (
    DECIDED,
    SUBMITTED,
    TYPE_OF,
    AnyPayload,
    CustomerErased,
    CustomerRegistered,
    DecidedPayload,
    OrderCancelled,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderCompleted,
    OrderFailed,
    OrderHistory,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    Reason,
    StockReceived,
    SubmissionRefused,
    SubmittedPayload,
    WalletCredited,
)
from ledger.eventlog.codec import CURRENT, encode_payload, encode_submitted
from ledger.eventlog.encryption import REGISTERED, SEALED_VERSION, seal
from ledger.eventlog.records import GENESIS_HASH, Record, Submitted, decided_id, next_hash

FOLDER = Path(__file__).parent / "golden"
SOURCE = "order-ledger/api"
META = b'{"source":"order-ledger/api"}'

CAUSE = UUID("0190b5a2-3c4d-7e6f-8a9b-0c1d2e3f4a5b")
STREAM = UUID("7d9f2c1a-5b3e-4f60-9a7b-8c6d5e4f3a2b")
CUSTOMER = UUID("43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")
PRODUCT = UUID("a1b2c3d4-e5f6-7890-1234-567890abcdef")
OCCURRED_AT_US = 1_735_689_600_123_456
RECORDED_AT_US = 1_735_689_600_234_567
KEY = bytes(range(64))
NAME = "Zoë \N{DESERT ISLAND}"
SEALED = f"{REGISTERED}.v{SEALED_VERSION}.json"

SUBMITTED_EXAMPLES: list[SubmittedPayload] = [
    CustomerRegistered(NAME, 500_000),
    CustomerErased(),
    WalletCredited(12_345),
    ProductListed("Füller", 'with "quotes", \\ and\na new line', 10_000, 100),
    StockReceived(25),
    PriceChanged(9_999),
    OrderPlaced(CUSTOMER, PRODUCT, 3),
    OrderCancelRequested(),
]
DECIDED_EXAMPLES: list[DecidedPayload] = [
    OrderCompleted(CUSTOMER, PRODUCT, 3, 12_000, 36_000),
    OrderFailed(Reason.INSUFFICIENT_STOCK),
    OrderCancelled(CUSTOMER, PRODUCT, 3, 36_000),
    OrderCancelRefused(Reason.ALREADY_CANCELLED),
    SubmissionRefused(Reason.DUPLICATE_CUSTOMER),
]
# Of each type that may have a precondition, one that has; the examples above have none.
CONDITIONAL_EXAMPLES: list[SubmittedPayload] = [
    WalletCredited(12_345, expected_position=40),
    StockReceived(25, expected_position=40),
    PriceChanged(9_999, expected_position=40),
    OrderCancelRequested(expected_position=40),
]
# What an import from another system says besides.
IMPORTED_EXAMPLES: list[SubmittedPayload] = [
    ProductListed("Füller", "", 10_000, 100, 37),
    OrderPlaced(CUSTOMER, PRODUCT, 3, OrderHistory("CANCELLED", 1_700_000_000_000_000)),
]
EXAMPLES: dict[str, AnyPayload] = {
    TYPE_OF[type(payload)]: payload for payload in (*SUBMITTED_EXAMPLES, *DECIDED_EXAMPLES)
}
CONDITIONAL: dict[str, AnyPayload] = {
    f"{TYPE_OF[type(payload)]}.v1.conditional.json": payload for payload in CONDITIONAL_EXAMPLES
} | {f"{TYPE_OF[type(payload)]}.v1.imported.json": payload for payload in IMPORTED_EXAMPLES}

Golden = dict[str, Any]


def names() -> list[str]:
    """The file names that must be there: each type, each schema_version up to the current one."""
    return [SEALED, *CONDITIONAL] + [
        f"{name}.v{version}.json"
        for name in (*SUBMITTED, *DECIDED)
        for version in range(1, CURRENT[name] + 1)
    ]


def read(path: Path) -> Golden:
    golden: Golden = json.loads(path.read_text(encoding="utf-8"))
    return golden


def wire_bytes(golden: Golden) -> bytes:
    """The CloudEvent of a golden file, byte for byte as it was sent."""
    return json.dumps(
        golden["wire"], ensure_ascii=False, sort_keys=True, separators=(",", ":")
    ).encode()


def record_of(golden: Golden) -> Record:
    """The row of a golden file."""
    row = golden["record"]
    return Record(
        row["position"],
        UUID(row["event_id"]).bytes,
        UUID(row["stream_id"]).bytes,
        row["version"],
        row["type"],
        row["schema_version"],
        row["cause_position"],
        row["occurred_at_us"],
        row["recorded_at_us"],
        row["meta"].encode(),
        row["data"].encode(),
    )


def golden_of(payload: AnyPayload) -> Golden:
    """What today's code writes of an example."""
    name = TYPE_OF[type(payload)]
    row: Golden = {
        "position": 41,
        "event_id": str(CAUSE),
        "stream_id": str(STREAM),
        "version": 1,
        "type": name,
        "schema_version": CURRENT[name],
        "cause_position": 0,
        "occurred_at_us": OCCURRED_AT_US,
        "recorded_at_us": RECORDED_AT_US,
        "meta": META.decode(),
        "data": encode_payload(payload).decode(),
    }
    golden: Golden = {"record": row}
    if isinstance(payload, SubmittedPayload):
        event = Submitted(CAUSE, STREAM, OCCURRED_AT_US, payload)
        golden["wire"] = json.loads(encode_submitted(event, SOURCE))
    else:
        decided = {"position": 42, "version": 2, "cause_position": 41, "meta": "{}"}
        row.update(decided, event_id=str(UUID(bytes=decided_id(CAUSE.bytes, 0))))
    golden["hash"] = next_hash(GENESIS_HASH, record_of(golden)).hex()
    return golden


def sealed_golden() -> Golden:
    """What today's writer records of a registration, with KEY as the customer's key."""
    golden = golden_of(EXAMPLES[REGISTERED])
    del golden["wire"]
    data = seal(CAUSE.bytes, CustomerRegistered(NAME, 500_000), KEY)
    golden["record"].update(schema_version=SEALED_VERSION, data=data.decode())
    golden["hash"] = next_hash(GENESIS_HASH, record_of(golden)).hex()
    return golden


def write_missing() -> None:
    FOLDER.mkdir(exist_ok=True)
    today = {f"{name}.v{CURRENT[name]}.json": golden_of(EXAMPLES[name]) for name in EXAMPLES}
    today |= {name: golden_of(payload) for name, payload in CONDITIONAL.items()}
    for name, golden in {**today, SEALED: sealed_golden()}.items():
        path = FOLDER / name
        if not path.exists():
            text = json.dumps(golden, ensure_ascii=False, indent=2)
            path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_missing()
