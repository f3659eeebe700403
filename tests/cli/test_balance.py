"""`ledger balance`: the books as the command shows them, on sound ledgers and on damaged ones."""

from collections import Counter
from typing import Any

import pytest

from cli.settings import Settings
from ledger.eventlog.codec import decode_recorded
from ledger.runtime.timestamps import from_us
from projections import trial_balance
from projections.trial_balance import TrialBalanceReader
from projections.views.journal import lines
from tests.core.story import effective
from tests.harness import free_port
from tests.ledger.pipeline import Ledger, running_ledger
from tests.projections.view_rows import advance_to_the_end
from tests.submissions import history, opening, orders

from .conftest import Run, typed


async def shown(ledger: Ledger) -> None:
    """Bring the views to the end of the ledger."""
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)


def totals(found: Any) -> dict[str, tuple[int, int]]:
    return {total["unit"]: (total["debit"], total["credit"]) for total in found["totals"]}


async def test_an_empty_ledger_has_an_empty_trial_balance(run: Run) -> None:
    done = await run("balance", "--json")
    assert (done.status, done.err) == (0, "")
    assert (done.json["position"], done.json["balanced"]) == (0, True)
    assert [account["account"] for account in done.json["accounts"]] == [
        *("wallet", "deposits", "revenue", "refunds"),
        *("stock", "received", "sold"),
    ]
    assert totals(done.json) == {"minor": (0, 0), "units": (0, 0)}
    assert (await run("balance")).status == 0


async def test_sales_are_in_the_trial_balance(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(10_000, 50), orders(3))
        await shown(ledger)
    done = await run("balance", "--json")
    balances = {entry["account"]: entry["balance"] for entry in done.json["accounts"]}
    assert balances == {
        "wallet": -7_000,
        "deposits": 10_000,
        "revenue": -3_000,
        "refunds": 0,
        "stock": 47,
        "received": -50,
        "sold": 3,
    }
    assert totals(done.json) == {"minor": (13_000, 13_000), "units": (53, 53)}
    table = [line.split() for line in (await run("balance")).out.splitlines()]
    assert ["wallet", "money", "30.00", "100.00", "-70.00"] in table
    assert ["total", "money", "130.00", "130.00", "0.00"] in table
    assert ["stock", "units", "50", "3", "47"] in table
    assert table[-1] == ["at", "position", "8"]


@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_the_balance_as_of_a_position_sums_the_lines_up_to_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """However the positions are added up, and whatever is remembered of the time before."""
    monkeypatch.setattr(trial_balance, "STEP", step)
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), history(23, 60))
        await shown(ledger)
        events = [decode_recorded(record) for record in await ledger.records()]
        books = TrialBalanceReader(ledger.engine("api"), timeout_s=10)
        held: Counter[tuple[str, str]] = Counter()
        changes = {event.position: lines(event) for event in effective(events)}
        for position in range(1, events[-1].position + 1):
            for line in changes.get(position, ()):
                held[line.account, line.unit] += line.debit - line.credit
            found = await books.balance(position)
            assert found.position == position
            assert found.balanced
            assert {key: sums.balance for key, sums in found.accounts.items()} == {
                key: held[key] for key in found.accounts
            }
        assert (await books.balance(position + 1_000)).position == position


async def test_the_balance_as_of_a_position_never_changes(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), orders(2))
        await shown(ledger)
        before = await run("balance", "--json")
        await ledger.write(orders(5))
        await shown(ledger)
    assert (await run("balance", "--position", "6", "--json")).out == before.out
    assert (await run("balance", "--json")).json["position"] == 16


async def test_a_time_means_the_last_position_recorded_by_then(
    run: Run, settings: Settings
) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), orders(2))
        records = await ledger.write(orders(3))
        await shown(ledger)
    time = from_us(records[5].recorded_at_us).isoformat()
    done = await run("balance", "--time", time, "--json")
    assert done.json["position"] == 6
    assert (await run("balance", "--position", "6", "--json")).out == done.out
    before = await run("balance", "--time", "1999-12-31T00:00:00Z", "--json")
    assert (before.json["position"], totals(before.json)["minor"]) == (0, (0, 0))


async def test_a_position_beyond_the_head_is_refused(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), orders(2))
        await shown(ledger)
        await ledger.write(orders(1))
    for ahead in (("--position", "9"), ("--time", "2999-01-01T00:00:00Z")):
        done = await run("balance", *ahead)
        assert done.status == 1
        assert "the ledger ends at position 8" in done.said_one_sentence()
    done = await run("balance", "--position", "7")
    assert done.status == 1
    assert "the journal is at position 6, 1 behind" in done.said_one_sentence()


def test_a_position_and_a_time_at_once_are_refused() -> None:
    done = typed("balance", "--position", "1", "--time", "2026-01-31T12:00:00Z")
    assert done.status == 2
    assert "either --position N or --time T" in done.said_one_sentence()


def test_an_invalid_position_or_time_is_refused() -> None:
    for option, value in (("--position", "-1"), ("--position", "1.5"), ("--time", "yesterday")):
        done = typed("balance", option, value)
        assert done.status == 2
        assert option in done.err
        assert "Traceback" not in done.err


DAMAGES = [
    "UPDATE journal SET debit = debit + 1 WHERE position = 4 AND line = 1",
    "UPDATE journal SET unit = 'units' WHERE position = 4 AND line = 2",
    "DELETE FROM journal WHERE position = 4 AND line = 3",
    "INSERT INTO journal SELECT position, 9, recorded_at, order_id, 'swag', account_id, unit,"
    " debit, credit FROM journal WHERE position = 4 AND line = 4",
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_any_damaged_line_unbalances_the_journal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(trial_balance, "STEP", 3)
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), orders(3))
        await shown(ledger)
        await ledger.execute(damage)
        books = TrialBalanceReader(ledger.engine("projector"), timeout_s=10)
        assert not (await books.balance(8)).balanced
        assert (await books.balance(3)).balanced


async def test_an_unbalanced_journal_is_status_1(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), orders(3))
        await shown(ledger)
        await ledger.execute(DAMAGES[0])
    done = await run("balance", "--json")
    assert done.status == 1
    assert done.json["balanced"] is False
    assert "the journal does not balance: `ledger verify`" in done.said_one_sentence()
    assert (await run("balance", "--position", "3")).status == 0


async def test_a_journal_without_a_checkpoint_is_one_sentence(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.execute("DELETE FROM checkpoints WHERE name = 'journal'")
    done = await run("balance")
    assert done.status == 1
    assert "ledger migrate" in done.said_one_sentence()


async def test_a_database_that_is_away_is_one_sentence(run: Run) -> None:
    done = await run("balance", LEDGER_DB_PORT=str(free_port()))
    assert done.status == 1
    assert "the database did not answer" in done.err
    assert "Traceback" not in done.err


async def test_it_balances_at_every_moment_beside_a_busy_projector(settings: Settings) -> None:
    async with running_ledger(settings) as ledger, ledger.writing(), ledger.projecting():
        books = TrialBalanceReader(ledger.engine("api"), timeout_s=10)
        positions: list[int] = []
        while len(set(positions)) < 5:
            await ledger.put_events(opening() if not positions else orders(50))
            found = await books.balance(10**6)
            assert found.balanced
            positions.append(found.position)
    assert positions == sorted(positions)
