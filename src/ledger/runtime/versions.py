"""The supported versions of Python and the servers, checked by each process that connects.

An older one lacks what the promises rest on, or was never tried, and is refused. A newer one is
most likely fine, and a warning says that nobody has tried it.
"""

import logging
import re
import sys
from typing import Final

log = logging.getLogger(__name__)

Version = tuple[int, int]

# The oldest and the newest, as docs/reference/engines.md has them.
SUPPORTED: Final[dict[str, tuple[Version, Version]]] = {
    "Python": ((3, 11), (3, 14)),
    "RabbitMQ": ((3, 10), (4, 3)),
    "MySQL": ((8, 4), (9, 7)),
    "MariaDB": ((10, 11), (11, 8)),
}
_NUMBER: Final = re.compile(r"(\d+)\.(\d+)")

# What was warned of: each connection asks again.
_warned: set[tuple[str, Version]] = set()


class Unsupported(Exception):
    """A server, or Python, is older than what this project supports."""


def version_of(text: str) -> Version | None:
    """The first two numbers of a version as a server gives it; None where there are none."""
    found = _NUMBER.search(text)
    return (int(found[1]), int(found[2])) if found else None


def check(product: str, version: Version | None) -> None:
    """Raise Unsupported for an old version of a key of SUPPORTED; warn once of a newer one.

    None, of a server that doesn't tell its version, is warned of as well.
    """
    oldest, newest = SUPPORTED[product]
    supported = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]} are supported"
    found = version or (0, 0)
    name = f"{product} {found[0]}.{found[1]}" if version else f"{product} of an unknown version"
    if version and found < oldest:
        raise Unsupported(f"{name} is too old: {supported}, see docs/how-to/upgrade-servers.md")
    if (not version or found > newest) and (product, found) not in _warned:
        _warned.add((product, found))
        log.warning("%s was never tested with this ledger: %s", name, supported)


def check_python() -> None:
    """Check the Python that runs this."""
    check("Python", sys.version_info[:2])
