"""Disks that fill up under the broker and under the database."""

import asyncio
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import psutil

from tests.faults.fault import add
from tests.faults.requirements import may_mount
from tests.faults.world import BROKER, DATABASE, World
from tests.harness import eventually

SOON_FULL_BYTES: Final = 20_000
FULL_WITHIN_S: Final = 60.0
ROOM_BYTES: Final = 8 * 2**20
"""What a starting database and the last batches before the ballast may need."""

PAGE_BYTES: Final = 4096
BALLAST: Final = "ballast"
COMMAND_WITHIN_S: Final = 30.0
FULL: Final = "is full"
"""What both databases say of a table that can't grow."""


async def broker_disk_full(world: World, chance: Random, seconds: float) -> None:
    """No file of the broker can grow any more, so its log of the queues can't be written."""
    files = [
        *(world.servers.home / "rabbitmq").rglob("*.wal"),
        *world.servers.home.glob("logs/rabbitmq*"),
    ]
    largest = max((path.stat().st_size for path in files), default=0)
    limit_files(world, largest + SOON_FULL_BYTES)

    async def undo() -> None:
        limit_files(world, resource.RLIM_INFINITY)

    world.on_heal(undo)
    await asyncio.sleep(seconds)
    await undo()


def limit_files(world: World, size: int) -> None:
    """Let no file of the broker be written beyond so many bytes."""
    script = psutil.Process(world.pid(BROKER))
    for process in (script, *script.children(recursive=True)):
        if process.name() == "beam.smp":
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))


async def database_disk_full(world: World, chance: Random, seconds: float) -> None:
    """The disk that holds the tables fills up, and the database dies before there is more room."""
    async with tables_on_small_disk(world) as disk:
        before = told(world)

        async def is_full() -> bool:
            # MariaDB ends itself where it finds no room in a rollback.
            return told(world) > before or not world.runs(DATABASE)

        fill(disk)
        await eventually(is_full, "a table can't grow", FULL_WITHIN_S)
        await asyncio.sleep(seconds)
    await world.start_again(DATABASE)


def told(world: World) -> int:
    """How often writer and projector were told that a table is full."""
    return sum(len(world.logged(part, FULL)) for part in ("writer", "projector"))


@asynccontextmanager
async def tables_on_small_disk(world: World) -> AsyncIterator[Path]:
    """The database runs with the ledger's tables on a disk of their own, and dies at the end."""
    tables = world.servers.home / "database" / "data" / world.settings.db_name
    aside = world.servers.home / "tables"
    await die(world)
    tables.rename(aside)
    tables.mkdir()
    used = sum(path.stat().st_size for path in aside.iterdir())
    run("mount", "-t", "tmpfs", "-o", f"mode=700,size={used + ROOM_BYTES}", "tables", tables)
    try:
        shutil.copytree(aside, tables, dirs_exist_ok=True)
        await world.start_again(DATABASE)
        yield tables
    finally:
        await die(world)
        (tables / BALLAST).unlink(missing_ok=True)
        shutil.rmtree(aside)
        shutil.copytree(tables, aside)
        run("umount", tables)
        tables.rmdir()
        aside.rename(tables)


async def die(world: World) -> None:
    """Kill the database, and see that it is gone."""
    world.kill(DATABASE)

    async def is_gone() -> bool:
        return not world.runs(DATABASE)

    await eventually(is_gone, "the database is gone")


def fill(disk: Path) -> None:
    """Leave no room at all."""
    with suppress(OSError), (disk / BALLAST).open("wb", buffering=0) as ballast:
        while ballast.write(bytes(PAGE_BYTES)):
            pass


def run(*command: object) -> None:
    """Run a command that must work."""
    subprocess.run([str(each) for each in command], check=True, timeout=COMMAND_WITHIN_S)


add("disk-full:broker", broker_disk_full, alone=True)
if may_mount():
    add("disk-full:database", database_disk_full, alone=True)
