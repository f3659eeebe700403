"""GET /reports/trial-balance: the books, now and as of any moment."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from api.auth.rate_limit import Client, NoTurn, Turns
from api.http.problems import Problem
from api.reads import slow_reads
from api.reads.slow_reads import TrialBalanceReads
from cli.settings import Settings
from projections import trial_balance
from projections.queries import ViewsUnavailable
from tests.harness import DEADLINE_S
from tests.ledger.pipeline import Ledger, running_ledger
from tests.projections.view_rows import advance_to_the_end
from tests.submissions import opening, orders

from .client import balance, cancel, exact, limit, list_product, order, problem, register, stock

PATH = "/reports/trial-balance"
ANN, BOB = Client("ann", known=True), Client("bob", known=True)


async def accounts(http: httpx.AsyncClient, **when: object) -> dict[str, Decimal]:
    """The balance of each account, in a trial balance that must be sound."""
    response = await http.get(PATH, params=when)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    found = exact(response)
    assert response.headers["ledger-position"] == str(found["position"])
    assert found["balanced"] is True
    for total in found["totals"]:
        members = [entry for entry in found["accounts"] if entry["unit"] == total["unit"]]
        for side in ("debit", "credit", "balance"):
            assert sum(member[side] for member in members) == total[side]
        assert total["balance"] == 0
    assert all(entry["debit"] - entry["credit"] == entry["balance"] for entry in found["accounts"])
    return {entry["account"]: entry["balance"] for entry in found["accounts"]}


def moved(before: dict[str, Decimal], after: dict[str, Decimal]) -> dict[str, Decimal]:
    """By how much accounts changed, without those that did not."""
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


async def test_the_books_follow_a_sale_and_its_cancel(http: httpx.AsyncClient) -> None:
    start = await accounts(http)
    customer_id = await register(http)
    product_id = await list_product(http, "100.00", 10)
    opened = await accounts(http)
    paid, units = Decimal(5000), Decimal(10)
    assert moved(start, opened) == {
        "wallet": -paid,
        "deposits": paid,
        "stock": units,
        "received": -units,
    }
    placed = await order(http, customer_id, product_id, 2)
    sold = await accounts(http, min_position=placed["position"])
    sale = {"wallet": 200, "revenue": -200, "stock": -2, "sold": 2}
    assert moved(opened, sold) == sale
    gone = await cancel(http, placed["order_id"])
    undone = await accounts(http, min_position=gone["position"])
    assert moved(sold, undone) == {"wallet": -200, "refunds": 200, "stock": 2, "sold": -2}
    assert await balance(http, customer_id) == 5000
    assert await stock(http, product_id) == 10
    for position, then in ((placed["position"], sold), (gone["position"], undone)):
        assert await accounts(http, as_of_position=position) == then


async def test_money_has_two_decimals_and_units_are_whole(http: httpx.AsyncClient) -> None:
    await register(http)
    await list_product(http)
    text = (await http.get(PATH)).text
    wallet = text.split('{"account":"wallet","unit":"money","debit":', 1)[1]
    assert wallet.split(",")[0].partition(".")[2].isdigit()
    received = text.split('{"account":"received","unit":"units","debit":', 1)[1]
    assert received.split(",")[0] == "0"


async def test_as_of_a_time_it_is_that_of_the_position_recorded_then(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = await order(http, customer_id, product_id)
    then = await accounts(http, as_of_position=placed["position"])
    await register(http)
    page = await http.get("/events", params={"after": placed["position"] - 1, "limit": 1})
    time = page.json()[0]["recordedtime"]
    assert await accounts(http, as_of_time=time) == then
    long_ago = await accounts(http, as_of_time="1999-12-31T23:59:59Z")
    assert set(long_ago.values()) == {0}
    assert set((await accounts(http, as_of_position=0)).values()) == {0}


async def test_what_has_not_come_is_refused(http: httpx.AsyncClient) -> None:
    head = int((await http.get(PATH)).headers["ledger-position"])
    response = await http.get(PATH, params={"as_of_position": head + 10**6})
    found = problem(response, 422, "invalid-fields", "as_of_position")
    assert isinstance(limit(found, "as_of_position"), int)
    response = await http.get(PATH, params={"as_of_time": "2999-01-01T00:00:00Z"})
    problem(response, 422, "invalid-fields", "as_of_time")
    ahead = await http.get(PATH, params={"min_position": head + 10**6})
    problem(ahead, 409, "beyond-head", "min_position")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"as_of_position": "x"}, "as_of_position"),
        ({"as_of_position": "-1"}, "as_of_position"),
        ({"as_of_time": "yesterday"}, "as_of_time"),
        ({"min_position": "1.5"}, "min_position"),
        ({"as_of_position": "1", "min_position": "1"}, "as_of_position"),
        ({"position": "1"}, "position"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_named(
    http: httpx.AsyncClient, params: dict[str, str], field: str
) -> None:
    problem(await http.get(PATH, params=params), 422, "invalid-fields", field)


@pytest.fixture
async def written(settings: Settings) -> AsyncIterator[Ledger]:
    """A ledger of 42 positions, in the views."""
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), orders(20))
        async with ledger.connection("projector") as connection:
            await advance_to_the_end(connection)
        yield ledger


def trial_balances(ledger: Ledger, turns: Turns | None = None) -> TrialBalanceReads:
    return TrialBalanceReads(ledger.engine("api"), turns or Turns(1, 60))


async def test_it_waits_for_its_turn_among_the_reads_that_take_long(written: Ledger) -> None:
    turns = Turns(1, 0.01)
    async with turns.turn(BOB):
        with pytest.raises(NoTurn):
            await trial_balances(written, turns).read(10**6, ANN)
    await trial_balances(written, turns).read(10**6, ANN)


async def test_those_who_wait_for_another_ones_hold_no_turn_of_other_reads(
    written: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, query = Turns(2, 60), trial_balance.TrialBalanceReader._rows
    shared, asked, answers = trial_balances(written, turns), asyncio.Event(), asyncio.Event()

    async def slow(self: Any, statement: str, *parameters: object) -> Any:
        asked.set()
        await answers.wait()
        return await query(self, statement, *parameters)

    monkeypatch.setattr(trial_balance.TrialBalanceReader, "_rows", slow)
    reading = [asyncio.create_task(shared.read(10**6, ANN)) for _ in range(5)]
    await asked.wait()
    async with asyncio.timeout(DEADLINE_S), turns.turn(BOB):
        answers.set()
    assert {position for _, position in await asyncio.gather(*reading)} == {42}


async def test_a_journal_that_was_damaged_does_not_balance(written: Ledger) -> None:
    await written.execute("UPDATE journal SET credit = credit + 1 WHERE position = 4 AND line = 2")
    found, position = await trial_balances(written).read(10**6, ANN)
    assert (found.balanced, position) == (False, 42)


async def test_damage_and_repair_after_the_first_look_are_seen(
    written: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_balance, "STEP", 10)
    shared, change = trial_balances(written), "UPDATE journal SET debit = debit {} WHERE line = 1"
    for statement, balanced in ((None, True), ("+ 1", False), ("- 1", True)):
        if statement:
            await written.execute(change.format(statement) + " AND position < 5")
        found, _ = await shared.read(10**6, ANN)
        assert found.balanced == balanced


class Sums:
    """The positions after which lines were summed, STEP by step; the sum `slow` takes too long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: int = 0) -> None:
        self.asked: list[object] = []
        query = trial_balance.TrialBalanceReader._rows

        async def rows(reader: Any, statement: str, *parameters: object) -> Any:
            if "SUM(" in statement:
                self.asked.append(parameters[0])
                if len(self.asked) == slow:
                    await asyncio.sleep(60)
            return await query(reader, statement, *parameters)

        monkeypatch.setattr(trial_balance, "STEP", 10)
        monkeypatch.setattr(trial_balance.TrialBalanceReader, "_rows", rows)


async def test_what_takes_too_long_is_gone_on_with_by_the_next(
    written: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_reads, "TRIAL_BALANCE_TIMEOUT_S", 0.5)
    shared, sums = trial_balances(written), Sums(monkeypatch, slow=3)
    with pytest.raises(Problem) as refused:
        await shared.read(10**6, ANN)
    assert refused.value.kind == "views-unavailable"
    found, position = await shared.read(10**6, ANN)
    assert (found.balanced, position) == (True, 42)
    assert sums.asked == [0, 10, 20, 20, 30, 40]


async def test_many_at_once_read_each_line_once(
    written: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, sums = trial_balances(written), Sums(monkeypatch)
    found = await asyncio.gather(*(shared.read(40, ANN) for _ in range(10)))
    assert len({balance.total("minor").debit for balance, _ in found}) == 1
    assert sums.asked == [0, 10, 20, 30]


async def test_without_a_journal_it_is_unavailable(written: Ledger) -> None:
    await written.execute("DELETE FROM checkpoints WHERE name = 'journal'")
    with pytest.raises(ViewsUnavailable, match="ledger migrate"):
        await trial_balances(written).read(10**6, ANN)
