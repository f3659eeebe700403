"""Results that are kept, shared and fetched ahead: BoundedDict, SingleFlight and Prefetch."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """A dict that drops its oldest entry to make room for a new key.

    An entry keeps its age when its value is replaced; `renew` makes it the youngest.
    """

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self.max_entries: Final = max_entries

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self and len(self) >= self.max_entries:
            del self[next(iter(self))]
        super().__setitem__(key, value)

    def renew(self, key: K, value: V) -> None:
        """Set an entry and make it the youngest."""
        self.pop(key, None)
        self[key] = value


class SingleFlight(Generic[K, V]):
    """Runs at most one call per key at a time and gives its result to all who asked for it.

    The call goes on when a caller is cancelled, since others may wait for it. What the call
    raises, every caller gets.
    """

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[V]] = {}
        self._next: dict[K, asyncio.Task[V]] = {}

    def __len__(self) -> int:
        """The number of keys with a call under way."""
        return len(self._running)

    def __contains__(self, key: K) -> bool:
        """Whether a call of this key is under way."""
        return key in self._running

    async def join(self, key: K, call: Callable[[], Awaitable[V]]) -> V:
        """The result of the call under way, or of a new one if there is none.

        The call may have begun before this one did: right where its result cannot be too old.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._run(key, call))
            task.add_done_callback(_retrieve_exception)
        return await asyncio.shield(task)

    async def join_next(self, key: K, call: Callable[[], Awaitable[V]]) -> V:
        """The result of a call that begins after this one.

        All who ask while a call is under way share the next. So each result was read after its
        reader asked, and a busy key still runs one call after another.
        """
        if key not in self._next:
            before = self._running.get(key)
            task = self._next[key] = asyncio.create_task(self._run_after(before, key, call))
            task.add_done_callback(_retrieve_exception)
        return await asyncio.shield(self._next[key])

    async def _run_after(
        self, before: asyncio.Task[V] | None, key: K, call: Callable[[], Awaitable[V]]
    ) -> V:
        if before:
            await asyncio.wait((before,))
        self._running[key] = self._next.pop(key)
        return await self._run(key, call)

    async def _run(self, key: K, call: Callable[[], Awaitable[V]]) -> V:
        try:
            return await call()
        finally:
            if self._running.get(key) is asyncio.current_task():
                del self._running[key]


def _retrieve_exception(task: asyncio.Task[V]) -> None:
    # Every caller may have been cancelled: asyncio would log an exception that nobody retrieved.
    if not task.cancelled():
        task.exception()


class Prefetch(Generic[V]):
    """An async iterator of the same items, the next of which is fetched while one is worked on.

    Fetching begins at once. It must be closed: what is on its way then is waited for, so that the
    connection it is read on can be used again.
    """

    def __init__(self, items: AsyncGenerator[V, None]) -> None:
        self._items = items
        self._next = self._fetch()

    def _fetch(self) -> "asyncio.Future[V]":
        return asyncio.ensure_future(anext(self._items))

    def __aiter__(self) -> "Prefetch[V]":
        return self

    async def __anext__(self) -> V:
        item = await self._next
        self._next = self._fetch()
        return item

    async def aclose(self) -> None:
        """Discard the item that is being fetched, once it has come, and close the source."""
        await asyncio.gather(self._next, return_exceptions=True)
        await self._items.aclose()
