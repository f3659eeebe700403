"""Broker and database in need, full, misconfigured while they run, or losing patience."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Final

from aio_pika.abc import AbstractChannel

from cli.localstack.secrets import PERMISSIONS
from ledger.messaging import topology
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX
from ledger.runtime.database import DATABASE_ERRORS
from tests.faults.fault import Inject, add
from tests.faults.world import BROKER, DATABASE, World
from tests.harness import broker_admin, eventually

ALARM: Final = {
    "memory": (
        ("set_vm_memory_high_watermark", "absolute", "1MB"),
        ("set_vm_memory_high_watermark", "0.4"),
    ),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "512MB")),
}


def alarm(name: str) -> Inject:
    """The broker thinks that it has used up its memory or its disk."""
    raise_, clear = ALARM[name]

    async def inject(world: World, chance: Random, seconds: float) -> None:
        async def undo() -> None:
            await world.ctl(*clear)

        world.on_heal(undo)
        pid = world.pid(BROKER)

        async def is_gone() -> bool:
            return not world.runs(BROKER) or world.pid(BROKER) != pid

        try:
            await world.ctl(*raise_)
        except AssertionError as error:
            await eventually(is_gone, f"the broker goes away, as another fault has it: {error}")
        await asyncio.sleep(seconds)

    return inject


async def inbox_full(world: World, chance: Random, seconds: float) -> None:
    """The inbox takes a handful of messages, and nobody takes them out."""
    path = f"/policies/{world.settings.amqp_vhost}/full"
    policy = {"pattern": f"^{INBOX}$", "definition": {"max-length": 3}, "apply-to": "queues"}
    async with broker_admin(world.servers) as http:
        (await http.put(path, json=policy)).raise_for_status()
    world.send("writer", signal.SIGSTOP)
    await asyncio.sleep(seconds)
    world.send("writer", signal.SIGCONT)
    async with broker_admin(world.servers) as http:
        (await http.delete(path)).raise_for_status()


async def queue_removed(world: World, chance: Random, seconds: float) -> None:
    """The inbox is deleted, when nothing is in it: what is in a queue that is deleted is lost."""
    async with emptied(world) as channel:
        await channel.queue_delete(INBOX)

    async def undo() -> None:
        async with administration(world) as channel:
            await topology.declare(channel, world.settings.inbox_max_length)

    world.on_heal(undo)
    await asyncio.sleep(seconds)


async def without_single_active_consumer(world: World, chance: Random, seconds: float) -> None:
    """An inbox made by mistake feeds two writers at once."""
    async with emptied(world) as channel:
        await world.end("writer")
        await channel.queue_delete(INBOX)
        queue = await channel.declare_queue(
            INBOX, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 10**6}
        )
        await queue.bind(topology.SUBMITTED_EXCHANGE)
        for writer in ("writer", "writer.2"):
            world.start(writer)

    async def undo() -> None:
        async with emptied(world) as channel:
            for writer in ("writer", "writer.2"):
                await world.end(writer)
            await channel.queue_delete(INBOX)
            await topology.declare(channel, world.settings.inbox_max_length)
            world.start("writer")

    world.on_heal(undo)
    await asyncio.sleep(2 * seconds)


@asynccontextmanager
async def emptied(world: World) -> AsyncIterator[AbstractChannel]:
    """Nobody asks for anything, and nothing is in the inbox or on its way out of it."""
    async with world.nobody_asking(), administration(world) as channel:
        await world.until_nothing_left()
        yield channel


@asynccontextmanager
async def administration(world: World) -> AsyncIterator[AbstractChannel]:
    """A channel of the account that may do everything."""
    url = world.settings.amqp_url("migrate")
    async with Connection(url, "faults").channel(confirms=False) as channel:
        yield channel


def permission_removed(role: str) -> Inject:
    """A role may do nothing on the broker."""

    async def inject(world: World, chance: Random, seconds: float) -> None:
        await permit(world, role, ("^$", "^$", "^$"))
        await asyncio.sleep(seconds)
        await permit(world, role, PERMISSIONS[role])

    return inject


async def permit(world: World, role: str, rights: tuple[str, str, str]) -> None:
    """Set what a role may configure, write and read."""
    path = f"/permissions/{world.settings.amqp_vhost}/ledger_{role}"
    named = dict(zip(("configure", "write", "read"), rights, strict=True))
    async with broker_admin(world.servers) as http:
        (await http.put(path, json=named)).raise_for_status()


async def grants_removed(world: World, chance: Random, seconds: float) -> None:
    """The writer may append no more on the database, and the projector not move on."""

    async def undo() -> None:
        await change_grants(world, "GRANT {} TO {}")

    world.on_heal(undo)
    await change_grants(world, "REVOKE {} FROM {}")
    await asyncio.sleep(seconds)
    await undo()


async def change_grants(world: World, how: str) -> None:
    """Give or take what the ledger can't do without."""
    for right, role in (("INSERT ON events", "writer"), ("UPDATE ON checkpoints", "projector")):
        await world.ledger.execute(how.format(right, f"'ledger_{role}'@'%%'"))


def consumer_timeout(timeout_s: int, tick_s: int) -> Inject:
    """The broker closes the channel of a writer that holds what it was given for too long."""

    async def inject(world: World, chance: Random, _: float) -> None:
        async def allow(timeout_ms: int, tick_ms: int) -> None:
            for name, value in (
                ("consumer_timeout", timeout_ms),
                ("channel_tick_interval", tick_ms),
            ):
                await world.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")

        async def undo() -> None:
            await allow(1_800_000, 60_000)

        world.on_heal(undo)
        await allow(timeout_s * 1000, tick_s * 1000)
        world.kill("writer")
        slow_s = timeout_s + 2 * tick_s
        world.start("writer", f"writer.after-commit=delay:{slow_s}@2")
        await asyncio.sleep(slow_s + 2)

    return inject


async def connections_dropped(world: World, chance: Random, seconds: float) -> None:
    """The database ends every connection of our processes, twice, unless it ends itself."""
    for _ in range(2):
        for role in ("writer", "projector", "api"):
            with suppress(*DATABASE_ERRORS):
                await world.ledger.kill_connections(role)
        await asyncio.sleep(seconds / 2)


for _name in ALARM:
    add(f"alarm:{_name}", alarm(_name))
add("inbox-full", inbox_full, alone=True)
add("queue-removed", queue_removed, alone=True)
add("writers:without-single-active-consumer", without_single_active_consumer, alone=True)
for _role in ("api", "writer", "projector"):
    add(f"permission-removed:{_role}", permission_removed(_role), alone=True)
add("permission-removed:database", grants_removed, alone=True)
add("consumer-timeout:short", consumer_timeout(2, 1), alone=True)
add("consumer-timeout:60s", consumer_timeout(60, 10), alone=True, slow=True)
add(f"connections-dropped:{DATABASE}", connections_dropped)
