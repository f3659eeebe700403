"""`manifest.json`: what an export holds. It is written last: an export that has it is whole."""

from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec import DecodeError, Struct, json

from cli.export import BadExport, Format
from cli.export.tables import Column

NAME: Final = "manifest.json"
VERSION: Final = 1


class File(Struct, frozen=True, omit_defaults=True):
    """One file of an export."""

    file: str
    rows: int
    bytes: int
    sha256: str


class Entry(File, frozen=True, kw_only=True):
    """The file of the events, or of a view."""

    name: str
    columns: tuple[Column, ...]
    view_version: int | None = None


class Manifest(Struct, frozen=True, omit_defaults=True):
    """An export: all of its files are of one position; `hash` is that of the event there."""

    manifest_version: int
    format: Format
    position: int
    hash: str
    exported_at: datetime
    ledger_version: str
    tables: tuple[Entry, ...]
    keys: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """Every file but the manifest."""
        return (*self.tables, *((self.keys,) if self.keys else ()))


def encode(manifest: Manifest) -> bytes:
    """The manifest, indented for people."""
    return json.format(json.encode(manifest), indent=2) + b"\n"


def read(directory: Path) -> Manifest:
    """The manifest of an export; raises BadExport."""
    path = directory / NAME
    try:
        manifest = json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BadExport(f"there is no {path}: {directory} holds no whole export") from None
    except OSError as error:
        raise BadExport(f"can't read {path}: {error.strerror}") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise BadExport(f"{path} is no manifest that this version reads: {error}") from error
    if manifest.manifest_version != VERSION:
        raise BadExport(
            f"{path} has manifest_version {manifest.manifest_version}, this is for {VERSION}"
        )
    return manifest
