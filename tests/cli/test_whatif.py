"""`ledger whatif` compares what was decided with what other rules would have decided."""

from decimal import Decimal
from pathlib import Path

import pytest

from cli.commands.whatif import BadRules, load_rules
from cli.settings import Settings
from ledger.core.pricing import Rules, Tier
from tests.harness import free_port
from tests.proxy import open_proxy
from tests.submissions import opening, orders

from .conftest import Run, typed
from .damage import filled

TOML = """
last_factor = 1.5
tiers = [{ above_percent = 50, factor = 1.0 }, { above_percent = 25, factor = 1.2 }]
"""
JSON = '{"tiers": [{"above_percent": 50, "factor": 1}], "last_factor": 2.50}'


def written(path: Path, text: str) -> Path:
    """A file with rules."""
    path.write_text(text)
    return path


def test_rules_are_read_exactly_from_toml_and_json(tmp_path: Path) -> None:
    found = load_rules(written(tmp_path / "r.toml", TOML))
    tiers = (Tier(50, Decimal("1.0")), Tier(25, Decimal("1.2")))
    assert found == Rules(0, tiers, Decimal("1.5"))
    found = load_rules(written(tmp_path / "r.json", JSON))
    assert found == Rules(0, (Tier(50, Decimal(1)),), Decimal("2.5"))


BAD = {
    "last_factor = 0": ("last_factor", "greater than 0"),
    "last_factor = -1.5": ("last_factor", "greater than 0"),
    "last_factor = nan": ("last_factor", "finite"),
    "last_factor = 1001": ("last_factor", "less than or equal to 1000"),
    "last_factor = 1.00000001": ("last_factor", "6 decimal places"),
    "last_factor = 'a'": ("last_factor", "valid decimal"),
    "tiers = 5": ("tiers", "valid list"),
    "tiers = [{ above_percent = 50 }]": ("tiers[0].factor", "required"),
    "tiers = [{ above_percent = 101, factor = 1 }]": ("tiers[0].above_percent", "100"),
    "tiers = [{ above_percent = 1.5, factor = 1 }]": ("tiers[0].above_percent", "integer"),
    "tiers = [{ above_percent = 5, factor = 1, x = 1 }]": ("tiers[0].x", "not permitted"),
    "tiers = [{ above_percent = 5, factor = 1 }, { above_percent = 50, factor = 2 }]": (
        "tiers",
        "highest above_percent first",
    ),
    "factor = 3": ("factor", "not permitted"),
    "last_factor = ": ("is not TOML", ""),
}


@pytest.mark.parametrize("text", BAD)
def test_rules_that_can_not_be_used_are_named_by_field_and_limit(text: str, tmp_path: Path) -> None:
    rest = {"tiers": "tiers = []", "last_factor": "last_factor = 1"}
    whole = "\n".join([text, *(line for name, line in rest.items() if not text.startswith(name))])
    path = written(tmp_path / "rules.toml", whole)
    with pytest.raises(BadRules) as raised:
        load_rules(path)
    for part in (str(path), *BAD[text]):
        assert part in str(raised.value)


def test_a_file_that_can_not_be_used_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", written(tmp_path / "rules.yaml", TOML), tmp_path):
        done = typed("whatif", "--rules", str(path))
        assert (done.status, str(path) in done.said_one_sentence()) == (2, True)
    path = written(tmp_path / "rules.json", "{")
    done = typed("whatif", "--rules", str(path))
    assert (done.status, "is not JSON" in done.said_one_sentence()) == (2, True)
    assert typed("whatif").status == 2


async def test_an_empty_ledger_has_nothing_to_compare(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / "rules.toml", TOML)
    done = await run("whatif", "--rules", str(path), "--json")
    assert (done.status, done.json["position"], done.json["products"]) == (0, 0, [])
    assert done.json["decided"] == done.json["whatif"]


async def test_it_compares_and_writes_nothing(run: Run, settings: Settings, tmp_path: Path) -> None:
    dearer = written(tmp_path / "rules.toml", "tiers = []\nlast_factor = 3")
    same = written(tmp_path / "same.toml", TOML)
    async with filled(settings, opening(10_000, 100), orders(12)) as ledger:
        before = await ledger.records()
        views = await ledger.rows("SELECT * FROM wallets")
        shown = (await run("whatif", "--rules", str(dearer), "--json")).json
        assert shown["position"] == len(before)
        assert shown["decided"]["revenue_minor"] == 10_000
        assert shown["whatif"] == {
            "completed": 3,
            "cancelled": 0,
            "failed": {"INSUFFICIENT_BALANCE": 9},
            "units": 3,
            "revenue_minor": 9_000,
        }
        done = await run("whatif", "--rules", str(dearer))
        assert (done.status, done.err) == (0, "")
        for part in ("100.00", "90.00", "-10.00", "INSUFFICIENT_BALANCE", "pen"):
            assert part in done.out
        shown = (await run("whatif", "--rules", str(same), "--json")).json
        assert shown["decided"] == shown["whatif"]
        assert await ledger.records() == before
        assert await ledger.rows("SELECT * FROM wallets") == views


async def test_a_database_that_goes_away_half_way_is_one_sentence(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    path = written(tmp_path / "rules.toml", TOML)
    async with filled(settings), open_proxy(settings.db_port) as proxy:
        proxy.lose(b"MAX(position) FROM events", delivered=True)
        done = await run("whatif", "--rules", str(path), LEDGER_DB_PORT=str(proxy.port))
        assert (done.status, done.out) == (1, "")
        done.said_one_sentence()
    done = await run("whatif", "--rules", str(path), LEDGER_DB_PORT=str(free_port()))
    assert (done.status, done.out) == (1, "")
    done.said_one_sentence()


async def test_a_ledger_that_can_not_be_read_is_named_where(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    path = written(tmp_path / "rules.toml", TOML)
    async with filled(settings) as ledger:
        await ledger.execute("UPDATE events SET data = '{' WHERE position = 3")
        done = await run("whatif", "--rules", str(path))
    assert done.status == 1
    assert "position 3: " in done.said_one_sentence()
    assert "ledger verify" in done.err
