"""Connections that break, between processes and servers and between clients and the API."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Final

from tests.faults.fault import Inject, add
from tests.faults.world import APIS, BROKER, DATABASE, World
from tests.proxy import BASIC_ACK, COMMIT, Direction, Proxy

Break = Callable[[Proxy, Random], None]

LINKS: Final = {
    "api-broker": [f"{api}-{BROKER}" for api in APIS],
    "api-database": [f"{api}-{DATABASE}" for api in APIS],
    "client-api": [f"client-{api}" for api in APIS],
    "writer-broker": [f"writer-{BROKER}"],
    "writer-database": [f"writer-{DATABASE}"],
    "projector-broker": [f"projector-{BROKER}"],
    "projector-database": [f"projector-{DATABASE}"],
}


def one_way(chance: Random) -> Direction:
    """A direction by chance."""
    return "up" if chance.random() < 0.5 else "down"


BREAKS: Final[dict[str, Break]] = {
    "reset": lambda link, _: link.reset(),
    "cut": lambda link, _: link.cut(),
    "half-close": lambda link, chance: link.half_close(one_way(chance)),
    "black-hole": lambda link, _: link.stall(),
    "one-way": lambda link, chance: link.stall(one_way(chance)),
    "delay": lambda link, chance: link.delay(chance.uniform(0.02, 0.8)),
    "trickle": lambda link, chance: link.trickle(chance.uniform(0.001, 0.01)),
    "cut-after": lambda link, chance: link.cut_after(chance.randint(0, 4000), one_way(chance)),
}


def broken(how: str, links: str) -> Inject:
    """A connection is broken for a while; what was held up either arrives late or is lost."""

    async def inject(world: World, chance: Random, seconds: float) -> None:
        link = world.links[chance.choice(LINKS[links])]
        BREAKS[how](link, chance)
        await asyncio.sleep(seconds)
        if chance.random() < 0.5:
            link.reset()
        await link.heal()

    return inject


def lost(link: str, pattern: bytes, *, delivered: bool) -> Inject:
    """One message, or the answer to it, is lost with its connection, twice."""

    async def inject(world: World, chance: Random, seconds: float) -> None:
        for _ in range(2):
            world.links[link].lose(pattern, delivered=delivered)
            await asyncio.sleep(seconds)

    return inject


async def confirms_lost(world: World, chance: Random, seconds: float) -> None:
    """What was published arrives, and the broker's next answer does not."""
    for _ in range(3):
        link = world.links[chance.choice(LINKS["api-broker"])]
        link.cut_after(0, "down")
        await asyncio.sleep(seconds / 3 + 0.5)


for _links in LINKS:
    for _how in BREAKS:
        add(f"network:{_how}:{_links}", broken(_how, _links))
for _delivered in (True, False):
    _what = "answer" if _delivered else "message"
    add(f"lost:{_what}:commit", lost("writer-database", COMMIT, delivered=_delivered))
    add(f"lost:{_what}:ack", lost("writer-broker", BASIC_ACK, delivered=_delivered))
    add(f"lost:{_what}:view-commit", lost("projector-database", COMMIT, delivered=_delivered))
add("lost:answer:confirm", confirms_lost)
