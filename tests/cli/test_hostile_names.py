"""What clients wrote drives no terminal, forges no line and runs in no spreadsheet."""

import asyncio
import csv
import json
import logging
import os
import pty
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from cli.main import COMMANDS
from cli.settings import Settings
from ledger.core.events import CustomerRegistered, OrderPlaced, ProductListed
from ledger.messaging.topology import PARKING
from ledger.runtime import logs
from ledger.runtime.printable import printable, printable_json
from tests.harness import DEADLINE_S, environment, eventually, free_port
from tests.ledger.pipeline import Ledger, running_ledger
from tests.projections.view_rows import advance_to_the_end
from tests.submissions import event_of
from tests.warm import COMMAND

from .conftest import Run

# A title, a cleared screen, C1 controls, text turned round, forged lines, rich's markup and emoji.
HOSTILE = (
    "[/b][red]:bomb:\x1b]0;title\x07\x1b[2J\x9b31m\x7f\x00\u202egnp.exe\u2066\ufeff\u2028"
    "\r\n✗ forged\U000e0041"
)
FORMULAS = ("=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "－1", " =1", "\ufeff=1")
NAMES = (HOSTILE, *FORMULAS)


def is_harmless(text: str) -> bool:
    """True for lines of characters that only show themselves."""
    return all(char == "\n" or unicodedata.category(char)[0] not in "C" for char in text)


@pytest.fixture
async def hostile_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """A ledger with such names in every place where a client, an operator or a bug may write."""
    async with running_ledger(settings) as ledger:
        customers = [
            event_of((UUID(int=n + 1), CustomerRegistered(name, 10**6)))
            for n, name in enumerate(NAMES)
        ]
        products = [
            event_of((UUID(int=n + 99), ProductListed(name, name, 100, 5)))
            for n, name in enumerate(NAMES)
        ]
        first = event_of((uuid4(), OrderPlaced(UUID(int=1), UUID(int=99), 1)))
        await ledger.write(customers, products, [first])
        await ledger.put(HOSTILE.encode(), json.dumps({"type": HOSTILE}).encode())
        async with ledger.writing():

            async def both_are_parked() -> bool:
                return await ledger.depth(PARKING) == 2

            await eventually(both_are_parked, "the two messages are parked")
        async with ledger.connection("projector") as connection:
            await advance_to_the_end(connection)
        await ledger.execute(
            "INSERT INTO api_keys (prefix, secret_hash, client, name, scopes, created_at_us,"
            " expires_at_us) VALUES ('0123456789ab', %s, 'x', %s, 'admin', 0, %s)",
            "migrate",
            bytes(32),
            HOSTILE,
            2**62,
        )
        await ledger.close()  # an import wants to be alone
        yield ledger


async def test_no_command_lets_a_name_reach_the_terminal_as_it_is(
    hostile_ledger: Ledger, run: Run, tmp_path: Path
) -> None:
    head = (await run("head", "--json")).json["position"]
    parked_ids = [m["id"] for m in (await run("parked", "list", "--json")).json["messages"]]
    rules = tmp_path / "rules.toml"
    rules.write_text("last_factor = 2\ntiers = []\n")
    export = ("export", "--all", "--format", "csv", "--out", str(tmp_path / "out"))
    argument = HOSTILE.replace("\0", "")  # an command line has no NUL
    calls: list[tuple[tuple[str, ...], int]] = [
        (("status",), 0),
        (("balance",), 0),
        (("balance", "--json"), 0),
        *(
            ((("asof", view, "--position", str(head), *more)), 0)
            for view in ("orders", "wallets", "stock")
            for more in ((), ("--json",))
        ),
        (("asof", "wallets", str(UUID(int=1)), "--position", str(head)), 0),
        (("asof", "stock", str(UUID(int=99)), "--position", str(head)), 0),
        (("head",), 0),
        (("verify",), 0),
        (("replay",), 0),
        (("whatif", "--rules", str(rules)), 0),
        (("whatif", "--rules", str(rules), "--json"), 0),
        (export, 0),
        (("import", str(tmp_path / "out")), 0),
        (("keys", "list"), 0),
        (("keys", "list", "--json"), 0),
        (("keys", "rotate", "0123456789ab", "--overlap-s", "60"), 0),
        (("keys", "revoke", "0123456789ab"), 0),
        (("keys", "revoke", argument), 1),
        (("parked", "list"), 0),
        *((("parked", "show", id_, *more), 0) for id_ in parked_ids for more in ((), ("--json",))),
        (("parked", "discard", "--all", "--yes"), 0),
        (("parked", "log"), 0),
        (("parked", "log", "--json"), 0),
        (("rebuild", "--all"), 0),
        (("import-old", "--port", str(free_port()), "--user", argument, "--database", argument), 1),
        (("migrate",), 0),
        (("erase-customer", str(UUID(int=2)), "--json"), 2),
    ]
    servers = {"up", "api", "writer", "projector", "demo"}
    assert {arguments[0] for arguments, _ in calls} == set(COMMANDS) - servers
    for arguments, status in calls:
        done = await run(*arguments, COLUMNS="400")
        assert (done.status, is_harmless(done.out + done.err)) == (status, True), (
            f"{arguments}: {done.status} {done.out!r} {done.err!r}"
        )
        assert "forged\n" not in done.out.replace("\\n✗ forged", "")


async def test_a_view_that_differs_is_reported_without_the_names_own_characters(
    hostile_ledger: Ledger, run: Run
) -> None:
    await hostile_ledger.execute(
        "UPDATE wallets SET username = %s WHERE customer_id = %s",
        "migrate",
        f"other{HOSTILE}",
        UUID(int=1).bytes,
    )
    for arguments in (("verify",), ("verify", "--json"), ("rebuild", "wallets")):
        done = await run(*arguments)
        assert done.status == 1
        assert is_harmless(done.out + done.err), done


async def test_json_that_is_printed_still_has_the_name_to_the_character(
    hostile_ledger: Ledger, run: Run
) -> None:
    head = str((await hostile_ledger.head()).position)
    done = await run("asof", "wallets", str(UUID(int=1)), "--position", head, "--json")
    assert done.json["username"] == HOSTILE
    lines = (await run("replay", "--type", "product.listed")).out.splitlines()
    assert [json.loads(line)["data"]["name"] for line in lines] == list(NAMES)


async def test_no_cell_of_a_csv_export_is_a_formula_unless_it_is_asked_for(
    hostile_ledger: Ledger, run: Run, tmp_path: Path
) -> None:
    names: dict[str, list[str]] = {}
    for option in ("--no-overwrite", "--raw"):
        directory = tmp_path / option
        await run("export", "stock", "--format", "csv", "--out", str(directory), option)
        with (directory / "stock.csv").open(newline="") as file:
            names[option] = [row["name"] for row in csv.DictReader(file)]
    assert names["--raw"] == list(NAMES)
    assert names["--no-overwrite"] == [HOSTILE, *(f"'{name}" for name in FORMULAS)]


async def test_raw_bytes_are_not_written_to_a_terminal(hostile_ledger: Ledger, run: Run) -> None:
    id_ = (await run("parked", "list", "--json")).json["messages"][0]["id"]
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "parked", "show", id_, "--raw"),
        env=os.environ | environment(hostile_ledger.settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=theirs,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 2
    assert b"send them to a file or a pipe" in said


def test_a_message_forges_no_line_of_a_text_log() -> None:
    trace = (ValueError, ValueError(HOSTILE), None)
    record = logging.LogRecord("api", 40, "f", 1, "refused %s", (HOSTILE,), trace)
    lines = logs.formatter("text").format(record).split("\n")
    assert is_harmless("\n".join(lines))
    assert lines[0].endswith("forged\\U000e0041")
    assert all(line.startswith("  ") for line in lines[1:])
    logged = logs.formatter("json").format(record)
    assert is_harmless(logged)
    assert "\n" not in logged
    assert HOSTILE in json.loads(logged)["event"]


def test_text_from_outside_can_not_command_the_terminal() -> None:
    assert printable("größe\x1b[2J\x07\u202e\n") == "größe\\x1b[2J\\x07\\u202e\\n"
    assert printable("one\ntwo\r", keep="\n") == "one\ntwo\\r"
    for name in ("山田\u3000太郎", "می\u200cخواهم", "👨\u200d👩\u200d👧"):
        assert printable(name) == name


def test_escaped_json_is_the_same_value() -> None:
    body = json.dumps(HOSTILE, ensure_ascii=False).encode()
    assert is_harmless(printable_json(body).decode())
    assert json.loads(printable_json(body)) == HOSTILE
