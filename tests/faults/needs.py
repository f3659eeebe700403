"""What the fault suite needs beyond Python packages and the two servers, installed when missing."""

from functools import cache
from pathlib import Path

from cli.stack.install import install_packages

PLACES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


@cache
def libfaketime() -> Path:
    """The library that lets a process see another time; raises StackRefused naming the remedy."""
    found = _find()
    if found is None:
        install_packages("libfaketime")
        found = _find()
    assert found, "the package libfaketime brought no libfaketimeMT.so.1"
    return found


def _find() -> Path | None:
    for place in PLACES:
        for found in Path(place).glob("**/faketime/libfaketimeMT.so.1"):
            return found
    return None
