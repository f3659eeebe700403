"""A made-up history is one that the writer could have recorded, and is the same each time."""

from itertools import islice

import pytest

from bench.fill import NotEmpty, fill
from bench.history import Shop
from cli.settings import Settings
from tests.harness import make_ledger
from tests.ledger.naive_audit import audit
from tests.ledger.pipeline import Ledger
from tests.private_servers import Servers


def shop(seed: int) -> Shop:
    return Shop(seed, customers=5, products=3, span_us=60_000_000)


async def filled(settings: Settings) -> Ledger:
    ledger = Ledger(settings)
    await fill(ledger.engine("writer"), shop(1).events(), 600, 250, batch_events=40)
    return ledger


def test_the_same_seed_gives_the_same_events_and_another_gives_others() -> None:
    first, again, other = (list(islice(shop(seed).events(), 300)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


async def test_two_ledgers_of_one_history_have_the_same_head_hash(servers: Servers) -> None:
    ledgers = [await filled(await make_ledger(servers)) for _ in range(2)]
    heads = {(head.position, head.hash) for head in [await ledger.head() for ledger in ledgers]}
    assert len(heads) == 1
    audit(await ledgers[0].records())
    types = {record.type for record in await ledgers[0].records()}
    assert {"order.completed", "order.failed", "order.cancelled", "stock.received"} <= types
    positions = await ledgers[0].rows("SELECT DISTINCT position FROM snapshots")
    assert len(positions) == 2
    with pytest.raises(NotEmpty):
        await fill(ledgers[0].engine("writer"), shop(1).events(), 10, 250)
    for ledger in ledgers:
        await ledger.close()
