"""The directory of a replay: files of whole lines, and how far they go.

A file is called `….part` while it grows. Whatever ended a replay, the next one finds what is whole,
cuts off what is torn, and goes on from there.
"""

import fcntl
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from msgspec import DecodeError, Struct, json
from msgspec.structs import replace

from cli.replay import ReplayRefused
from cli.replay.reader import Found, Page, Wish

FILE_EVENTS: Final = 100_000
NAME: Final = "replay.json"
PART: Final = ".part"
_IS_OURS: Final = re.compile(r"events-\d{12,}\.jsonl(\.part)?").fullmatch


class Mark(Struct, frozen=True):
    """An event by what no other one has."""

    position: int
    hash: str


class Marker(Struct, frozen=True):
    """What a directory is the replay of, how far that goes, and the last event in it."""

    first: int
    type: str | None
    stream: UUID | None
    position: int
    event: Mark | None = None


_read_mark: Final = json.Decoder(Mark).decode
_read_marker: Final = json.Decoder(Marker).decode


class ReplayDirectory:
    """A directory that a replay goes into; `marker` says how far it is."""

    def __init__(self, path: Path, fd: int, marker: Marker) -> None:
        self._path = path
        self._fd = fd
        self._file: _File | None = None
        self.marker = marker
        self.written = 0

    async def take(self, page: Page) -> None:
        """Write a page; raises ReplayRefused where it can't, and leaves whole lines then."""
        left: Sequence[Found] = page.found
        while left:
            with told(self._path):
                file = self._file or _File(self._path / _name(left[0].record.position))
                self._file = file
                room = FILE_EVENTS - file.events
                file.write(left[:room])
            left = left[room:]
            if file.events == FILE_EVENTS:
                self.finish()
        event = self.marker.event
        if page.found:
            last = page.found[-1].record
            event = Mark(last.position, last.hash.hex())
        self.marker = replace(self.marker, position=page.scanned_to, event=event)
        self.written += len(page.found)

    def finish(self) -> None:
        """Give the file its final name, and note how far the directory goes."""
        with told(self._path):
            if self._file:
                self._file.finish()
                os.fsync(self._fd)
                self._file = None
            draft = self._path / f".{NAME}"
            with draft.open("wb") as file:
                file.write(json.format(json.encode(self.marker)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path / NAME)
            os.fsync(self._fd)


class _File:
    """A file that grows by whole lines."""

    def __init__(self, final: Path) -> None:
        self._final = final
        self._part = final.with_name(final.name + PART)
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._size = 0
        self.events = 0

    def write(self, events: Sequence[Found]) -> None:
        lines = b"".join(event.line + b"\n" for event in events)
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(lines)
        self.events += len(events)

    def finish(self) -> None:
        os.fsync(self._fd)
        os.close(self._fd)
        if self.events:
            self._part.rename(self._final)
        else:
            self._part.unlink()


def _name(position: int) -> str:
    return f"events-{position:012}.jsonl"


@contextmanager
def open_directory(path: Path, wish: Wish) -> Iterator[ReplayDirectory]:
    """The directory for the replay of a wish, made where it is missing, and finished in the end.

    Raises ReplayRefused where it is that of another wish or of another command that is at work.
    """
    with told(path):
        path.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReplayRefused(f"another replay into {path} is under way") from None
        with told(path):
            directory = ReplayDirectory(path, fd, _found(path, wish))
        try:
            directory.finish()
            yield directory
        finally:
            with suppress(ReplayRefused):
                directory.finish()
    finally:
        os.close(fd)


def _found(path: Path, wish: Wish) -> Marker:
    """How far the directory goes, once it is healed."""
    files = _files(path)
    new = Marker(wish.first, wish.type, wish.stream, wish.first - 1)
    marker = _marker(path) or new
    asked, there = [(m.first, m.type, m.stream) for m in (new, marker)]
    if asked != there or (files and not (path / NAME).exists()):
        raise ReplayRefused(f"{path} holds the replay of other events: choose another directory")
    for file in files:
        if file.name.endswith(PART):
            heal(file)
    mark = next((last_whole(file)[1] for file in reversed(_files(path))), None)
    if mark and mark.position > marker.position:
        return replace(marker, position=mark.position, event=mark)
    return marker


def _files(path: Path) -> list[Path]:
    """The files of events by their first position."""
    found = [file for file in path.iterdir() if _IS_OURS(file.name)]
    return sorted(found, key=lambda file: int(file.name.removeprefix("events-").split(".")[0]))


def _marker(path: Path) -> Marker | None:
    try:
        return _read_marker((path / NAME).read_bytes())
    except FileNotFoundError:
        return None
    except DecodeError as error:
        raise ReplayRefused(f"{path / NAME} is not that of a replay: {error}") from None


def heal(part: Path) -> None:
    """Cut off what is torn, and give what is whole its final name."""
    end, mark = last_whole(part)
    if mark is None:
        part.unlink()
        return
    with part.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())
    part.rename(part.with_suffix(""))


def last_whole(path: Path) -> tuple[int, Mark | None]:
    """Where the last whole line of a file ends, and the event in it."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return 0, None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            end = text.rfind(b"\n") + 1
            while end:
                start = text.rfind(b"\n", 0, end - 1) + 1
                with suppress(DecodeError):
                    return end, _read_mark(text[start:end])
                end = start
    return 0, None


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Raises ReplayRefused for what the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise ReplayRefused(f"can't write {path}: {error.strerror}") from error
