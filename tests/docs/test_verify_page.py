"""The reference page of `ledger verify` shows what it says of a ledger that was changed."""

import re
from pathlib import Path

from cli.settings import Settings
from tests.cli.damage import wrong
from tests.ledger.pipeline import running_ledger

from .example import fill_example

PAGE = Path(__file__).parents[2] / "docs/reference/commands/verify.md"


async def test_the_page_shows_what_is_said_of_a_changed_ledger(settings: Settings) -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    await fill_example(settings)
    async with running_ledger(settings) as ledger:
        await ledger.execute(
            "UPDATE wallets SET balance_minor = balance_minor + 1 ORDER BY customer_id LIMIT 1"
        )
        row = await wrong(ledger)
        await ledger.execute("DROP TRIGGER events_no_update")
        await ledger.execute("UPDATE events SET data = REPLACE(data, '1', '2') WHERE position = 17")
        event = await wrong(ledger)
    assert shown == f"✗ {row}\n✗ {event}\n"
