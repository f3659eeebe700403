"""POST /customers/{customer_id}/deposits."""

from decimal import Decimal
from uuid import UUID, uuid4

import httpx
import pytest

from ledger.core.events import MAX_AMOUNT_MINOR, MAX_BALANCE_MINOR
from tests.harness import Stack
from tests.ledger.pipeline import running_ledger
from tests.submissions import credit, event_of

from .client import WAIT, balance, exact, limit, nothing_appended, post, problem, register

LARGEST = "10000000000.00"


@pytest.mark.parametrize(
    ("written", "then"),
    [
        ("0.01", "5000.01"),
        ("0.1", "5000.10"),
        ("0.10", "5000.10"),
        ("1", "5001.00"),
        ("1.000", "5001.00"),
        ("1e2", "5100.00"),
        ("2.5E-1", "5000.25"),
        ("1234567.89", "1239567.89"),
        (LARGEST, "10000005000.00"),
    ],
)
async def test_a_deposit_is_credited_exactly(
    http: httpx.AsyncClient, written: str, then: str
) -> None:
    path = f"/customers/{await register(http)}/deposits"
    response = await post(http, path, f'{{"amount": {written}}}', WAIT)
    assert response.status_code == 200
    assert f'"wallet_balance":{then},' in response.text
    assert response.headers["location"] == path.removesuffix("/deposits").join(("/api/v1", ""))


async def test_many_small_amounts_add_up(http: httpx.AsyncClient) -> None:
    """0.1 + 0.2 is not 0.3 in binary."""
    customer_id = await register(http)
    for amount in ("0.1", "0.2", "0.1", "0.2"):
        await post(http, f"/customers/{customer_id}/deposits", f'{{"amount": {amount}}}', WAIT)
    assert await balance(http, customer_id) == Decimal("5000.60")


@pytest.mark.parametrize(
    "written",
    [
        "0",
        "0.00",
        "-1",
        "-0.01",
        "0.001",
        "0.005",
        "1.999",
        "1.00000000000000000000000000000000000000001",
        "10000000000.01",
        "1e400",
        "1e-400",
        "-1e400",
        "9" * 400,
        '"1.00"',
        "true",
        "null",
        "[]",
        "{}",
    ],
)
async def test_an_invalid_amount_is_named(http: httpx.AsyncClient, written: str) -> None:
    customer_id = await register(http)
    path = f"/customers/{customer_id}/deposits"
    async with nothing_appended(http):
        response = await post(http, path, f'{{"amount": {written}}}')
        problem(response, 422, "invalid-fields", "amount")
    assert await balance(http, customer_id) == Decimal("5000.00")


async def test_the_limit_of_an_amount_is_named(http: httpx.AsyncClient) -> None:
    path = f"/customers/{uuid4()}/deposits"

    async def told(written: str) -> object:
        response = await post(http, path, f'{{"amount": {written}}}')
        return limit(problem(response, 422, "invalid-fields"), "amount")

    assert await told("0") == "0.01"
    assert await told("1e11") == LARGEST
    assert await told("0.001") == 2


async def test_a_deposit_to_an_unknown_customer_is_refused(http: httpx.AsyncClient) -> None:
    response = await post(http, f"/customers/{uuid4()}/deposits", '{"amount": 1}', WAIT)
    assert problem(response, 404, "unknown-customer")["reason"] == "UNKNOWN_CUSTOMER"


async def test_a_deposit_over_the_balance_limit_is_refused(
    http: httpx.AsyncClient, stack: Stack
) -> None:
    customer_id = await register(http)
    path, full = f"/customers/{customer_id}/deposits", Decimal(MAX_BALANCE_MINOR) / 100
    times = MAX_BALANCE_MINOR // MAX_AMOUNT_MINOR - 1
    # Straight into the inbox: as many requests would take half a minute.
    credits = [event_of(credit(MAX_AMOUNT_MINOR, UUID(customer_id))) for _ in range(times)]
    async with running_ledger(stack.settings) as ledger:
        await ledger.put_events(credits)
    rest = full - Decimal(MAX_AMOUNT_MINOR) / 100 * times - Decimal("5000.00")
    over = await post(http, path, f'{{"amount": {rest + Decimal("0.01")}}}', WAIT)
    assert problem(over, 409, "balance-limit")["reason"] == "BALANCE_LIMIT"
    filled = await post(http, path, f'{{"amount": {rest}}}', WAIT)
    assert exact(filled)["wallet_balance"] == full


async def test_a_retry_with_the_same_key_is_credited_once(http: httpx.AsyncClient) -> None:
    customer_id, headers = await register(http), {"Idempotency-Key": str(uuid4()), **WAIT}
    path = f"/customers/{customer_id}/deposits"
    first = await post(http, path, '{"amount": 1.50}', headers)
    async with nothing_appended(http):
        again = await post(http, path, '{"amount": 1.5}', headers)
        other = await post(http, path, '{"amount": 2.50}', headers)
    assert exact(first) == exact(again)
    assert again.headers["idempotency-replayed"] == "true"
    problem(other, 422, "key-reused")
    assert await balance(http, customer_id) == Decimal("5001.50")


async def test_a_refusal_is_replayed_too(http: httpx.AsyncClient) -> None:
    path, headers = f"/customers/{uuid4()}/deposits", {"Idempotency-Key": str(uuid4()), **WAIT}
    problem(await post(http, path, '{"amount": 1}', headers), 404, "unknown-customer")
    async with nothing_appended(http):
        problem(await post(http, path, '{"amount": 1}', headers), 404, "unknown-customer")
