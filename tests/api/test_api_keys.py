"""Keys, and the look-ups of them: few, bounded, never older than promised."""

import asyncio
from uuid import uuid4

import pytest

from api.auth import api_keys
from api.auth.api_keys import (
    FRESH_S,
    MAX_LOOKUPS,
    MAX_QUEUE,
    STALE_S,
    ApiKeyCache,
    KeysUnavailable,
    StoredApiKey,
    hash_secret,
    new_api_key,
    parse_api_key,
)


def a_key(prefix: str = "0" * 12, **more: int) -> StoredApiKey:
    return StoredApiKey(prefix, hash_secret("x"), prefix, "ann", ("admin",), uuid4(), 1, **more)


class Table:
    """The table of keys, which counts who asks, and can be away."""

    def __init__(self) -> None:
        self.keys = {"0" * 12: a_key()}
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.away = False

    async def find(self, prefix: str) -> StoredApiKey | None:
        self.asked.append(prefix)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.away:
            raise KeysUnavailable("away")
        return self.keys.get(prefix)


class Kept:
    """A keyring over a table, with a clock that the test moves."""

    def __init__(self) -> None:
        self.table = Table()
        self.now_s = 0.0
        self.ring = ApiKeyCache(self.table.find, lambda: self.now_s)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_a_key_can_be_read_back() -> None:
    parts = new_api_key()
    assert parse_api_key(str(parts)) == parts
    assert len(parts.secret) == 43


def test_no_two_keys_are_alike() -> None:
    made = [new_api_key() for _ in range(100)]
    assert len({p.prefix for p in made}) == len({p.secret for p in made}) == 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lk_",
        "lk__",
        f"lk_{'0' * 12}_{'x' * 42}",
        f"lk_{'0' * 12}_{'x' * 44}",
        f"lk_{'g' * 12}_{'x' * 43}",
        f"lk_{'0' * 12}_{'x' * 42}é",
        f"LK_{'0' * 12}_{'x' * 43}",
        f"lk_{'0' * 12}_{'x' * 43}\n",
        f" lk_{'0' * 12}_{'x' * 43}",
    ],
)
def test_what_does_not_look_like_a_key(text: str) -> None:
    assert parse_api_key(text) is None


def test_only_its_own_secret_opens_a_key() -> None:
    parts = new_api_key()
    key = StoredApiKey(parts.prefix, hash_secret(parts.secret), parts.prefix, "ann", (), None, 1)
    assert key.has_secret(parts.secret)
    assert not key.has_secret(new_api_key().secret)
    assert parts.secret.encode() not in key.secret_hash


def test_a_key_is_over_at_the_moment_it_ends() -> None:
    assert a_key(expires_at_us=5).ended(4) is None
    assert a_key(expires_at_us=5).ended(5) == "expired"
    assert a_key(revoked_at_us=5).ended(4) is None
    assert a_key(revoked_at_us=5, expires_at_us=5).ended(5) == "revoked"


async def test_a_look_up_counts_for_a_while_and_no_longer(kept: Kept) -> None:
    prefix = "0" * 12
    for _ in range(10):
        assert await kept.ring.get(prefix)
    assert len(kept.table.asked) == 1
    del kept.table.keys[prefix]
    kept.now_s += FRESH_S
    assert await kept.ring.get(prefix) is None


async def test_a_key_made_after_it_was_asked_for_is_found_before_long(kept: Kept) -> None:
    assert await kept.ring.get("1" * 12) is None
    kept.table.keys["1" * 12] = a_key("1" * 12)
    kept.now_s += FRESH_S
    assert await kept.ring.get("1" * 12)


async def test_many_who_ask_at_once_share_one_look_up(kept: Kept) -> None:
    await asyncio.gather(*(kept.ring.get("0" * 12) for _ in range(100)))
    assert len(kept.table.asked) == 1


async def test_a_key_that_was_found_opens_while_the_database_is_away(kept: Kept) -> None:
    assert await kept.ring.get("0" * 12)
    kept.table.away = True
    kept.now_s += STALE_S - 1
    for _ in range(10):
        assert await kept.ring.get("0" * 12)
    assert len(kept.table.asked) == 2
    with pytest.raises(KeysUnavailable):
        await kept.ring.get("1" * 12)


async def test_a_key_does_not_open_for_ever_while_the_database_is_away(kept: Kept) -> None:
    assert await kept.ring.get("0" * 12)
    kept.table.away = True
    kept.now_s += STALE_S
    with pytest.raises(KeysUnavailable):
        await kept.ring.get("0" * 12)


async def test_a_flood_of_made_up_keys_pushes_no_key_out_and_takes_few_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_keys, "MAX_CACHED", 100)
    kept = Kept()
    await kept.ring.get("0" * 12)
    for start in range(0, 1000, MAX_QUEUE):
        await asyncio.gather(*(kept.ring.get(str(start + n)) for n in range(MAX_QUEUE)))
    asked = len(kept.table.asked)
    assert kept.table.most_at_once == MAX_LOOKUPS
    assert await kept.ring.get("0" * 12)
    assert len(kept.table.asked) == asked
    assert len(kept.ring._unknown) == 100


async def test_more_look_ups_than_may_queue_are_refused(kept: Kept) -> None:
    asked = [kept.ring.get(str(number)) for number in range(MAX_QUEUE + 5)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, KeysUnavailable) for answer in answers) == 5


async def test_one_who_hangs_up_does_not_end_the_look_up_of_the_others(kept: Kept) -> None:
    first = asyncio.create_task(kept.ring.get("0" * 12))
    second = asyncio.create_task(kept.ring.get("0" * 12))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert first.cancelled() or first.done()
