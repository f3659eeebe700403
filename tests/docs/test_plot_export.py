"""The example analysis of an export does what its page shows.

With UPDATE_DOCS=1 in the environment, picture and output are written into the docs instead.
"""

import asyncio
import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import pytest

from cli.commands.export import export_tables
from cli.export.tables import tables_by_name
from tests.harness import DEADLINE_S, make_ledger
from tests.private_servers import Servers

from .example import fill_month
from .test_reference import ROOT

HOW_TO = ROOT / "docs/how-to"
PAGE = HOW_TO / "analyse-an-export.md"
PICTURE = HOW_TO / "plot_export.svg"
COMMAND = "$ python plot_export.py exported\n"


@pytest.fixture(scope="module")
async def exported(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which `exported` is an export of a month."""
    directory = tmp_path_factory.mktemp("analysis")
    settings = await make_ledger(servers)
    await fill_month(settings)
    tables = tuple(tables_by_name().values())
    await export_tables(settings, tables, directory / "exported")
    return directory


async def test_the_script_draws_what_the_page_shows(exported: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, HOW_TO / "plot_export.py", "exported"),
        cwd=exported,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 0
    if "UPDATE_DOCS" in os.environ:
        update(out.decode(), (exported / "plot.svg").read_text())
    assert COMMAND + out.decode() in PAGE.read_text()
    assert words(exported / "plot.svg") == words(PICTURE)


def update(printed: str, picture: str) -> None:
    """Write what the script made into the docs."""
    shown = re.compile(rf"(?<={re.escape(COMMAND)}).*?(?=```)", re.DOTALL)
    PAGE.write_text(shown.sub(lambda _: printed, PAGE.read_text()))
    PICTURE.write_text(picture)


def words(picture: Path) -> list[str]:
    """All text in a picture: titles, and the numbers and days on its axes."""
    found = [text for text in ElementTree.parse(picture).getroot().itertext() if text.strip()]
    assert found
    return found


async def test_the_python_of_the_page_runs_as_it_stands(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported)
    duck, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(duck, {})
    shown = capsys.readouterr().out
    assert "COMPLETED" in shown
    assert "order.completed" in shown


async def test_revenue_by_events_is_that_of_the_journal(exported: Path) -> None:
    (revenue,) = duckdb.sql(
        "SELECT sum(credit) - sum(debit) FROM"
        f" '{exported}/exported/journal.parquet' WHERE account IN ('revenue', 'refunds')"
    ).fetchall()[0]
    assert f"revenue: {revenue / 100:.2f} on" in PAGE.read_text()
