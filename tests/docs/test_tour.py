"""The tour of the README works as printed."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from tests.harness import DEADLINE_S, Stack, environment, eventually
from tests.packages import require_program
from tests.warm import BIN, COMMAND

README = Path(__file__).parents[2] / "README.md"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
VARYING = re.compile(rf"(?P<uuid>{UUID})|(?P<hash>[0-9a-f]{{64}})|(?P<time>[-0-9T:.]{{26}}Z)")


def examples() -> list[tuple[str, str]]:
    """Each command of the tour with the output that is printed below it."""
    tour = README.read_text().split("## A tour in two minutes", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```console\n(.*?)```", tour, re.DOTALL)
    steps = [step for block in blocks for step in block.split("$ ")[1:]]
    return [(command, output) for command, _, output in (step.partition("\n") for step in steps)]


class Reader:
    """Someone who types the tour's commands, with the ids that came back instead of the printed."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._ids: dict[str, str] = {}
        self._variables = ""

    async def type(self, command: str, printed: str) -> None:
        """Run a command; what only looks is run again until it shows what is printed."""
        if command.startswith("API="):
            self._variables = command.replace("http://127.0.0.1:8000", self._stack.url)
            return
        looks_only = " -d " not in command and "-X" not in command
        if looks_only:
            await eventually(self._trying(command, printed), f"{command} prints {printed}")
        else:
            shown = await self._run(command)
            assert self._matches(printed, shown), f"{command} printed {shown}"

    def _trying(self, command: str, printed: str) -> Callable[[], Awaitable[bool]]:
        async def matches() -> bool:
            return self._matches(printed, await self._run(command))

        return matches

    async def _run(self, command: str) -> str:
        for printed, real in self._ids.items():
            command = command.replace(printed, real)
        command = command.replace(".venv/bin", str(BIN))
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            f"{self._variables}\n{command}",
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | environment(self._stack.settings),
        )
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        return "\n".join(line.rstrip() for line in output.decode().splitlines())

    def _matches(self, printed: str, shown: str) -> bool:
        found = re.fullmatch("".join(self._pattern(printed.strip("\n"))), shown)
        if not found:
            return False
        new = [uuid for uuid in re.findall(UUID, printed) if uuid not in self._ids]
        self._ids |= dict(zip(dict.fromkeys(new), found.groups(), strict=True))
        return True

    def _pattern(self, printed: str) -> Iterator[str]:
        seen = set(self._ids)
        end = 0
        for varying in VARYING.finditer(printed):
            yield re.escape(printed[end : varying.start()])
            end = varying.end()
            text = varying.group()
            if varying["uuid"]:
                yield self._ids.get(text, UUID) if text in seen else f"({UUID})"
                seen.add(text)
            else:
                yield "[0-9a-f]{64}" if varying["hash"] else "[-0-9T:.]{26}Z"
        yield re.escape(printed[end:])


def test_the_tour_has_examples() -> None:
    assert len(examples()) > 8


async def test_the_tour_works_as_printed(make_stack: Callable[..., Awaitable[Stack]]) -> None:
    require_program("curl")
    stack = await make_stack()
    demo = await asyncio.create_subprocess_exec(
        COMMAND,
        "demo",
        env=os.environ | environment(stack.settings),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await asyncio.wait_for(demo.wait(), DEADLINE_S) == 0
    reader = Reader(stack)
    for command, printed in examples():
        await reader.type(command, printed)
