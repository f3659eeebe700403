"""Checks of an export before and while it is read: its sums, its positions and its hashes."""

from collections.abc import Iterable, Iterator
from hashlib import file_digest
from pathlib import Path

from msgspec import DecodeError

from cli.export import BadExport, manifest
from cli.export.formats import ReadEvents, events_of
from cli.export.manifest import File, Manifest
from cli.export.tables import EVENTS
from ledger.eventlog.records import GENESIS_HASH, Record, next_hash

Batches = Iterator[list[Record]]


class EventsExport:
    """The events of an export, and its `keys`: files that have the sums that the manifest names.

    Raises BadExport and NoParquet.
    """

    def __init__(self, directory: Path) -> None:
        self.manifest: Manifest = manifest.read(directory)
        self._read: ReadEvents = events_of(self.manifest.format)
        entry = next((e for e in self.manifest.tables if e.name == EVENTS.name), None)
        if entry is None:
            raise BadExport(
                f"{directory} has no events: `ledger export events` makes such an export"
            )
        self._path = _checked_file(directory, entry)
        keys = self.manifest.keys
        self.keys = _checked_file(directory, keys) if keys else None

    def batches(self) -> Batches:
        """All records in order, each checked; no batch ends between a cause and its decision.

        Raises BadExport, naming the first position that is not as it must be.
        """
        position, hash_ = 0, GENESIS_HASH
        for batch in whole(self._pages()):
            for record in batch:
                position += 1
                hash_ = next_hash(hash_, record)
                if (record.position, record.hash) != (position, hash_):
                    raise BadExport(f"{self._path}: position {position} is not the chain's")
            yield batch
        if (position, hash_.hex()) != (self.manifest.position, self.manifest.hash):
            raise BadExport(
                f"{self._path} ends at position {position}, its manifest names"
                f" {self.manifest.position}, or another hash"
            )

    def _pages(self) -> Batches:
        try:
            yield from self._read(self._path)
        except (DecodeError, ValueError, LookupError, OverflowError) as error:
            raise BadExport(f"{self._path} can't be read: {error}") from error


def _checked_file(directory: Path, entry: File) -> Path:
    path = directory / entry.file
    if path.parent != directory:
        raise BadExport(f"the manifest names {entry.file}, which is not in {directory}")
    try:
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadExport(f"can't read {path}: {error.strerror}") from error
    if found != entry.sha256:
        raise BadExport(f"{path} is not what was exported: its SHA-256 is not the manifest's")
    return path


def whole(pages: Iterable[list[Record]]) -> Batches:
    """The same records, cut so that what was decided stands with its cause."""
    kept: list[Record] = []
    for page in pages:
        kept += page
        cut = next((n for n in range(len(kept) - 1, 0, -1) if not kept[n].cause_position), 0)
        if cut:
            yield kept[:cut]
            kept = kept[cut:]
    if kept:
        yield kept
