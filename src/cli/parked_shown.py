"""How parked messages look, for people and for programs."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.parked_found import Found, Look
from cli.plain import as_text, plain
from ledger.core.events import TYPE_OF
from ledger.eventlog.records import Submitted
from ledger.messaging.parking import Parked, read_again
from ledger.messaging.parking_log import Entry
from ledger.runtime.timestamps import format_rfc3339, format_us

SHORT: Final = 8
MAX_LISTED: Final = 200
MAX_NAMED: Final = 10
UNFOLDED: Final = 1_000
KNOWN_HEADERS: Final = {"x-reason", "x-delivery-count", "x-acquired-count"}
"""The reason is shown anyway, and the broker counts how often a message was read."""


class ListedMessage(Struct, frozen=True):
    """A parked message in a list; `trouble` is null when today's code can read it."""

    id: str
    parked_at: str | None
    copies: int
    size: int
    whole: bool
    reason: str
    trouble: str | None


class LoggedAction(Struct, frozen=True):
    """What was done with a message, as the record has it."""

    at: str
    action: str
    operator: str
    id: str
    copies: int
    size: int
    whole: bool
    reason: str


class ShownEvent(Struct, frozen=True):
    """An event that today's code reads in a parked message."""

    type: str
    id: str
    subject: str


class ShownMessage(ListedMessage, frozen=True):
    """A message with all that is known of it; the body is in one of the last two."""

    log: list[LoggedAction]
    events: list[ShownEvent]
    headers: dict[str, Any]
    text: str | None
    base64: str | None


def listed(found: Found) -> ListedMessage:
    """A message for `list --json`."""
    parked = found.parked
    return ListedMessage(
        parked.id,
        _parked_at(parked),
        found.copies,
        parked.size,
        parked.whole,
        parked.reason,
        parked.trouble,
    )


def shown(look: Look) -> ShownMessage:
    """A message for `show --json`."""
    body = look.body or b""
    events, _ = read_again(body, look.found.parked.whole)
    text = as_text(body)
    return ShownMessage(
        **asdict(listed(look.found)),
        log=[logged(entry) for entry in look.entries],
        events=[_event(event) for event in events],
        headers={name: _jsonable(value) for name, value in look.headers.items()},
        text=text,
        base64=None if text is not None else b64encode(body).decode(),
    )


def logged(entry: Entry) -> LoggedAction:
    """An action for `log --json`."""
    return LoggedAction(
        _at(entry),
        entry.action,
        entry.operator,
        entry.id,
        entry.copies,
        entry.size,
        entry.whole,
        entry.reason,
    )


def _at(entry: Entry) -> str:
    return format_us(entry.at_us, "seconds")


def _event(event: Submitted) -> ShownEvent:
    return ShownEvent(TYPE_OF[type(event.payload)], str(event.event_id), str(event.stream_id))


def _jsonable(value: object) -> object:
    """A header as JSON can say it: headers may be of any type that AMQP has."""
    match value:
        case dict():
            return {str(name): _jsonable(of) for name, of in value.items()}
        case list():
            return [_jsonable(of) for of in value]
        case bool() | int() | float() | str() | None:
            return value
        case datetime():
            return format_rfc3339(value, "seconds")
    return repr(value)


def _parked_at(parked: Parked) -> str | None:
    return format_rfc3339(parked.parked_at, "seconds") if parked.parked_at else None


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """The beginning of each id that no other of them has: SHORT characters, or more if need be."""
    length = SHORT
    while len({id_[:length] for id_ in ids}) < len(set(ids)):
        length += 1
    return {id_: id_[:length] for id_ in ids}


def listing(found: Sequence[Found], names: dict[str, str]) -> Table:
    """The messages for a person to read."""
    table = _table("id", "parked", "copies", "bytes", "now")
    for each in found:
        parked = each.parked
        now = "unreadable" if parked.trouble else "readable"
        at, size = _parked_at(parked) or "–", str(parked.size)
        table.add_row(
            names[parked.id], at, str(each.copies), size, now, _reason_cell(parked.reason)
        )
    return table


def record_listing(entries: Sequence[Entry]) -> Table:
    """The record for a person to read."""
    names = short_ids([entry.id for entry in entries])
    table = _table("at", "action", "by", "id", "copies", "bytes")
    for each in entries:
        who, size = plain(each.operator), str(each.size)
        cells = (_at(each), each.action, Text(who), names[each.id], str(each.copies), size)
        table.add_row(*cells, _reason_cell(each.reason))
    return table


def _table(*names: str) -> Table:
    """A table with these columns, and one of reasons that has what room is left."""
    table = Table(box=None)
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column("reason")
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table, folded at a terminal to its width, else a line a row."""
    wide = console if console.is_terminal else Console(file=console.file, width=UNFOLDED)
    wide.print(table)


def _reason_cell(reason: str) -> Text:
    text = plain(reason)
    return Text(text if len(text) <= MAX_LISTED else f"{text[: MAX_LISTED - 1]}…")


def refusals(refused: Sequence[Found]) -> Iterator[str]:
    """A line for each of the first messages that stay parked, and why."""
    names = short_ids([each.parked.id for each in refused])
    for each in refused[:MAX_NAMED]:
        parked = each.parked
        yield f"{names[parked.id]} stays parked: {plain(parked.trouble or '')}"
    if len(refused) > MAX_NAMED:
        yield f"{len(refused) - MAX_NAMED} more stay parked: see `ledger parked list`"


def facts(look: Look) -> str:
    """All about a message but its body, for a person to read."""
    parked = look.found.parked
    others = {name: str(of) for name, of in look.headers.items() if name not in KNOWN_HEADERS}
    lines = [
        ("id", parked.id),
        *((each.action, f"{_at(each)} by {each.operator}") for each in look.entries),
        *([] if look.entries else [("parked", _parked_at(parked) or "–")]),
        ("copies", str(look.found.copies)),
        ("was", "a message of the inbox" if parked.whole else "one event of a group"),
        ("bytes", str(parked.size)),
        ("reason", parked.reason),
        ("now", _now(look)),
        *others.items(),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{plain(name):<{width}}{plain(value)}" for name, value in lines)


def _now(look: Look) -> str:
    trouble, reason = look.found.parked.trouble, look.found.parked.reason
    if trouble:
        return "unreadable, as then" if trouble == reason else f"unreadable: {trouble}"
    events, _ = read_again(look.body or b"", look.found.parked.whole)
    named = ", ".join(f"{each.type} {each.id}" for each in map(_event, events[:MAX_NAMED]))
    more = f" and {len(events) - MAX_NAMED} more" if len(events) > MAX_NAMED else ""
    return f"readable: {named}{more}"
