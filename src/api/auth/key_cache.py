"""Recent look-ups of keys, so that a request seldom costs the database one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth.api_keys import StoredKey, find_key
from ledger.runtime.database import DATABASE_ERRORS

FRESH_S: Final = 5.0
"""How long a look-up counts, and so how long a revoked key may still open."""
STALE_S: Final = 300.0
"""How long a key that was found opens while the database is away: nobody can revoke it then."""
LOOKUP_TIMEOUT_S: Final = 1.5
MAX_KEPT: Final = 10_000
MAX_LOOKUPS: Final = 2
"""At once, so that made-up prefixes can't take the connections that the views are read with."""
MAX_QUEUE: Final = 200

Find = Callable[[str], Awaitable[StoredKey | None]]


class KeysUnavailable(Exception):
    """The key can't be checked now."""


class Found(Struct):
    """The answer to a look-up, when it came, and when it is to be asked anew."""

    key: StoredKey | None
    found_at_s: float
    again_at_s: float


class Keyring:
    """Keys by prefix, those looked up longest ago forgotten first; unknown ones are kept apart."""

    def __init__(self, find: Find, now_s: Callable[[], float] = time.monotonic) -> None:
        self._find = find
        self._now_s = now_s
        self._known: dict[str, Found] = {}
        self._unknown: dict[str, Found] = {}
        self._running: dict[str, asyncio.Task[Found]] = {}
        self._turn = asyncio.Semaphore(MAX_LOOKUPS)

    async def get(self, prefix: str) -> StoredKey | None:
        """The key as it was at most FRESH_S ago; raises KeysUnavailable."""
        found = self._known.get(prefix) or self._unknown.get(prefix)
        if found is None or self._now_s() >= found.again_at_s:
            found = await self._look_up(prefix, self._known.get(prefix))
        return found.key

    async def _look_up(self, prefix: str, before: Found | None) -> Found:
        """Ask, once for all who want to know; a key found before does while nobody answers."""
        try:
            return await self._shared(prefix)
        except KeysUnavailable:
            now_s = self._now_s()
            if before is None or now_s >= before.found_at_s + STALE_S:
                raise
            before.again_at_s = now_s + FRESH_S
            return before

    async def _shared(self, prefix: str) -> Found:
        running = self._running.get(prefix)
        if running is None:
            if len(self._running) >= MAX_QUEUE:
                raise KeysUnavailable("too many keys are being looked up")
            running = asyncio.create_task(self._ask(prefix))
            self._running[prefix] = running
            running.add_done_callback(lambda task: self._ended(prefix, task))
        return await asyncio.shield(running)

    def _ended(self, prefix: str, task: asyncio.Task[Found]) -> None:
        del self._running[prefix]
        # Everybody who waited may have hung up: what it raised is then nobody's.
        if not task.cancelled():
            task.exception()

    async def _ask(self, prefix: str) -> Found:
        async with self._turn:
            key = await self._find(prefix)
        now_s = self._now_s()
        found = Found(key, now_s, now_s + FRESH_S)
        self._keep(prefix, found)
        return found

    def _keep(self, prefix: str, found: Found) -> None:
        """Under its answer, last in line; a made-up prefix can push out no key."""
        self._known.pop(prefix, None)
        self._unknown.pop(prefix, None)
        kept = self._known if found.key else self._unknown
        if len(kept) >= MAX_KEPT:
            del kept[next(iter(kept))]
        kept[prefix] = found


def keyring(engine: AsyncEngine) -> Keyring:
    """The keys of the table, read through the API's account."""

    async def find(prefix: str) -> StoredKey | None:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S), engine.connect() as connection:
                return await find_key(connection, prefix)
        except DATABASE_ERRORS as error:
            raise KeysUnavailable("the key can't be checked: the database is away") from error

    return Keyring(find)
