"""The questions of the how-to for analysts: their answers, and the indexes that answer them.

The queries run on a real server, through the analyst's account. With UPDATE_DOCS=1 in the
environment, an answer that differs is written into the page instead.
"""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from tests.harness import DEADLINE_S, make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers

from .example import fill_month
from .test_reference import ROOT, rows

PAGE = ROOT / "docs/how-to/analyse.md"
ANSWERED = re.compile(r"```sql\n(.*?);\n```\n\n```\n(.*?)```", re.DOTALL)
QUESTIONS = {
    section.partition("\n")[0]: ANSWERED.findall(section)[0][0]
    for section in PAGE.read_text().split("\n### ")[1:]
}
FULL_SCANS = ("ALL", "index")


@pytest.fixture(scope="module")
async def month(servers: Servers) -> AsyncIterator[Ledger]:
    """A month of a made-up shop: enough for the optimizer to choose, and the same each time."""
    settings = await make_ledger(servers)
    await fill_month(settings)
    async with running_ledger(settings) as ledger:
        await ledger.execute("ANALYZE TABLE orders, journal, wallets, stock")
        yield ledger


@pytest.mark.parametrize(("query", "answer"), ANSWERED.findall(PAGE.read_text()))
async def test_the_answer_is_what_the_query_gives(month: Ledger, query: str, answer: str) -> None:
    found = await ask(month, query)
    assert len(found) > 1, "there is no answer: it shows nothing"
    if (shown := drawn(found)) != answer:
        assert "UPDATE_DOCS" in os.environ, shown
        before, after = (f"{query};\n```\n\n```\n{text}```" for text in (answer, shown))
        PAGE.write_text(PAGE.read_text().replace(before, after))


@pytest.mark.parametrize("query", [query for query, _ in ANSWERED.findall(PAGE.read_text())])
async def test_a_client_of_the_analyst_shows_the_same(month: Ledger, query: str) -> None:
    client = shutil.which("mariadb") or shutil.which("mysql")
    assert client, "the servers come with a client"
    settings = month.settings
    password = (settings.home / "secrets/db_analyst").read_text()
    process = await asyncio.create_subprocess_exec(
        client,
        f"--host={settings.db_host}",
        f"--port={settings.db_port}",
        "--user=ledger_analyst",
        "--table",
        f"--execute={query}",
        settings.db_name,
        env=os.environ | {"MYSQL_PWD": password},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert out.decode() == drawn(await ask(month, query))


def test_every_question_of_the_table_is_asked_and_no_other() -> None:
    assert list(QUESTIONS) == list(rows("docs/how-to/analyse.md", "Questions"))[1:]


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_is_answered_by_the_indexes_that_the_page_names(
    month: Ledger, question: str
) -> None:
    promised = rows("docs/how-to/analyse.md", "Questions")[question][0]
    names, *plan = await ask(month, f"EXPLAIN FORMAT=TRADITIONAL {QUESTIONS[question]}")
    used = []
    for step in (dict(zip(names, row, strict=True)) for row in plan):
        if str(step["table"]).startswith("<"):
            continue  # what the inner query gave
        used.append(f"`{step['key']}`")
        assert step["type"] not in FULL_SCANS, f"{step['table']} is read from end to end"
    assert sorted(used) == sorted(promised.split(", "))


async def ask(ledger: Ledger, query: str) -> list[Sequence[Any]]:
    """The names of the columns, and the rows."""
    async with ledger.connection("analyst") as connection:
        found = await connection.exec_driver_sql(query.replace("%", "%%"))
        return [tuple(found.keys()), *(tuple(row) for row in found)]


def drawn(table: Sequence[Sequence[Any]]) -> str:
    """Rows as the clients of MySQL and MariaDB draw them."""
    cells = [["NULL" if cell is None else _shown(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    line = "+".join(["", *("-" * (width + 2) for width in widths), ""])
    heading, *body = [
        "|".join(["", *map(_aligned, row, shown, widths), ""])
        for row, shown in zip(table, cells, strict=True)
    ]
    return "\n".join([line, heading, line, *body, line, ""])


def _shown(cell: object) -> str:
    # The clients know nothing of the zone, which is UTC everywhere.
    return str(cell.replace(tzinfo=None) if isinstance(cell, datetime) else cell)


def _aligned(value: object, shown: str, width: int) -> str:
    is_number = isinstance(value, int | Decimal)
    return f" {shown.rjust(width) if is_number else shown.ljust(width)} "
