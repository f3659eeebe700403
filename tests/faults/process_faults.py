"""Processes that die, stop, end or are started in any order; and what fails at named moments."""

import asyncio
import shutil
import signal
import tempfile
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Final, get_args

from aio_pika.abc import AbstractIncomingMessage

from ledger.messaging.consumer import PREFETCH
from ledger.messaging.rabbitmq import BROKER_ERRORS, Connection
from ledger.messaging.topology import INBOX
from ledger.runtime import failpoints
from tests.faults.fault import Inject, add
from tests.faults.requirements import libfaketime
from tests.faults.world import APIS, PARTS, SERVERS, World
from tests.harness import eventually

# Generous: on a busy machine a process takes many seconds to start.
REACHED_WITHIN_S: Final = 60.0
CRASHES: Final = 50
PROCESSES: Final = ("publisher", "writer", "projector")
"""What failpoints of long-running processes are named after."""

OURS: Final = "processes"
TARGETS: Final = ("api", "writer", "projector", *SERVERS)


def victim(target: str, chance: Random) -> str:
    """The process that stands for a target; of the API processes one is chosen."""
    return chance.choice(APIS) if target == "api" else target


def kill(target: str) -> Inject:
    """kill -9, and a new start some time later."""

    async def inject(world: World, chance: Random, seconds: float) -> None:
        name = victim(target, chance)
        async with world.turns[name]:
            world.kill(name)
            await asyncio.sleep(chance.uniform(0, seconds))
            await world.start_again(name)
            await world.until_works(name)

    return inject


def pause(target: str) -> Inject:
    """SIGSTOP, and SIGCONT some time later."""

    async def inject(world: World, chance: Random, seconds: float) -> None:
        name = victim(target, chance)
        world.send(name, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        world.send(name, signal.SIGCONT)

    return inject


def terminate(target: str) -> Inject:
    """SIGTERM under load: it must end well, and is started again."""

    async def inject(world: World, chance: Random, _: float) -> None:
        name = victim(target, chance)
        async with world.turns[name]:
            await world.end(name)
            await world.start_again(name)
            await world.until_works(name)

    return inject


async def kill_all(world: World, chance: Random, _: float) -> None:
    """Everything dies at once, and is started in some order."""
    names = [*SERVERS, *PARTS]
    for name in names:
        world.kill(name)
    chance.shuffle(names)
    world.history.note("order", names)
    async with asyncio.TaskGroup() as starting:
        for name in names:
            starting.create_task(world.start_again(name))
            await asyncio.sleep(chance.uniform(0, 1))


def restart(*order: str) -> Inject:
    """Everything dies at once, and is started in this order, each once the one before it is up."""

    async def inject(world: World, chance: Random, _: float) -> None:
        for name in (*SERVERS, *PARTS):
            world.kill(name)
        for group in order:
            for name in PARTS if group == OURS else (group,):
                await world.start_again(name)
            await asyncio.sleep(1)

    return inject


async def standby(world: World, chance: Random, seconds: float) -> None:
    """Two writers; the one that works dies, and comes back."""
    world.start("writer.2")
    await world.until_writers(2)
    world.kill("writer")
    await asyncio.sleep(seconds)
    world.start("writer")


async def upgrade(world: World, chance: Random, seconds: float) -> None:
    """The new writer starts before the old one is asked to end, twice."""
    for new, old in (("writer.2", "writer"), ("writer", "writer.2")):
        world.start(new)
        await world.until_writers(2)
        await world.end(old)
        await asyncio.sleep(seconds)


async def overtaken(world: World, chance: Random, seconds: float) -> None:
    """A writer stops in mid-work, loses its connection and is replaced; then it wakes up."""
    world.start("writer.2")
    await world.until_writers(2)
    world.send("writer", signal.SIGSTOP)
    world.links["writer-broker"].reset()
    await asyncio.sleep(seconds)
    world.send("writer", signal.SIGCONT)
    await asyncio.sleep(seconds)


async def missed_heartbeats(world: World, chance: Random, _: float) -> None:
    """The same, where the broker gives it up because it says nothing for too long."""
    world.start("writer.2")
    await world.until_writers(2)
    world.send("writer", signal.SIGSTOP)
    await asyncio.sleep(35)
    world.send("writer", signal.SIGCONT)
    await asyncio.sleep(2)


def fails_at(name: str, action: str) -> Inject:
    """A process is started that fails at a failpoint."""
    part = "api" if name.startswith("publisher.") else name.partition(".")[0]

    async def inject(world: World, chance: Random, seconds: float) -> None:
        victim_ = victim(part, chance)
        at = 1 if name == "writer.after-fence" else chance.randint(1, 6)
        spec = f"delay:{seconds}" if action == "delay" else action
        world.kill(victim_)
        log = world.stack.log_path(victim_)
        before = log.stat().st_size
        world.start(victim_, f"{name}={spec}@{at}")

        async def is_reached() -> bool:
            with log.open("rb") as lines:
                lines.seek(before)
                return f"failpoint {name}, pass {at}".encode() in lines.read()

        await eventually(is_reached, f"{victim_} reaches {name}", REACHED_WITHIN_S)
        await asyncio.sleep(seconds)
        await world.start_again(victim_)

    return inject


async def crashes_in_a_row(world: World, chance: Random, _: float) -> None:
    """A consumer takes a full prefetch and dies, again and again: nothing may be dropped."""
    world.kill("writer")
    url = world.settings.amqp_url("writer")
    for _ in range(CRASHES):
        try:
            async with Connection(url, "crashing").channel(confirms=False) as channel:
                await channel.set_qos(prefetch_count=PREFETCH)
                queue = await channel.declare_queue(INBOX, passive=True)
                got: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
                await queue.consume(got.put)
                async with asyncio.timeout(1):
                    await got.get()
        except BROKER_ERRORS as error:
            world.history.note("crashing", repr(error))
    world.start("writer")


async def writer_crashes_in_a_row(world: World, chance: Random, _: float) -> None:
    """The real writer dies before its first COMMIT, again and again."""
    for _ in range(CRASHES):
        world.kill("writer")
        world.start("writer", "writer.before-commit=die")

        async def is_dead() -> bool:
            return not world.runs("writer")

        await eventually(is_dead, "the writer dies", REACHED_WITHIN_S)
    await world.start_again("writer")


async def clock_jumps(world: World, chance: Random, seconds: float) -> None:
    """The clocks of all our processes jump, forth and back."""
    directory = Path(tempfile.mkdtemp(prefix="ledger-clock-"))
    clock = directory / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(libfaketime()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    async with world.nobody_asking():
        for part in PARTS:
            world.kill(part)
            world.start(part, more=faked)
        await world.until_ready()
    for _ in range(4):
        jump = chance.choice([3600, -3600, 86400, -86400, 30, -30])
        world.history.note("clock", jump)
        clock.write_text(f"{jump:+d}")
        await asyncio.sleep(1 + seconds / 4)
    clock.write_text("+0")
    world.on_heal(lambda: asyncio.to_thread(shutil.rmtree, directory))


for _target in TARGETS:
    add(f"kill:{_target}", kill(_target))
    add(f"pause:{_target}", pause(_target))
    add(f"terminate:{_target}", terminate(_target))
for _name in sorted(failpoints.NAMES):
    _part = _name.partition(".")[0]
    for _action in get_args(failpoints.Action) if _part in PROCESSES else ():
        add(f"failpoint:{_name}={_action}", fails_at(_name, _action), alone=True)
add("kill-all", kill_all, alone=True)
for _order in permutations((OURS, *SERVERS)):
    add(f"kill-all:{'-'.join(_order)}", restart(*_order), alone=True)
add("writers:standby", standby, alone=True)
add("writers:upgrade", upgrade, alone=True)
add("writers:overtaken", overtaken, alone=True)
add("writers:missed-heartbeats", missed_heartbeats, alone=True, slow=True)
add("crashes:consumer", crashes_in_a_row, alone=True)
add("crashes:writer", writer_crashes_in_a_row, alone=True, slow=True)
add("clock", clock_jumps, alone=True)
