"""What the fault suite needs beyond Python packages and the two servers, installed when missing."""

import re
from functools import cache
from pathlib import Path
from typing import Final

from tests.packages import install_package

PLACES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
CAP_SYS_ADMIN: Final = 21
"""See capabilities(7)."""


@cache
def libfaketime() -> Path:
    """The library that lets a process see another time; raises StackRefused naming the remedy."""
    found = _find()
    if found is None:
        install_package("libfaketime")
        found = _find()
    assert found, "the package libfaketime brought no libfaketimeMT.so.1"
    return found


@cache
def may_mount() -> bool:
    """Whether this process may mount a small file system: root of a container mostly may not."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(found and int(found[1], 16) >> CAP_SYS_ADMIN & 1)


def _find() -> Path | None:
    for place in PLACES:
        for found in Path(place).glob("**/faketime/libfaketimeMT.so.1"):
            return found
    return None
