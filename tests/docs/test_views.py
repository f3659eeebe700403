"""The page of the views says what the analyst's account finds in the database, and no more."""

import re
from collections.abc import AsyncIterator

import pytest

from projections.tables import CHECKPOINTS
from projections.views.registry import PROJECTIONS
from tests.harness import make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers

from .test_reference import rows

PAGE = "docs/reference/views.md"
VIEWS = [*(projection.name for projection in PROJECTIONS), CHECKPOINTS.name]


@pytest.fixture(scope="module")
async def ledger(servers: Servers) -> AsyncIterator[Ledger]:
    """A migrated ledger."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger


@pytest.mark.parametrize("view", VIEWS)
async def test_every_column_is_documented_as_the_database_has_it(ledger: Ledger, view: str) -> None:
    columns = await ledger.rows(
        "SELECT column_name, column_type, is_nullable, column_comment"
        " FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND table_name = %s ORDER BY ordinal_position",
        "analyst",
        view,
    )
    documented = rows(PAGE, view)
    assert list(documented) == ["column", *(name for name, *_ in columns)]
    for name, kind, nullable, comment in columns:
        said, words = documented[name]
        assert said == as_documented(kind) + (" NULL" if nullable == "YES" else "")
        assert words == comment or not comment


def as_documented(kind: str) -> str:
    """A type without the display width, which MariaDB tells and MySQL does not."""
    return re.sub(r"INT\(\d+\)", "INT", kind.upper())


async def test_every_index_is_documented_as_the_database_has_it(ledger: Ledger) -> None:
    found = await ledger.rows(
        "SELECT index_name, table_name, column_name FROM information_schema.statistics"
        " WHERE table_schema = DATABASE() AND index_name <> 'PRIMARY'"
        " ORDER BY index_name, seq_in_index",
        "analyst",
    )
    columns: dict[str, list[str]] = {}
    for index, table, column in found:
        columns.setdefault(index, [f"`{table}`"]).append(f"`{column}`")
    documented = rows(PAGE, "Indexes")
    del documented["index"]
    assert {name: said[:2] for name, said in documented.items()} == {
        name: [table, ", ".join(names)] for name, (table, *names) in columns.items()
    }


async def test_the_analyst_sees_the_documented_views_and_nothing_else(ledger: Ledger) -> None:
    assert {name for (name,) in await ledger.rows("SHOW TABLES", "analyst")} == set(VIEWS)
