"""API keys, and the copy a process checks them by: never older than promised, and bounded."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from uuid import uuid4

import pytest

from api.auth import api_keys
from api.auth.api_keys import (
    ANSWER_TIMEOUT_S,
    ASK_EVERY_S,
    COPY_AGAIN_S,
    FRESH_S,
    LATE_S,
    LOOKUP_FRESH_S,
    SLOW_S,
    STALE_S,
    ApiKeyCache,
    Fingerprint,
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
from tests.harness import engine_of, eventually
from tests.proxy import Proxy, open_proxy

KNOWN = "0" * 12


def a_key(prefix: str = "0" * 12, **more: int) -> StoredApiKey:
    return StoredApiKey(prefix, hash_secret("x"), prefix, "ann", ("admin",), uuid4(), 1, **more)


class Table:
    """A stand-in for the table of API keys that counts queries, and can be slow or away."""

    def __init__(self) -> None:
        self.keys = {KNOWN: a_key(KNOWN)}
        self.asked = self.copies = 0
        self.told: Fingerprint | None = None
        self.queries: list[set[str]] = []
        self.at_once = self.most_at_once = 0
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def fingerprint(self) -> tuple[int, Fingerprint]:
        self.asked += 1
        await self.answers.wait()
        if self.away:
            raise OSError("away")
        return now_us(), self.told or (hash(tuple(self.keys.items())),)

    async def usable(self, after: str, time_us: int) -> Mapping[str, StoredApiKey]:
        self.copies += 1
        usable = {p: key for p, key in self.keys.items() if p > after and not key.ended(time_us)}
        return dict(sorted(usable.items())[: api_keys.COPY_PAGE])

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

    async def is_asked(self) -> bool:
        return self.table.asked > 1

    async def is_accepted(self) -> bool:
        return self.cache.copied(KNOWN) is not None


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


async def test_a_table_that_is_as_it_was_is_not_copied_again(cached: Cached) -> None:
    key = cached.cache.copied(KNOWN)
    for _ in range(10):
        cached.now_s += FRESH_S - 1
        await cached.cache.copy()
        # The very one: what a request was verified against need not be verified again.
        assert cached.cache.copied(KNOWN) is key
    assert cached.table.copies == 1


async def test_a_change_that_the_database_does_not_tell_of_is_found_before_long(
    cached: Cached,
) -> None:
    cached.table.told = (await cached.table.fingerprint())[1]
    del cached.table.keys[KNOWN]
    cached.now_s += COPY_AGAIN_S - 1
    await cached.cache.copy()
    assert cached.cache.copied(KNOWN)
    cached.now_s += 1
    await cached.cache.copy()
    assert cached.cache.copied(KNOWN) is None


async def test_a_revoked_key_is_refused_from_the_next_copy_on(cached: Cached) -> None:
    cached.table.keys[KNOWN] = a_key(KNOWN, revoked_at_us=1)
    await cached.cache.copy()
    assert cached.cache.copied(KNOWN) is None
    found = await cached.cache.get(KNOWN)
    assert found
    assert found.ended(cached.cache.now_us()) == "revoked"


@pytest.mark.parametrize("fresh_s", [ASK_EVERY_S + LATE_S + api_keys.GRACE_S])
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


async def test_a_slow_database_is_waited_for_and_what_it_says_counts(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was revoked must not live for an hour because each answer takes 3 s."""
    monkeypatch.setattr(api_keys, "LATE_S", 0.01)
    cached.table.answers.clear()
    cached.table.keys[KNOWN] = a_key(KNOWN, revoked_at_us=1)
    cached.now_s += FRESH_S
    copying = asyncio.create_task(cached.cache.copy())
    assert await cached.cache.get(KNOWN), "orders are taken meanwhile"
    cached.table.answers.set()
    await copying
    assert cached.cache.copied(KNOWN) is None


async def test_a_slow_database_keeps_no_key_accepted_for_longer_than_a_minute(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "LATE_S", 0.01)
    monkeypatch.setattr(api_keys, "ANSWER_TIMEOUT_S", 0.02)
    monkeypatch.setattr(api_keys, "GRACE_S", 0.0)
    cached.table.answers.clear()
    await cached.cache.copy()
    cached.now_s += SLOW_S - 1
    assert await cached.cache.get(KNOWN)
    cached.now_s += 1
    await cached.cache.copy()
    assert cached.cache.copied(KNOWN) is None
    # By itself it can be looked up, perhaps.
    assert await cached.cache.get(KNOWN)
    cached.table.away = True
    cached.now_s += LOOKUP_FRESH_S
    with pytest.raises(KeysUnavailable):
        await cached.cache.get(KNOWN)
    cached.table.answers.set()
    await cached.cache.copy()
    assert await cached.cache.get(KNOWN), "now it is away, and nobody can revoke the key there"


def test_an_answer_of_a_slow_database_is_in_time_for_the_next_one() -> None:
    assert 2 * (ANSWER_TIMEOUT_S + api_keys.GRACE_S) + ASK_EVERY_S < SLOW_S
    assert api_keys.CONNECT_TIMEOUT_S < ANSWER_TIMEOUT_S


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
    monkeypatch.setattr(api_keys, "LATE_S", 0.01)
    cached.table.answers.clear()
    copying = asyncio.create_task(cached.cache.copy())
    await eventually(cached.is_asked, "the database is asked")
    # Deadline and answer come within one turn of the event loop, which takes its time.
    cached.table.answers.set()
    time.sleep(0.02)  # noqa: ASYNC251
    await copying
    cached.now_s += FRESH_S
    assert cached.cache.copied(KNOWN) is None


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


@pytest.fixture
async def stored(settings: Settings) -> AsyncIterator[StoredApiKeys]:
    """The table of a real database."""
    engine = engine_of(settings, "api")
    yield StoredApiKeys(engine)
    await engine.dispose()


CHANGES = {
    "a key is revoked": "UPDATE api_keys SET revoked_at_us = 5 WHERE prefix = %s",
    "two keys are revoked at one moment": "UPDATE api_keys SET revoked_at_us = 5 WHERE '' < %s",
    "a key is to end sooner": "UPDATE api_keys SET revoked_at_us = revoked_at_us - 1"
    " WHERE revoked_at_us IS NOT NULL AND '' < %s",
    "an expiry is set by hand": "UPDATE api_keys SET expires_at_us = 5 WHERE prefix = %s",
    "scopes are taken by hand": "UPDATE api_keys SET scopes = 'orders:read' WHERE prefix = %s",
    "two keys lose their scopes": "UPDATE api_keys SET scopes = '' WHERE '' < %s",
    "a key is bound by hand": "UPDATE api_keys SET customer_id = REPEAT('x', 16) WHERE prefix = %s",
    "a secret is another": "UPDATE api_keys SET secret_hash = REPEAT('x', 32) WHERE prefix = %s",
    "an older table is restored": "DELETE FROM api_keys WHERE prefix = %s",
    "an older table is restored, and a key made": "UPDATE api_keys SET prefix = '0' WHERE"
    " prefix = %s",
    "all is lost": "DELETE FROM api_keys WHERE '' < %s",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_of_the_table_shows_in_its_fingerprint(
    settings: Settings, stored: StoredApiKeys, change: str
) -> None:
    key, _ = await keys.create(settings, "ann", ("admin",))
    await keys.create(settings, "bob", ("admin",))
    rotated, _ = await keys.create(settings, "eve", ("admin",))
    await keys.rotate(settings, rotated.prefix, 3600, None)
    _, before = await stored.fingerprint()
    assert (await stored.fingerprint())[1] == before
    engine = engine_of(settings, "migrate")
    async with engine.begin() as connection:
        await connection.exec_driver_sql(CHANGES[change], (key.prefix,))
    await engine.dispose()
    assert (await stored.fingerprint())[1] != before


async def test_keys_made_rotated_and_revoked_are_seen_by_the_next_copy(
    settings: Settings, stored: StoredApiKeys
) -> None:
    cache = ApiKeyCache(stored)
    await cache.copy()
    made, _ = await keys.create(settings, "ann", ("admin",))
    await cache.copy()
    assert cache.copied(made.prefix) == made
    rotated, _ = await keys.rotate(settings, made.prefix, 3600, None)
    await cache.copy()
    assert cache.copied(rotated.prefix) == rotated
    overlapping = cache.copied(made.prefix)
    assert overlapping
    assert overlapping.revoked_at_us
    for prefix in (made.prefix, rotated.prefix):
        await keys.revoke(settings, prefix)
        await cache.copy()
        assert cache.copied(prefix) is None


async def test_a_slow_way_to_the_database_is_not_taken_for_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that can be reached can revoke, so the hour of an outage must not begin."""
    monkeypatch.setattr(api_keys, "LATE_S", 0.1)
    key, _ = await keys.create(settings, "ann", ("admin",))
    clock_s = 0.0
    async with open_proxy(settings.db_port) as proxy:
        engine = engine_of(settings.model_copy(update={"db_port": proxy.port}), "api")
        cache = ApiKeyCache(StoredApiKeys(engine), lambda: clock_s)
        await cache.copy()
        proxy.delay(0.2)
        await keys.revoke(settings, key.prefix)
        clock_s += FRESH_S
        copying = asyncio.create_task(cache.copy())
        assert await cache.get(key.prefix) == key
        await copying
        assert cache.copied(key.prefix) is None
        await proxy.heal()
        await engine.dispose()


@pytest.mark.parametrize(
    ("fault", "fresh_s"), [(Proxy.cut, STALE_S), (Proxy.stall, STALE_S), (None, SLOW_S)]
)
async def test_a_database_that_does_not_answer_is_away_only_if_there_is_no_way_to_it(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Proxy], None] | None,
    fresh_s: float,
) -> None:
    for name in ("LATE_S", "GRACE_S"):
        monkeypatch.setattr(api_keys, name, 0.1)
    monkeypatch.setattr(api_keys, "CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(api_keys, "ANSWER_TIMEOUT_S", 2.0)
    key, _ = await keys.create(settings, "ann", ("admin",))
    clock_s = 0.0
    migrate = engine_of(settings, "migrate")
    async with open_proxy(settings.db_port) as proxy, migrate.connect() as locking:
        engine = engine_of(settings.model_copy(update={"db_port": proxy.port}), "api")
        cache = ApiKeyCache(StoredApiKeys(engine), lambda: clock_s)
        await cache.copy()
        if fault:
            fault(proxy)
        else:
            await locking.exec_driver_sql("LOCK TABLES api_keys WRITE")
        # The first may still wait for a connection that was good a moment ago.
        for _ in range(2):
            await cache.copy()
        clock_s += fresh_s - 1
        assert cache.copied(key.prefix) == key
        clock_s += 1
        assert cache.copied(key.prefix) is None
        await locking.exec_driver_sql("UNLOCK TABLES")
        await proxy.heal()
        await engine.dispose()
    await migrate.dispose()
