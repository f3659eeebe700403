"""The parts of the pipeline on one ledger, run inside the test's own process."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from aio_pika import DeliveryMode, Message
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cli.settings import Settings
from ledger.eventlog.codec import encode_group, encode_submitted
from ledger.eventlog.identity import HeadWatch, SeenHead, read_head
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Head, Record, Submitted
from ledger.eventlog.store import Store
from ledger.messaging.consumer import PREFETCH, open_inbox
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import Connection, Notifier
from ledger.messaging.topology import (
    ANNOUNCED_EXCHANGE,
    INBOX,
    PARKING,
    RECORDED_EXCHANGE,
    SUBMITTED_EXCHANGE,
)
from ledger.runtime.database import make_engine
from ledger.runtime.reconnect import end
from ledger.runtime.timestamps import now_us
from ledger.writer import Clock, Writer
from projections.projector import Projector, listen
from projections.views.registry import PROJECTIONS
from tests.harness import eventually

_numbers = itertools.count(1)


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run works until the block ends; what one of them raised fails the test."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        ended = [task for task in tasks if task.done()]
        await end(tasks)
    for task in ended:
        task.result()


class Ledger:
    """One ledger of a test's own: what stands in it, and parts that work on it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._engines: dict[str, AsyncEngine] = {}

    def engine(self, role: str) -> AsyncEngine:
        """Connections with one role's account."""
        if role not in self._engines:
            self._engines[role] = self.make_engine(role, pool_size=8)
        return self._engines[role]

    def make_engine(
        self, role: str, settings: Settings | None = None, **options: Any
    ) -> AsyncEngine:
        """A pool of its own with one role's account, and with the key of snapshots."""
        chosen = settings or self.settings
        key = chosen.snapshot_key()
        return make_engine(chosen.db_url(role), snapshot_key=key, **options)

    async def close(self) -> None:
        """Close every connection to the database."""
        for engine in self._engines.values():
            await engine.dispose()

    @asynccontextmanager
    async def connection(self, role: str = "writer") -> AsyncIterator[AsyncConnection]:
        """A connection with one role's account."""
        async with self.engine(role).connect() as connection:
            yield connection

    async def execute(self, statement: str, role: str = "migrate", *parameters: object) -> None:
        """Run and commit one statement."""
        async with self.engine(role).begin() as connection:
            await connection.exec_driver_sql(statement, parameters)

    async def rows(
        self, statement: str, role: str = "migrate", *parameters: object
    ) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        async with self.connection(role) as connection:
            found = await connection.exec_driver_sql(statement, parameters)
            return [tuple(row) for row in found]

    async def kill_connections(self, role: str) -> int:
        """End every connection of a role to this ledger; how many there were."""
        await self.engine(role).dispose()
        async with self.connection(role) as connection:
            found = await connection.exec_driver_sql(
                "SELECT id FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            numbers = list(found.scalars())
            for number in numbers:
                with suppress(DBAPIError):  # it ended by itself
                    await connection.exec_driver_sql(f"KILL {number}")
        return len(numbers)

    async def head(self) -> Head:
        """Where the ledger ends."""
        async with self.connection() as connection:
            return await EventReader(connection).head()

    async def records(self) -> list[Record]:
        """The whole ledger."""
        async with self.connection() as connection:
            found: list[Record] = []
            async for page in EventReader(connection).pages(0):
                found += page.records
            return found

    async def forget_events(self) -> None:
        """Go back to before the first event, as only an operator can; the keys stay."""
        for trigger in ("events_no_delete", "events_no_update"):
            await self.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        await self.execute("DELETE FROM events")
        await self.execute("UPDATE ledger_head SET position = 0, hash = REPEAT(CHAR(0), 32)")

    async def keys(self) -> dict[bytes, bytes | None]:
        """The key of each customer."""
        rows: Any = await self.rows("SELECT customer_id, sealing_key FROM customer_keys", "writer")
        return dict(rows)

    async def until_running(self, statement: str, role: str = "migrate") -> None:
        """Wait until another connection runs, or waits with, a statement that is LIKE this."""

        async def is_running() -> bool:
            found = await self.rows(
                "SELECT 1 FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID() AND info LIKE %s",
                role,
                statement,
            )
            return bool(found)

        await eventually(is_running, f"{statement} is running")

    async def until_recorded(self, events: Iterable[Submitted]) -> list[Record]:
        """Wait until the ledger has these events; all of it then."""
        wanted = [event.event_id.bytes for event in events]

        async def have_all() -> bool:
            async with self.connection() as connection:
                recorded, _ = await Store(connection).duplicates_and_versions(wanted, [b""])
                return len(recorded) == len(set(wanted))

        await eventually(have_all, f"{len(wanted)} events are recorded")
        return await self.records()

    async def until_inbox_empty(self) -> None:
        """Wait until the writer has got all there was."""

        async def is_empty() -> bool:
            return await self.depth(INBOX) == 0

        await eventually(is_empty, "the inbox is empty")

    async def until_parked(self, count: int) -> list[tuple[bytes, str]]:
        """Wait until so many messages are parked; each with its reason. They are taken out."""

        async def are_parked() -> bool:
            return await self.depth(PARKING) >= count

        await eventually(are_parked, f"{count} messages are parked")
        return await self._parked()

    async def depth(self, queue: str) -> int:
        """How many messages wait in a queue, deliveries that are not acked left out."""
        async with Connection(self.settings.amqp_url("migrate"), "t").channel(
            confirms=False
        ) as channel:
            found = await channel.declare_queue(queue, passive=True)
            return found.declaration_result.message_count or 0

    async def put(self, *bodies: bytes) -> None:
        """Put messages into the inbox just as they are."""
        connection = Connection(self.settings.amqp_url("migrate"), "t")
        async with connection.channel(confirms=True) as channel:
            exchange = await channel.get_exchange(SUBMITTED_EXCHANGE)
            for body in bodies:
                message = Message(
                    body, delivery_mode=DeliveryMode.PERSISTENT, user_id="ledger_migrate"
                )
                await exchange.publish(message, routing_key="")

    async def put_events(self, *groups: Iterable[Submitted]) -> None:
        """Put groups of events into the inbox, each as one message."""
        await self.put(*(group_of(group) for group in groups))

    async def waiting(self) -> list[list[Submitted]]:
        """The first messages of the inbox with their events; they go on waiting there."""
        count = min(await self.depth(INBOX), PREFETCH)
        async with open_inbox(Connection(self.settings.amqp_url("writer"), "look")) as inbox:
            found = [await inbox.batch(1, 5) for _ in range(count)]
        return [batch.events for batch in found if batch]

    async def _parked(self) -> list[tuple[bytes, str]]:
        """What is parked."""
        found = []
        async with Connection(self.settings.amqp_url("migrate"), "t").channel(
            confirms=False
        ) as channel:
            queue = await channel.declare_queue(PARKING, passive=True)
            while message := await queue.get(fail=False):
                found.append((message.body, str(message.headers["x-reason"])))
                await message.ack()
        return found

    def make_writer(
        self,
        settings: Settings | None = None,
        *,
        snapshot_every: int = 50_000,
        read_timeout_s: float = 15,
        clock_limit_s: float = 300,
        now_us: Callable[[], int] = now_us,
        **options: Any,
    ) -> tuple[Writer, Notifier]:
        """A writer and its notifier; other settings may lead it through a proxy."""
        chosen = settings or self.settings
        url, name = chosen.amqp_url("writer"), f"writer-{next(_numbers)}"
        engine = self.make_engine("writer", chosen, read_timeout_s=read_timeout_s)
        self._engines[name] = engine
        consuming, publishing = Connection(url, name), Connection(url, f"{name}-publisher")
        notifier = Notifier(publishing, RECORDED_EXCHANGE)
        writer = Writer(
            engine,
            consuming,
            publishing,
            notifier,
            snapshot_every=snapshot_every,
            clock=Clock(clock_limit_s, now_us),
            **options,
        )
        return writer, notifier

    @asynccontextmanager
    async def writing(
        self, settings: Settings | None = None, **options: Any
    ) -> AsyncIterator[Writer]:
        """A running writer; leaving the block ends it as abruptly as a crash."""
        writer, notifier = self.make_writer(settings, **options)
        async with beside(writer.run(), notifier.run()):
            yield writer

    @asynccontextmanager
    async def publishing(
        self, settings: Settings | None = None, watch: HeadWatch | None = None
    ) -> AsyncIterator[Publisher]:
        """A connected publisher."""
        # As the operator, who may submit all there is.
        connection = Connection((settings or self.settings).amqp_url("migrate"), "tests")
        publisher = Publisher(connection, "/tests", "tests", watch=watch, user_id="ledger_migrate")
        async with beside(publisher.run()):
            await until_connected(publisher)
            yield publisher

    @asynccontextmanager
    async def projecting(self, settings: Settings | None = None) -> AsyncIterator[Projector]:
        """A running projector that listens to notifications and announces."""
        chosen = settings or self.settings
        url, name = chosen.amqp_url("projector"), f"projector-{next(_numbers)}"
        self._engines[name] = engine = make_engine(chosen.db_url("projector"))
        announcer = Notifier(Connection(url, f"{name}-publisher"), ANNOUNCED_EXCHANGE)
        projector = Projector(engine, PROJECTIONS, announcer)
        listening = listen(Connection(url, name), projector)
        async with beside(projector.run(), listening, announcer.run()):
            yield projector

    async def write(self, *groups: Iterable[Submitted]) -> list[Record]:
        """Let a real writer decide groups of events; the whole ledger afterwards."""
        waiting = await self.depth(INBOX)
        await self.put_events(*groups)
        async with self.writing() as writer:
            await until_acked(writer, waiting + len(groups))
        return await self.records()


async def seen_by(ledger: Ledger) -> SeenHead:
    """The head as an API of this ledger sees it now."""
    async with ledger.connection("api") as connection:
        return await read_head(connection)


async def until_acked(writer: Writer, messages: int) -> None:
    """Wait until a writer has acked so many messages."""

    async def are_acked() -> bool:
        return writer.progress.messages >= messages

    await eventually(are_acked, f"{messages} messages are acked")


def group_of(events: Iterable[Submitted]) -> bytes:
    """Events as one message."""
    return encode_group(encode_submitted(event, "/tests") for event in events)


async def until_connected(publisher: Publisher) -> None:
    """Wait until the publisher has its connection, again."""

    async def is_connected() -> bool:
        return publisher.connected

    await eventually(is_connected, "the publisher is connected")


@asynccontextmanager
async def running_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """A ledger whose connections are closed in the end."""
    async with AsyncExitStack() as stack:
        ledger = Ledger(settings)
        stack.push_async_callback(ledger.close)
        yield ledger
