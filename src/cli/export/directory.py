"""The directory of an export: drafts until all of it is there, then their final names."""

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from cli.export import BadExport, ExportRefused, manifest
from cli.export.manifest import Manifest


class DraftFile(io.RawIOBase):
    """A file in the making, summed as it is written; raises ExportRefused where it can't be."""

    def __init__(self, final: Path, mode: int) -> None:
        self.final = final
        self.draft = final.with_name(f".{final.name}.draft")
        self.bytes = 0
        self._sum = sha256()
        with _told(self.draft):
            self.draft.unlink(missing_ok=True)
            self._fd: int | None = os.open(self.draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)

    @property
    def sha256(self) -> str:
        """The sum of what was written, in hex."""
        return self._sum.hexdigest()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Write all of it; nothing once the file is closed, which a writer may learn too late."""
        left = memoryview(data).cast("B")
        length = left.nbytes
        if self._fd is not None:
            self._sum.update(left)
            self.bytes += length
            with _told(self.final):
                while left:
                    left = left[os.write(self._fd, left) :]
        return length

    def finish(self) -> None:
        """Bring it to the disk and close it."""
        if self._fd is not None:
            with _told(self.final):
                os.fsync(self._fd)
            self._let_go()

    def abandon(self) -> None:
        """Close it and remove it."""
        self._let_go()
        with suppress(OSError):
            self.draft.unlink(missing_ok=True)

    def _let_go(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class Draft:
    """An export in the making, in a directory that is locked meanwhile."""

    def __init__(self, directory: Path, lock: int) -> None:
        self._directory = directory
        self._lock = lock
        self._files: list[DraftFile] = []

    def create(self, name: str, mode: int = 0o666) -> DraftFile:
        """A new file of the export; what the umask takes away is not in its mode."""
        self._files.append(DraftFile(self._directory / name, mode))
        return self._files[-1]

    def publish(self, made: Manifest) -> None:
        """Give every file its final name, and the manifest last.

        An export that is replaced loses its manifest first, then the files that the new one does
        not have: no manifest ever stands beside files that it does not describe.
        """
        last = self.create(manifest.NAME)
        last.write(manifest.encode(made))
        for file in self._files:
            file.finish()
        with _told(self._directory):
            self._remove_replaced()
            for file in self._files[:-1]:
                file.draft.replace(file.final)
            os.fsync(self._lock)
            last.draft.replace(last.final)
            os.fsync(self._lock)
        self._files.clear()

    def abandon(self) -> None:
        """Remove the drafts."""
        for file in self._files:
            file.abandon()

    def _remove_replaced(self) -> None:
        try:
            replaced = manifest.read(self._directory)
        except BadExport:
            return
        (self._directory / manifest.NAME).unlink()
        kept = {file.final.name for file in self._files}
        for entry in replaced.files:
            if entry.file not in kept and Path(entry.file).name == entry.file:
                (self._directory / entry.file).unlink(missing_ok=True)


@contextmanager
def drafting(directory: Path, names: list[str], *, overwrite: bool) -> Iterator[Draft]:
    """A directory, made where it is missing, in which files of these names are to be.

    What was not published is removed in the end. Raises ExportRefused: where the directory holds
    one of the names or a manifest already, unless `overwrite`; where another export is under way
    in it; where something can't be written.
    """
    with _told(directory):
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _refuse_taken(directory, lock, names, overwrite)
        draft = Draft(directory, lock)
        try:
            yield draft
        finally:
            draft.abandon()
    finally:
        os.close(lock)
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def _refuse_taken(directory: Path, lock: int, names: list[str], overwrite: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExportRefused(f"another export to {directory} is under way") from None
    taken = [name for name in (manifest.NAME, *names) if (directory / name).exists()]
    if taken and not overwrite:
        raise ExportRefused(
            f"{directory / taken[0]} is there already: choose another --out, or --overwrite"
        )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportRefused(f"can't write {path}: {error.strerror}") from error
