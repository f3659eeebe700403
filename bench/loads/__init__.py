"""What sends load: wrk as fast as it's answered, k6 at a constant rate."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct, convert

from bench.system import Parties

HERE: Final = Path(__file__).parent
K6: Final = Path(sys.executable).with_name("k6")
CONNECTIONS: Final = 64
GRACE_S: Final = 60


class RequestStats(Struct, frozen=True):
    """One load: how many requests in what time, and how long they took, in µs.

    `refused` were answered otherwise than they should, `broken` not at all, `dropped` never sent.
    """

    requests: int
    duration_us: int
    refused: int
    p50: float
    p90: float
    p99: float
    max: float
    broken: int = 0
    dropped: int = 0

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests * 1e6 / self.duration_us


class LoadFailed(Exception):
    """The load generator ended with an error."""


async def closed(
    url: str, script: str, duration_s: int, *arguments: str, connections: int = CONNECTIONS
) -> RequestStats:
    """As fast as the answers come, over a fixed number of connections (wrk)."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{duration_s}s", "--timeout", "10s", "-s"]
    output = await _run([*command, str(HERE / script), url, "--", *arguments], {}, duration_s)
    return convert(json.loads(output.splitlines()[-1]), RequestStats)


async def opened(
    url: str, kind: str, rate: int, duration_s: int, parties: Parties, size: int = 1
) -> RequestStats:
    """A constant rate of requests, for orders `size` each, whatever the answers take (k6)."""
    command = [str(K6), "run", "--quiet", "--no-usage-report", "--address=", str(HERE / "open.js")]
    settings = {
        "BASE_URL": url,
        "KIND": kind,
        "RATE": str(rate),
        "DURATION_S": str(duration_s),
        "CUSTOMERS": ",".join(parties.customers),
        "PRODUCTS": ",".join(parties.products),
        "SIZE": str(size),
    }
    output = await _run(command, settings, duration_s)
    return convert({"duration_us": duration_s * 1_000_000, **json.loads(output)}, RequestStats)


async def _run(command: list[str], settings: dict[str, str], duration_s: int) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env=os.environ | settings,
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=duration_s + GRACE_S,
        check=False,
    )
    if done.returncode:
        raise LoadFailed(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def installed() -> bool:
    """Whether wrk is there; k6 comes with the development dependencies."""
    return shutil.which("wrk") is not None
