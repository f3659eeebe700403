"""The directory of an export: its manifest, and its files, which are drafts until all are whole."""

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Final

from msgspec import DecodeError, Struct, json

from cli.export import BadExport, ExportRefused, Format
from cli.export.tables import Column

MANIFEST: Final = "manifest.json"
MANIFEST_VERSION: Final = 1


class File(Struct, frozen=True, omit_defaults=True):
    """One file of an export."""

    file: str
    rows: int
    bytes: int
    sha256: str


class TableFile(File, frozen=True, kw_only=True):
    """The file of the events or of a view."""

    name: str
    columns: tuple[Column, ...]
    view_version: int | None = None


class Manifest(Struct, frozen=True, omit_defaults=True):
    """`manifest.json`: all files are of one `position`; `hash` is that of the event there."""

    manifest_version: int
    format: Format
    position: int
    hash: str
    exported_at: datetime
    ledger_version: str
    tables: tuple[TableFile, ...]
    keys: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """Every file but the manifest."""
        return (*self.tables, *((self.keys,) if self.keys else ()))


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON, indented for people."""
    return json.format(json.encode(manifest), indent=2) + b"\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an export; raises BadExport."""
    path = directory / MANIFEST
    try:
        manifest = json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BadExport(f"there is no {path}: {directory} holds no whole export") from None
    except OSError as error:
        raise BadExport(f"can't read {path}: {error.strerror}") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise BadExport(f"{path} is no manifest that this version reads: {error}") from error
    if manifest.manifest_version != MANIFEST_VERSION:
        raise BadExport(
            f"{path} has manifest_version {manifest.manifest_version}, this is for"
            f" {MANIFEST_VERSION}"
        )
    return manifest


def verified_path(directory: Path, file: File) -> Path:
    """The path of a file of an export whose SHA-256 is that of the manifest; raises BadExport."""
    path = directory / file.file
    if path.parent != directory:
        raise BadExport(f"the manifest names {file.file}, which is not in {directory}")
    try:
        with path.open("rb") as content:
            digest = file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise BadExport(f"can't read {path}: {error.strerror}") from error
    if digest != file.sha256:
        raise BadExport(f"{path} is not what was exported: its SHA-256 is not the manifest's")
    return path


class DraftFile(io.RawIOBase):
    """A file under a hidden name, hashed as it is written; raises ExportRefused on any failure."""

    def __init__(self, final: Path, mode: int) -> None:
        self.final = final
        self.draft = final.with_name(f".{final.name}.draft")
        self.bytes = 0
        self._digest = sha256()
        with _raising_export_refused(self.draft):
            self.draft.unlink(missing_ok=True)
            self._fd: int | None = os.open(self.draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)

    def writable(self) -> bool:
        """True, as the interface asks for."""
        return True

    def write(self, data: Any) -> int:
        """Write all of the data, or none once the file is closed; its length."""
        rest = memoryview(data).cast("B")
        length = rest.nbytes
        # pyarrow's writer still writes its footer when it is collected after a failure.
        if self._fd is not None:
            self._digest.update(rest)
            self.bytes += length
            with _raising_export_refused(self.final):
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        return length

    def finish(self, rows: int) -> File:
        """Bring the content to the disk and close the file; its entry in the manifest."""
        if self._fd is not None:
            with _raising_export_refused(self.final):
                os.fsync(self._fd)
            self._close()
        return File(self.final.name, rows, self.bytes, self._digest.hexdigest())

    def discard(self) -> None:
        """Close and remove the file."""
        self._close()
        with suppress(OSError):
            self.draft.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class Draft:
    """An export that is being written, in a directory whose lock `lock` is held meanwhile.

    `files` are those that have not been published.
    """

    def __init__(self, directory: Path, lock: int) -> None:
        self._directory = directory
        self._lock = lock
        self.files: list[DraftFile] = []

    def create(self, name: str, mode: int = 0o666) -> DraftFile:
        """A new file of the export, with this mode less the umask."""
        self.files.append(DraftFile(self._directory / name, mode))
        return self.files[-1]

    def publish(self, manifest: Manifest) -> None:
        """Give all files their final names, the manifest last.

        The manifest of an export that is replaced goes first, and then the files that the new one
        does not have: so no manifest ever stands beside files that it does not describe.
        """
        last = self.create(MANIFEST)
        last.write(encode_manifest(manifest))
        last.finish(rows=1)
        with _raising_export_refused(self._directory):
            with suppress(BadExport):
                replaced = read_manifest(self._directory)
                (self._directory / MANIFEST).unlink()
                kept = {file.final.name for file in self.files}
                for old in replaced.files:
                    # A manifest that somebody edited must not lead out of the directory.
                    if old.file not in kept and Path(old.file).name == old.file:
                        (self._directory / old.file).unlink(missing_ok=True)
            for file in self.files[:-1]:
                file.draft.replace(file.final)
            # The files must be on the disk before the manifest says that they are.
            os.fsync(self._lock)
            last.draft.replace(last.final)
            os.fsync(self._lock)
        self.files.clear()


@contextmanager
def new_export(directory: Path, names: list[str], *, overwrite: bool) -> Iterator[Draft]:
    """A draft of an export with files of these names, in a directory made where it is missing.

    In the end, files that were not published are removed. Raises ExportRefused if the directory
    holds one of the names or a manifest already, unless `overwrite`; if another export to it is
    under way; if something can't be written.
    """
    with _raising_export_refused(directory):
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportRefused(f"another export to {directory} is under way") from None
        present = [name for name in (MANIFEST, *names) if (directory / name).exists()]
        if present and not overwrite:
            raise ExportRefused(
                f"{directory / present[0]} is there already: choose another --out, or --overwrite"
            )
        draft = Draft(directory, lock)
        try:
            yield draft
        finally:
            for file in draft.files:
                file.discard()
    finally:
        os.close(lock)
        # Directories that were made for an export that failed; those with files in them stay.
        with suppress(OSError):
            for path in missing:
                path.rmdir()


@contextmanager
def _raising_export_refused(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportRefused(f"can't write {path}: {error.strerror}") from error
