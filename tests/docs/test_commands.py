"""The reference pages of the commands show what the commands print.

Each page is typed, from top to bottom, on an example ledger of its own in an empty directory. `…`
stands for what differs from run to run. PREPARE and BESIDE have what a page needs besides.
With UPDATE_DOCS=1 in the environment, what is printed otherwise is written into the page instead.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from cli.commands.migrate import migrate
from tests.harness import DEADLINE_S, Stack, environment, make_ledger
from tests.private_servers import Servers
from tests.warm import BIN

from .example import fill_example
from .parked import with_parked

PAGES = sorted((Path(__file__).parents[2] / "docs/reference/commands").glob("*.md"))


async def with_writer_and_projector(stack: Stack) -> None:
    """For commands that go through the inbox."""
    stack.start("writer")
    stack.start("projector")


async def with_another_ledger(stack: Stack) -> None:
    """For commands that need an empty ledger beside the example: `ledger_again`."""
    again = stack.settings.model_copy(update={"db_name": "ledger_again"})
    engine = create_async_engine(stack.settings.db_url("migrate"))
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP DATABASE IF EXISTS ledger_again")
        await connection.exec_driver_sql("CREATE DATABASE ledger_again")
    await engine.dispose()
    await migrate(again)


async def with_a_wrong_view(stack: Stack) -> None:
    """For the command that finds a row which is not what the ledger says."""
    engine = create_async_engine(stack.settings.db_url("migrate"))
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE stock SET stock = stock + 2 LIMIT 1")
    await engine.dispose()


PREPARE: dict[str, Callable[[Stack], Awaitable[None]]] = {
    "erase-customer": with_writer_and_projector,
    "import": with_another_ledger,
    "parked": with_parked,
    "rebuild": with_a_wrong_view,
}


async def with_another_home(servers: Servers, directory: Path) -> None:
    """For commands that need another ledger altogether: that of the directory `other`."""
    given = environment(await make_ledger(servers))
    home = directory / "other"
    home.mkdir()
    (home / "stack.env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))


BESIDE: dict[str, Callable[[Servers, Path], Awaitable[None]]] = {"replay": with_another_home}


def steps(page: Path) -> list[tuple[str, str]]:
    """Each command of a page with the output that is printed below it."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    found = [step for block in blocks for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, output) for command, _, output in (step.partition("\n") for step in found)]


def pattern(printed: str) -> str:
    """What matches the printed output: `…` is anything on its line."""
    return "[^\n]*".join(map(re.escape, printed.rstrip("\n").split("…")))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
async def test_a_page_shows_what_its_commands_print(
    servers: Servers, page: Path, tmp_path: Path
) -> None:
    stack = Stack(await make_ledger(servers))
    await fill_example(stack.settings)
    try:
        if page.stem in PREPARE:
            await PREPARE[page.stem](stack)
        if page.stem in BESIDE:
            await BESIDE[page.stem](servers, tmp_path)
        assert steps(page), "a page without an example"
        for command, printed in steps(page):
            shown = await run(stack, command, tmp_path)
            if not re.fullmatch(pattern(printed), shown):
                update(page, f"$ {command}\n", printed, shown)
    finally:
        await stack.stop()


def update(page: Path, typed: str, printed: str, shown: str) -> None:
    """Fails, or writes what is shown in the place of what was printed."""
    assert "UPDATE_DOCS" in os.environ, f"{typed}{shown}"
    text = page.read_text()
    assert typed + printed in text
    page.write_text(text.replace(typed + printed, f"{typed}{shown}\n" if shown else typed, 1))


async def run(stack: Stack, command: str, directory: Path) -> str:
    """What a command prints, on either stream, as a terminal would show it."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment(stack.settings) | {"PATH": path},
    )
    output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    return "\n".join(line.rstrip() for line in output.decode().splitlines())
