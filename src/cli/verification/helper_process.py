"""A second process that verifies a part beside this one: the same command, for that part only."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from cli.settings import Settings
from cli.verification import Audited, Finding
from ledger.eventlog.chain import VerificationFailed
from projections.check import CheckedView

COMMAND: Final = ("-c", "from cli.main import app; app()", "verify", "--json")
HELPS: Final = "LEDGER_VERIFY_HELPS"
"""In the environment of a helper: the process that it helps."""
LOOK_EVERY_S: Final = 1.0


class HelperFailed(Exception):
    """The other process could not verify its part."""


class Answer(Struct, frozen=True):
    """What the other process prints: what it found right, or the first thing that is wrong."""

    ledger: Audited | None = None
    views: list[CheckedView] = []
    wrong: Finding | None = None


_decode = Decoder(Answer).decode


class Helper:
    """The other process, at work."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def answer(self) -> Answer:
        """What it found right; raises VerificationFailed, and HelperFailed."""
        out, said = await self._process.communicate()
        try:
            answer = _decode(out)
        except DecodeError as error:
            raise HelperFailed(said.decode(errors="replace").strip()) from error
        if answer.wrong:
            raise VerificationFailed(answer.wrong.position, answer.wrong.what)
        return answer


@asynccontextmanager
async def helping(settings: Settings, *arguments: str) -> AsyncIterator[Helper]:
    """A helper with these arguments, which ends with the block at the latest."""
    names = settings.model_dump(exclude_none=True)
    given = {f"LEDGER_{name.upper()}": str(value) for name, value in names.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *COMMAND,
        *arguments,
        env=os.environ | given | {HELPS: str(os.getpid())},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield Helper(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def helped() -> int:
    """The process that this one helps, or 0."""
    return int(os.environ.get(HELPS, "0"))


async def end_with(parent: int) -> None:
    """End this process soon after its parent: nobody waits for what it finds any more."""
    while os.getppid() == parent:  # noqa: ASYNC110  # no event tells of its end
        await asyncio.sleep(LOOK_EVERY_S)
    os._exit(1)
