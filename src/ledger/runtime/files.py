"""Small files that commands write, whole after a crash."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file so that a crash leaves the old content or the new, whole; raises OSError.

    The file has this mode less the umask, whatever it had before.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        # Before the rename: a crash could otherwise leave the new name with no content.
        os.fsync(file.fileno())
    draft.replace(path)
    # And the directory after it: only then does the rename survive a power failure.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
