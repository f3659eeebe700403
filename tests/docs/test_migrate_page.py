"""The way from the old API to the local stack works as the how-to has it."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy.ext.asyncio import create_async_engine

from cli.commands.demo import CUSTOMER_ID, load_demo
from tests.cli.test_import_old import CUSTOMERS, ORDERS, PRODUCTS, SCHEMA
from tests.harness import DEADLINE_S, Stack, environment, free_port
from tests.packages import require_program
from tests.warm import BIN

PAGE = Path(__file__).parents[2] / "docs/how-to/migrate-from-the-old-api.md"
ROWS = (
    f"INSERT INTO customers VALUES ('{CUSTOMERS[0]}', 'Rémi', 12.5)",
    f"INSERT INTO products VALUES ('{PRODUCTS[0]}', 'Füller', NULL, 3, NULL, 4, 5)",
    f"INSERT INTO orders VALUES ('{ORDERS[0]}', '{PRODUCTS[0]}', '{CUSTOMERS[0]}', 'COMPLETED',"
    " '2025-01-01 12:00:00', '2025-01-01 12:00:01')",
)


async def test_old_data_come_to_the_local_stack_beside_the_ledger_that_runs(
    make_stack: Callable[..., Awaitable[Stack]], tmp_path: Path
) -> None:
    require_program("mysql", "default-mysql-client")
    stack = await make_stack()
    await load_demo(stack.settings)
    (script,) = re.findall(r"```sh\n(\. \.ledger/.*?)```", PAGE.read_text(), re.DOTALL)
    home = tmp_path / ".ledger"
    home.mkdir()
    (home / "secrets").symlink_to(stack.settings.secrets_dir or stack.settings.home / "secrets")
    (home / "stack.env").write_text(f"LEDGER_DB_PORT={stack.settings.db_port}\n")
    (tmp_path / "old.sql").write_text(";\n".join((*SCHEMA, *ROWS, "")))
    engine = create_async_engine(stack.settings.db_url("migrate"))
    async with engine.begin() as connection:
        for name in ("ledger_old", "ledger_shop"):
            await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")
    await engine.dispose()
    process = await asyncio.create_subprocess_exec(
        *("sh", "-ec", script),
        cwd=tmp_path,
        env=os.environ
        | environment(stack.settings)
        | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 0, output.decode()
    assert "the schema ledger_shop was missing: it is there now" in output.decode()
    assert "appended 3 events, up to position 3" in output.decode()
    await stack.stop()
    shop = Stack(
        stack.settings.model_copy(update={"db_name": "ledger_shop", "api_port": free_port()})
    )
    try:
        for name in ("writer", "projector", "api"):
            shop.start(name)
        await shop.ready()
        order = {"customer_id": str(CUSTOMERS[0]), "product_id": str(PRODUCTS[0])}
        placed = await shop.http.post("/orders", json=order, headers={"Prefer": "wait=10"})
        assert placed.json()["status"] == "COMPLETED", placed.text
        assert (await shop.http.get(f"/orders/{ORDERS[0]}")).json()["status"] == "COMPLETED"
        assert (await shop.http.get(f"/customers/{CUSTOMER_ID}")).status_code == 404
    finally:
        await shop.stop()
