"""Operators' commands that fail in the middle, on a ledger that is written and read meanwhile."""

import asyncio
import signal
from collections.abc import Sequence
from hashlib import sha256
from random import Random
from typing import Final, get_args
from uuid import uuid4

from ledger.runtime import failpoints
from tests.faults.fault import Inject, add
from tests.faults.world import World
from tests.harness import eventually

REBUILD: Final = ("rebuild", "orders", "stock", "wallets")
DISCARD: Final = ("parked", "discard", "--all", "--reason", "*", "--yes")
COMMANDS: Final = {"rebuild": REBUILD, "parked": DISCARD}
"""By what their failpoints are named after."""


def fails_in(command: Sequence[str], name: str, action: str) -> Inject:
    """A command fails at a failpoint; done again it does what it is for."""

    async def inject(world: World, chance: Random, seconds: float) -> None:
        spec = f"delay:{seconds}" if action == "delay" else action
        planted = await plant(world) if command is DISCARD else []
        running = asyncio.create_task(world.command(*command, failpoints=f"{name}={spec}@1"))
        await asyncio.wait((running,), timeout=seconds + 3)
        await go_on(world, running)
        status, said = await running
        assert f"failpoint {name}, pass 1" in said, said
        assert status in {"die": (-9,), "raise": (0, 1)}.get(action, (0,)), said
        await do(world, *command)
        if command is REBUILD:
            await do(world, *command, "--drop-old")
        await are_discarded(world, planted)

    return inject


async def go_on(world: World, running: asyncio.Task[tuple[int, str]]) -> None:
    """Let a command go on that has stopped itself."""
    while not running.done():
        world.signal_command(signal.SIGCONT)
        await asyncio.wait((running,), timeout=0.2)


async def do(world: World, *command: str) -> None:
    """Run a command that must do what it is for."""
    status, said = await world.command(*command)
    if status:
        world.history.violate(f"`ledger {' '.join(command)}` ended with status {status}: {said}")


async def plant(world: World) -> list[bytes]:
    """Have two unreadable messages parked."""
    bodies = [b"unreadable " + uuid4().bytes for _ in range(2)]
    await world.ledger.put(*bodies)

    async def are_parked() -> bool:
        return await world.parked() >= len(bodies)

    await eventually(are_parked, "messages are parked")
    return bodies


async def are_discarded(world: World, bodies: Sequence[bytes]) -> None:
    """See that messages are in the record of what was discarded."""
    found = await world.ledger.rows("SELECT message_id FROM parking_log")
    recorded = {message_id for (message_id,) in found}
    for body in bodies:
        if sha256(body).digest() not in recorded:
            world.history.violate(f"discarded without a record: {body!r}")


async def rebuild_killed(world: World, chance: Random, seconds: float) -> None:
    """A rebuild dies at some time, twice; the third one is done with it."""
    for _ in range(2):
        running = asyncio.create_task(world.command(*REBUILD))
        await asyncio.sleep(chance.uniform(0.5, 1.5))
        world.signal_command(signal.SIGKILL)
        await running
    await do(world, *REBUILD)


async def rebuilt(world: World, chance: Random, seconds: float) -> None:
    """Views are made anew and swapped in, forth and back."""
    await do(world, "rebuild", "--all")
    await do(world, "rebuild", "orders", "--undo")
    await do(world, "rebuild", "--all", "--drop-old")


for _name in sorted(failpoints.NAMES):
    if _command := COMMANDS.get(_name.partition(".")[0]):
        for _action in get_args(failpoints.Action):
            add(f"failpoint:{_name}={_action}", fails_in(_command, _name, _action), alone=True)
add("rebuild:killed", rebuild_killed, alone=True)
add("rebuild:all", rebuilt, alone=True)
