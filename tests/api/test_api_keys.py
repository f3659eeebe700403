"""API keys, and the cache of their look-ups: few queries, bounded, never older than promised."""

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
    """A stand-in for the table of API keys that counts queries and can be away."""

    def __init__(self) -> None:
        self.keys = {"0" * 12: a_key()}
        self.queries: list[str] = []
        self.at_once = self.most_at_once = 0
        self.away = False

    async def find(self, prefix: str) -> StoredApiKey | None:
        self.queries.append(prefix)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.away:
            raise KeysUnavailable("away")
        return self.keys.get(prefix)


class Cached:
    """A cache over a table, with a clock that the test moves."""

    def __init__(self) -> None:
        self.table = Table()
        self.now_s = 0.0
        self.cache = ApiKeyCache(self.table.find, lambda: self.now_s)


@pytest.fixture
def cached() -> Cached:
    return Cached()


def test_a_new_key_can_be_parsed() -> None:
    parts = new_api_key()
    assert parse_api_key(str(parts)) == parts
    assert len(parts.secret) == 43


def test_no_two_new_keys_are_alike() -> None:
    keys = [new_api_key() for _ in range(100)]
    assert len({p.prefix for p in keys}) == len({p.secret for p in keys}) == 100


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
def test_text_of_another_form_is_no_api_key(text: str) -> None:
    assert parse_api_key(text) is None


def test_only_the_secret_of_the_key_is_accepted() -> None:
    parts = new_api_key()
    key = StoredApiKey(parts.prefix, hash_secret(parts.secret), parts.prefix, "ann", (), None, 1)
    assert key.has_secret(parts.secret)
    assert not key.has_secret(new_api_key().secret)
    assert parts.secret.encode() not in key.secret_hash


def test_a_key_has_ended_from_the_moment_it_is_revoked_or_expires() -> None:
    assert a_key(expires_at_us=5).ended(4) is None
    assert a_key(expires_at_us=5).ended(5) == "expired"
    assert a_key(revoked_at_us=5).ended(4) is None
    assert a_key(revoked_at_us=5, expires_at_us=5).ended(5) == "revoked"


async def test_a_look_up_is_good_while_it_is_fresh_and_no_longer(cached: Cached) -> None:
    prefix = "0" * 12
    for _ in range(10):
        assert await cached.cache.get(prefix)
    assert len(cached.table.queries) == 1
    del cached.table.keys[prefix]
    cached.now_s += FRESH_S
    assert await cached.cache.get(prefix) is None


async def test_a_key_made_after_it_was_looked_up_is_found_before_long(cached: Cached) -> None:
    assert await cached.cache.get("1" * 12) is None
    cached.table.keys["1" * 12] = a_key("1" * 12)
    cached.now_s += FRESH_S
    assert await cached.cache.get("1" * 12)


async def test_requests_with_one_key_at_once_share_one_look_up(cached: Cached) -> None:
    await asyncio.gather(*(cached.cache.get("0" * 12) for _ in range(100)))
    assert len(cached.table.queries) == 1


async def test_a_key_that_was_found_is_accepted_while_the_database_is_away(cached: Cached) -> None:
    assert await cached.cache.get("0" * 12)
    cached.table.away = True
    cached.now_s += STALE_S - 1
    for _ in range(10):
        assert await cached.cache.get("0" * 12)
    assert len(cached.table.queries) == 2
    with pytest.raises(KeysUnavailable):
        await cached.cache.get("1" * 12)


async def test_a_key_is_not_accepted_for_ever_while_the_database_is_away(cached: Cached) -> None:
    assert await cached.cache.get("0" * 12)
    cached.table.away = True
    cached.now_s += STALE_S
    with pytest.raises(KeysUnavailable):
        await cached.cache.get("0" * 12)


async def test_a_flood_of_made_up_keys_drops_no_real_key_and_takes_few_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_keys, "MAX_CACHED", 100)
    cached = Cached()
    await cached.cache.get("0" * 12)
    for start in range(0, 1000, MAX_QUEUE):
        await asyncio.gather(*(cached.cache.get(str(start + n)) for n in range(MAX_QUEUE)))
    asked = len(cached.table.queries)
    assert cached.table.most_at_once == MAX_LOOKUPS
    assert await cached.cache.get("0" * 12)
    assert len(cached.table.queries) == asked
    assert len(cached.cache._unknown) == 100


async def test_more_look_ups_than_may_queue_are_refused(cached: Cached) -> None:
    asked = [cached.cache.get(str(number)) for number in range(MAX_QUEUE + 5)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, KeysUnavailable) for answer in answers) == 5


async def test_a_client_who_hangs_up_does_not_cancel_the_look_up_for_others(cached: Cached) -> None:
    first = asyncio.create_task(cached.cache.get("0" * 12))
    second = asyncio.create_task(cached.cache.get("0" * 12))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert first.cancelled() or first.done()
