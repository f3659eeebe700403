"""API keys, and the copy a process checks them by: never older than promised, and bounded."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from uuid import uuid4

import pytest

from api.auth import api_keys
from api.auth.api_keys import (
    COPY_EVERY_S,
    COPY_TIMEOUT_S,
    FRESH_S,
    LOOKUP_FRESH_S,
    STALE_S,
    ApiKeyCache,
    KeysUnavailable,
    StoredApiKey,
    StoredApiKeys,
    hash_secret,
    new_api_key,
    parse_api_key,
)
from cli.commands import keys
from cli.settings import Settings
from ledger.runtime.timestamps import SECOND_US, now_us
from tests.harness import engine_of

KNOWN = "0" * 12


def a_key(prefix: str = "0" * 12, **more: int) -> StoredApiKey:
    return StoredApiKey(prefix, hash_secret("x"), prefix, "ann", ("admin",), uuid4(), 1, **more)


class Table:
    """A stand-in for the table of API keys that counts queries, and can be slow or away."""

    def __init__(self) -> None:
        self.keys = {KNOWN: a_key(KNOWN)}
        self.copies = 0
        self.queries: list[set[str]] = []
        self.at_once = self.most_at_once = 0
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def usable(self, after: str) -> tuple[int, Mapping[str, StoredApiKey]]:
        self.copies += 1
        await self.answers.wait()
        if self.away:
            raise OSError("away")
        usable = {p: key for p, key in self.keys.items() if p > after and not key.ended(now_us())}
        return now_us(), dict(sorted(usable.items())[: api_keys.COPY_PAGE])

    async def find(self, prefixes: Collection[str]) -> Mapping[str, StoredApiKey]:
        self.queries.append(set(prefixes))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.away:
            raise OSError("away")
        return {prefix: self.keys[prefix] for prefix in prefixes if prefix in self.keys}


class Cached:
    """A cache over a table, with a clock that the test moves."""

    def __init__(self) -> None:
        self.table = Table()
        self.now_s = 0.0
        self.cache = ApiKeyCache(self.table, lambda: self.now_s)


@pytest.fixture
async def cached() -> AsyncIterator[Cached]:
    """A cache whose task looks prefixes up; the test has it copy the table."""
    cached = Cached()
    await cached.cache.copy()
    looking_up = asyncio.create_task(cached.cache._look_up_wanted())
    yield cached
    looking_up.cancel()


async def flood(cache: ApiKeyCache, count: int) -> list[StoredApiKey | BaseException | None]:
    """Ask for made-up prefixes all at once."""
    asked = (cache.get(f"{number:012x}") for number in range(1, count + 1))
    return await asyncio.gather(*asked, return_exceptions=True)


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


async def test_a_known_key_costs_no_query(cached: Cached) -> None:
    for _ in range(10):
        assert await cached.cache.get(KNOWN)
    assert not cached.table.queries
    assert cached.table.copies == 1


async def test_a_revoked_key_is_refused_from_the_next_copy_on(cached: Cached) -> None:
    cached.table.keys[KNOWN] = a_key(KNOWN, revoked_at_us=1)
    await cached.cache.copy()
    assert cached.cache.copied(KNOWN) is None
    found = await cached.cache.get(KNOWN)
    assert found
    assert found.ended(cached.cache.now_us()) == "revoked"


@pytest.mark.parametrize("fresh_s", [COPY_EVERY_S + COPY_TIMEOUT_S + api_keys.GRACE_S])
def test_an_outage_is_known_before_a_copy_is_too_old_to_go_by(fresh_s: float) -> None:
    assert fresh_s < FRESH_S


async def test_a_key_made_after_it_was_looked_up_is_found_before_long(cached: Cached) -> None:
    assert await cached.cache.get("1" * 12) is None
    cached.table.keys["1" * 12] = a_key("1" * 12)
    cached.now_s += LOOKUP_FRESH_S
    assert await cached.cache.get("1" * 12)


async def test_requests_with_one_key_at_once_share_one_look_up(cached: Cached) -> None:
    await asyncio.gather(*(cached.cache.get("1" * 12) for _ in range(100)))
    assert cached.table.queries == [{"1" * 12}]


async def test_keys_beyond_those_that_are_copied_are_looked_up(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "COPY_PAGE", 3)
    monkeypatch.setattr(api_keys, "MAX_COPIED", 6)
    prefixes = [f"{number:012x}" for number in range(8)]
    cached.table.keys = {prefix: a_key(prefix) for prefix in prefixes}
    await cached.cache.copy()
    assert [bool(cached.cache.copied(prefix)) for prefix in prefixes] == [True] * 6 + [False] * 2
    assert all([await cached.cache.get(prefix) for prefix in prefixes])
    assert cached.table.queries == [{prefixes[6]}, {prefixes[7]}]


async def test_known_keys_are_accepted_while_the_database_is_away_even_if_never_used(
    cached: Cached,
) -> None:
    cached.table.away = True
    await cached.cache.copy()
    cached.now_s += STALE_S - 1
    for _ in range(10):
        assert await cached.cache.get(KNOWN)
    with pytest.raises(KeysUnavailable):
        await cached.cache.get("1" * 12)
    assert not cached.table.queries


async def test_a_key_is_not_accepted_for_ever_while_the_database_is_away(cached: Cached) -> None:
    cached.table.away = True
    await cached.cache.copy()
    cached.now_s += STALE_S
    with pytest.raises(KeysUnavailable):
        await cached.cache.get(KNOWN)


async def test_a_key_revoked_during_an_outage_is_refused_once_the_database_is_back(
    cached: Cached,
) -> None:
    cached.table.away = True
    await cached.cache.copy()
    cached.table.keys[KNOWN] = a_key(KNOWN, revoked_at_us=1)
    assert await cached.cache.get(KNOWN)
    cached.table.away = False
    await cached.cache.copy()
    assert cached.cache.copied(KNOWN) is None


async def test_no_key_is_known_to_a_process_that_starts_without_the_database() -> None:
    cached = Cached()
    cached.table.away = True
    asked = asyncio.create_task(cached.cache.get(KNOWN))
    await cached.cache.copy()
    with pytest.raises(KeysUnavailable):
        await asked


async def test_an_old_copy_is_not_gone_by_while_the_database_answers(cached: Cached) -> None:
    """A process that is too busy to copy in time must not take that for an outage."""
    cached.now_s += FRESH_S
    asked = asyncio.create_task(cached.cache.get(KNOWN))
    await asyncio.sleep(0)
    assert not asked.done()
    del cached.table.keys[KNOWN]
    await cached.cache.copy()
    assert await asked is None


async def test_a_busy_process_does_not_take_the_database_for_away(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "COPY_TIMEOUT_S", 0.01)
    cached.table.answers.clear()
    copying = asyncio.create_task(cached.cache.copy())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert cached.table.copies == 2
    # Deadline and answer come within one turn of the event loop, which takes its time.
    cached.table.answers.set()
    time.sleep(0.02)  # noqa: ASYNC251
    await copying
    assert not cached.cache._away


async def test_a_flood_of_made_up_keys_keeps_no_revoked_key_working(cached: Cached) -> None:
    assert await cached.cache.get(KNOWN)
    flooding = asyncio.create_task(flood(cached.cache, 10_000))
    await asyncio.sleep(0)
    cached.table.keys[KNOWN] = a_key(KNOWN, revoked_at_us=1)
    cached.now_s += FRESH_S
    await cached.cache.copy()
    found = await asyncio.gather(cached.cache.get(KNOWN), return_exceptions=True)
    assert isinstance(found[0], KeysUnavailable) or found[0].ended(now_us())  # type: ignore[union-attr]
    assert not any(isinstance(answer, StoredApiKey) for answer in await flooding)


async def test_a_flood_of_made_up_keys_takes_one_connection_and_bounded_memory(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached.cache._lookups, "max_entries", 100)
    answers = await flood(cached.cache, 10_000)
    refused = sum(isinstance(answer, KeysUnavailable) for answer in answers)
    assert refused == 10_000 - api_keys.MAX_WAITING
    assert answers.count(None) == api_keys.MAX_WAITING
    assert cached.table.most_at_once == 1
    assert len(cached.table.queries) == api_keys.MAX_WAITING / api_keys.COPY_PAGE
    assert len(cached.cache._lookups) == 100
    assert not cached.cache._waiting
    assert cached.cache.copied(KNOWN)


async def test_a_client_who_hangs_up_does_not_cancel_the_look_up_for_others(cached: Cached) -> None:
    first = asyncio.create_task(cached.cache.get("1" * 12))
    second = asyncio.create_task(cached.cache.get("1" * 12))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None
    assert first.cancelled() or first.done()


async def test_a_key_ends_by_the_clock_of_the_database(settings: Settings) -> None:
    """Neither the clock of the command that revokes it counts, nor that of the API."""
    kept, _ = await keys.create(settings, "kept", ("admin",))
    revoked, _ = await keys.create(settings, "revoked", ("admin",))
    stored = await keys.revoke(settings, revoked.prefix)
    engine = engine_of(settings, "api")
    clock_s = -1e6
    cache = ApiKeyCache(StoredApiKeys(engine), lambda: clock_s)
    await cache.copy()
    assert cache.copied(kept.prefix) == kept
    assert cache.copied(revoked.prefix) is None
    assert stored.ended(cache.now_us()) == "revoked"
    assert abs(cache.now_us() - now_us()) < 3600 * SECOND_US
    await engine.dispose()
