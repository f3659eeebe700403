"""Failpoints: named places in the code at which a test makes the process fail.

All are off unless LEDGER_FAILPOINTS turns some on, as in
`writer.after-commit=die@3,publisher.before-confirm=delay:0.5`. While all are off, a failpoint costs
a look into an empty dict.
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

# At `before-confirm`, `commit-sent` and `swap-sent` the bytes have left, and no answer was read.
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
# Turns of the event loop: more than bytes need to pass through the queues into the socket.
TURNS_TO_SEND: Final = 10

_SPEC: Final = re.compile(
    r"(?P<name>[a-z.-]+)=(?P<action>die|stop|raise|delay)(:(?P<seconds>\d+(\.\d+)?))?(@(?P<at>\d+))?"
)

Action = Literal["die", "stop", "raise", "delay"]
Answer = TypeVar("Answer")


class BadFailpoint(ValueError):
    """The text is not NAME=ACTION of a failpoint that exists."""


class FailpointReached(ConnectionError):
    """Raised by the action `raise`; to the code it is a connection that broke."""


class Failpoint(Struct, frozen=True):
    """An action at a failpoint: at its pass number `at`, counted from 1, or at every pass if 0."""

    action: Action
    delay_s: float = 0.0
    at: int = 0


_armed: dict[str, Failpoint] = {}
_passes: dict[str, int] = {}


def parse(text: str) -> dict[str, Failpoint]:
    """The failpoints of a setting by name; raises BadFailpoint."""
    failpoints: dict[str, Failpoint] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = _SPEC.fullmatch(part)
        if not match or (match["action"] == "delay") != bool(match["seconds"]):
            raise BadFailpoint(
                f"{part!r} must be NAME=die|stop|raise|delay:SECONDS, then perhaps @PASS"
            )
        if match["name"] not in NAMES:
            raise BadFailpoint(f"{match['name']!r} must be one of {', '.join(sorted(NAMES))}")
        action: Action = match["action"]  # type: ignore[assignment]  # the pattern takes no other
        failpoints[match["name"]] = Failpoint(
            action, float(match["seconds"] or 0), int(match["at"] or 0)
        )
    return failpoints


def arm(text: str) -> None:
    """Turn on these failpoints and no others; raises BadFailpoint."""
    armed = parse(text)
    _armed.clear()
    _passes.clear()
    _armed.update(armed)


def warn() -> None:
    """Log a warning for each failpoint that is on."""
    for name, failpoint in _armed.items():
        log.warning("FAILPOINT %s IS ON: THIS PROCESS FAILS ON PURPOSE (%s)", name, failpoint)


async def failpoint(name: str) -> None:
    """Fail here if this failpoint is on; `raise` raises FailpointReached."""
    if _armed:
        await _reach(name)


async def failpoint_after_send(name: str, call: Awaitable[Answer]) -> Answer:
    """Await a call to a server; if this failpoint is on, fail once the call has sent its bytes."""
    if name not in _armed:
        return await call
    task = asyncio.ensure_future(call)
    try:
        for _ in range(TURNS_TO_SEND):
            await asyncio.sleep(0)
        await _reach(name)
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
