"""Failpoints: named moments in the code at which a test makes the process fail.

All are off unless LEDGER_FAILPOINTS turns some on, as in
`writer.after-commit=die@3,publisher.before-confirm=delay:0.5`. While all are off, each costs a
look into an empty dict.
"""

import asyncio
import logging
import os
import re
import signal
from collections.abc import Awaitable
from typing import Final, Literal, TypeVar

from msgspec import Struct

log = logging.getLogger(__name__)

NAMES: Final = frozenset(
    {
        "publisher.before-publish",
        "publisher.before-confirm",
        "publisher.after-confirm",
        "writer.after-fence",
        "writer.after-insert",
        "writer.before-commit",
        "writer.commit-sent",
        "writer.after-commit",
        "writer.after-ack",
        "projector.before-commit",
        "projector.after-commit",
        "parked.before-log",
        "parked.before-ack",
        "rebuild.after-create",
        "rebuild.before-commit",
        "rebuild.after-commit",
        "rebuild.after-load",
        "rebuild.before-swap",
        "rebuild.swap-sent",
        "rebuild.after-swap",
    }
)
"""`before-confirm` and `commit-sent` come when the bytes have left and no answer was looked at."""

TURNS_TO_SEND: Final = 10
"""Of the event loop: more than what is written needs to pass through queues into the socket."""

_SPEC: Final = re.compile(
    r"(?P<name>[a-z.-]+)=(?P<action>die|stop|raise|delay)(:(?P<seconds>\d+(\.\d+)?))?(@(?P<at>\d+))?"
)

Action = Literal["die", "stop", "raise", "delay"]
Answer = TypeVar("Answer")


class BadFailpoint(ValueError):
    """The text does not name a failpoint and what is to happen there."""


class FailpointReached(ConnectionError):
    """What `raise` raises: to the code, its connection broke."""


class Failpoint(Struct, frozen=True):
    """What happens at a failpoint: at its pass number `at`, from 1, or at each if that is 0."""

    action: Action
    delay_s: float = 0.0
    at: int = 0


_armed: dict[str, Failpoint] = {}
_passes: dict[str, int] = {}


def parse(text: str) -> dict[str, Failpoint]:
    """Failpoints by name; raises BadFailpoint."""
    return dict(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(part: str) -> tuple[str, Failpoint]:
    found = _SPEC.fullmatch(part)
    if not found or (found["action"] == "delay") != bool(found["seconds"]):
        raise BadFailpoint(
            f"{part!r} must be NAME=die|stop|raise|delay:SECONDS, then perhaps @PASS"
        )
    if found["name"] not in NAMES:
        raise BadFailpoint(f"{found['name']!r} must be one of {', '.join(sorted(NAMES))}")
    action: Action = found["action"]  # type: ignore[assignment]  # the pattern takes no other
    return found["name"], Failpoint(action, float(found["seconds"] or 0), int(found["at"] or 0))


def arm(text: str) -> None:
    """Turn on these failpoints and no others; raises BadFailpoint."""
    armed = parse(text)
    _armed.clear()
    _passes.clear()
    _armed.update(armed)


def warn() -> None:
    """Say loudly if any is on."""
    for name, failpoint in _armed.items():
        log.warning("FAILPOINT %s IS ON: THIS PROCESS FAILS ON PURPOSE (%s)", name, failpoint)


async def failpoint(name: str) -> None:
    """Fail here, if that is asked for; raises FailpointReached."""
    if _armed:
        await _reach(name)


async def meanwhile(name: str, work: Awaitable[Answer]) -> Answer:
    """Do the work, and fail once it has sent what it has to send; raises FailpointReached too."""
    if name not in _armed:
        return await work
    working = asyncio.ensure_future(work)
    try:
        for _ in range(TURNS_TO_SEND):
            await asyncio.sleep(0)
        await _reach(name)
        return await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _reach(name: str) -> None:
    failpoint = _armed.get(name)
    if failpoint is None:
        return
    _passes[name] = _passes.get(name, 0) + 1
    if failpoint.at not in (0, _passes[name]):
        return
    log.warning("failpoint %s, pass %s: %s", name, _passes[name], failpoint.action)
    match failpoint.action:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise FailpointReached(f"failpoint {name}")
        case "delay":
            await asyncio.sleep(failpoint.delay_s)
