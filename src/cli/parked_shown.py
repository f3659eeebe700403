"""How parked messages look.

They are bytes of strangers: nothing of them may reach a terminal as it is.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from rich.table import Table
from rich.text import Text

from cli.unparking import Found, Look
from ledger.core.events import TYPE_OF, Submitted
from ledger.parking import Parked, read_again

SHORT: Final = 8
MAX_LISTED: Final = 200
MAX_SHOWN: Final = 4096
MAX_NAMED: Final = 10
HEX_LINE: Final = 16
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


class ShownEvent(Struct, frozen=True):
    """An event that today's code reads in a parked message."""

    type: str
    id: str
    subject: str


class ShownMessage(ListedMessage, frozen=True):
    """A parked message with all that came with it; the body is in one of the last two."""

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
    events, _ = read_again(look.body, look.found.parked.whole)
    text = as_text(look.body)
    return ShownMessage(
        **asdict(listed(look.found)),
        events=[_event(event) for event in events],
        headers={name: _jsonable(value) for name, value in look.headers.items()},
        text=text,
        base64=None if text is not None else b64encode(look.body).decode(),
    )


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
            return moment(value)
    return repr(value)


def _parked_at(parked: Parked) -> str | None:
    return moment(parked.parked_at) if parked.parked_at else None


def moment(at: datetime) -> str:
    """A time to the second, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """The beginning of each id that no other of them has: SHORT characters, or more if need be."""
    length = SHORT
    while len({id_[:length] for id_ in ids}) < len(set(ids)):
        length += 1
    return {id_: id_[:length] for id_ in ids}


def listing(found: Sequence[Found], names: dict[str, str]) -> Table:
    """The messages for a person to read."""
    table = Table(box=None)
    for name in ("id", "parked", "copies", "bytes", "now"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason")
    for each in found:
        parked = each.parked
        now = "unreadable" if parked.trouble else "readable"
        reason = plain(parked.reason)
        if len(reason) > MAX_LISTED:
            reason = reason[: MAX_LISTED - 1] + "…"
        at, size = _parked_at(parked) or "–", str(parked.size)
        table.add_row(names[parked.id], at, str(each.copies), size, now, Text(reason))
    return table


def facts(look: Look) -> str:
    """All about a message but its body, for a person to read."""
    parked = look.found.parked
    others = {name: str(of) for name, of in look.headers.items() if name not in KNOWN_HEADERS}
    lines = {
        "id": parked.id,
        "parked": _parked_at(parked) or "–",
        "copies": str(look.found.copies),
        "was": "a message of the inbox" if parked.whole else "one event of a group",
        "bytes": str(parked.size),
        "reason": parked.reason,
        "now": _now(look),
        **others,
    }
    return "\n".join(f"{plain(name):<8}{plain(value)}" for name, value in lines.items())


def _now(look: Look) -> str:
    parked = look.found.parked
    events, trouble = read_again(look.body, parked.whole)
    if trouble:
        return "unreadable, as then" if trouble == parked.reason else f"unreadable: {trouble}"
    named = ", ".join(f"{each.type} {each.id}" for each in map(_event, events[:MAX_NAMED]))
    more = f" and {len(events) - MAX_NAMED} more" if len(events) > MAX_NAMED else ""
    return f"readable: {named}{more}"


def body_lines(body: bytes) -> str:
    """The first MAX_SHOWN bytes: JSON indented, other text as it is, anything else in hex."""
    text = as_text(body)
    if text is None:
        shown, cut = "\n".join(_hex_lines(body[:MAX_SHOWN])), len(body) > MAX_SHOWN
    else:
        pretty = _pretty(body) or text
        shown, cut = plain(pretty[:MAX_SHOWN], keep="\n"), len(pretty) > MAX_SHOWN
    return f"{shown}\n… cut here: `--raw` prints all {len(body)} bytes" if cut else shown


def as_text(body: bytes) -> str | None:
    """The body as text; None where it's something else."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in "\t\r\n" for each in text) else None


def _pretty(body: bytes) -> str | None:
    try:
        return msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, RecursionError):
        return None


def _hex_lines(body: bytes) -> Iterable[str]:
    for at in range(0, len(body), HEX_LINE):
        line = body[at : at + HEX_LINE]
        letters = (chr(byte) for byte in line)
        ascii_ = "".join(each if " " <= each <= "~" else "." for each in letters)
        yield f"{at:08x}  {line.hex(' '):<{3 * HEX_LINE - 1}}  {ascii_}"


def plain(text: str, keep: str = "") -> str:
    """The text without what could command a terminal: each such character as its escape."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )
