"""The tour of the README works when it is pasted as it stands, and prints what is printed there."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.harness import DEADLINE_S, Stack, environment
from tests.packages import require_program
from tests.warm import BIN, COMMAND

README = Path(__file__).parents[2] / "README.md"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
VARYING = re.compile(rf"(?P<id>{UUID})|(?P<hash>[0-9a-f]{{64}})|(?P<time>[-0-9T:.]{{26}}Z)")


def blocks(language: str) -> str:
    """All blocks of the tour in a language, one after the other."""
    tour = README.read_text().split("## A tour in two minutes", 1)[1].split("\n## ", 1)[0]
    return "".join(re.findall(rf"```{language}\n(.*?)```", tour, re.DOTALL))


def comparable(output: str) -> list[str]:
    """The lines, with a number for each id that comes up, and the same text for what varies."""
    ids: dict[str, str] = {}

    def name(varying: re.Match[str]) -> str:
        if varying["id"]:
            return ids.setdefault(varying["id"], f"id {len(ids)}")
        return str(varying.lastgroup)

    return [line.rstrip() for line in VARYING.sub(name, output).splitlines()]


@pytest.mark.parametrize("shell", ["sh", "bash"])
async def test_the_tour_prints_what_it_says_when_it_is_pasted_as_a_whole(
    make_stack: Callable[..., Awaitable[Stack]], shell: str
) -> None:
    require_program("curl")
    stack = await make_stack()
    environ = os.environ | environment(stack.settings)
    demo = await asyncio.create_subprocess_exec(
        COMMAND, "demo", env=environ, stdout=asyncio.subprocess.DEVNULL
    )
    assert await asyncio.wait_for(demo.wait(), DEADLINE_S) == 0
    script = blocks("sh")
    assert script.count("curl") > 8
    # The address and the place of the command are those of this stack; nothing else is changed.
    script = script.replace("http://127.0.0.1:8000", stack.url).replace(".venv/bin", str(BIN))
    process = await asyncio.create_subprocess_exec(
        shell,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environ,
    )
    output, _ = await asyncio.wait_for(process.communicate(script.encode()), DEADLINE_S)
    assert comparable(output.decode()) == comparable(blocks("text"))
