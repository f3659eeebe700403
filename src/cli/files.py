"""Small files that commands write."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, whole; raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; raises FileExistsError rather than replace one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def read_secret(path: Path) -> bytes:
    """Read such a file; raises PermissionError where others may read it, too."""
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"others may read {path}: chmod 600 {path}")
    return path.read_bytes()
