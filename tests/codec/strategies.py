"""Every event, record and CloudEvent that there can be, for the property tests."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.events import (
    MAX_AMOUNT_MINOR,
    MAX_BALANCE_MINOR,
    MAX_DESCRIPTION,
    MAX_NAME,
    MAX_QUANTITY,
    MAX_STOCK,
    MAX_TIME_US,
    MAX_USERNAME,
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
from ledger.eventlog.codec import MAX_SOURCE
from ledger.eventlog.records import Record, Submitted

END_OF_TIME_US = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * 10**6

uuids = st.uuids()
amounts = st.integers(1, MAX_AMOUNT_MINOR)
units = st.integers(1, MAX_STOCK)
quantities = st.integers(1, MAX_QUANTITY)
balances = st.integers(0, MAX_BALANCE_MINOR)
reasons = st.sampled_from(Reason)
expected = st.none() | st.integers(0, 2**63 - 1)
histories = st.builds(
    OrderHistory,
    st.sampled_from(["COMPLETED", "FAILED", "CANCELLED"]),
    st.integers(0, MAX_TIME_US),
)
times_us = st.integers(0, END_OF_TIME_US)
sources = st.text(min_size=1, max_size=MAX_SOURCE)


def text(min_size: int, limit: int) -> st.SearchStrategy[str]:
    """Any text within its limit, now and then exactly at it."""
    return st.one_of(
        st.text(min_size=min_size, max_size=40),
        st.sampled_from(["x", "é", "\N{DESERT ISLAND}"]).map(lambda letter: letter * limit),
    )


submitted_payloads: st.SearchStrategy[SubmittedPayload] = st.one_of(
    st.builds(CustomerRegistered, text(1, MAX_USERNAME), st.integers(0, MAX_AMOUNT_MINOR)),
    st.builds(CustomerErased),
    st.builds(WalletCredited, amounts, expected_position=expected),
    st.builds(
        ProductListed,
        text(1, MAX_NAME),
        text(0, MAX_DESCRIPTION),
        amounts,
        st.integers(0, MAX_STOCK),
        st.just(UNSET) | st.integers(0, MAX_STOCK),
    ),
    st.builds(StockReceived, units, expected_position=expected),
    st.builds(PriceChanged, amounts, expected_position=expected),
    st.builds(OrderPlaced, uuids, uuids, quantities, st.just(UNSET) | histories),
    st.builds(OrderCancelRequested, expected_position=expected),
)
decided_payloads: st.SearchStrategy[DecidedPayload] = st.one_of(
    st.builds(OrderCompleted, uuids, uuids, quantities, amounts, balances),
    st.builds(OrderFailed, reasons),
    st.builds(OrderCancelled, uuids, uuids, quantities, balances),
    st.builds(OrderCancelRefused, reasons),
    st.builds(SubmissionRefused, reasons),
)
payloads = st.one_of(submitted_payloads, decided_payloads)

submitted = st.builds(
    Submitted,
    uuids.filter(lambda each: each.version != 8),
    uuids,
    times_us,
    submitted_payloads,
)

places = st.integers(0, 2**64 - 1)
sixteen_bytes = st.binary(min_size=16, max_size=16)
records = st.builds(
    Record,
    places,
    sixteen_bytes,
    sixteen_bytes,
    st.integers(0, 2**32 - 1),
    st.text(max_size=30),
    st.integers(0, 2**16 - 1),
    places,
    places,
    places,
    st.binary(max_size=40),
    st.binary(max_size=40),
)

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "0190b5a2-3c4d-7e6f-8a9b-0c1d2e3f4a5b",
    "source": "tests",
    "type": "wallet.credited",
    "subject": str(UUID(int=0xA1)),
    "time": "2025-01-01T00:00:00Z",
    "data": {"amount_minor": 5},
}
"""A CloudEvent that is taken; the poison tests spoil one thing of it at a time."""
