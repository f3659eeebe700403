"""`ledger parked`: messages that could not be read (dead letters), and what becomes of them."""

import re
import sys
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import typer
from msgspec.structs import asdict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli import console
from cli.commands.parked_queue import (
    Details,
    ParkedMessage,
    choose,
    find,
    read_log,
    remove,
    survey,
)
from ledger.core.events import TYPE_OF
from ledger.messaging.parking import decode_parked
from ledger.messaging.parking_log import Action, Entry
from ledger.runtime.timestamps import format_rfc3339, format_us

parked = typer.Typer(no_args_is_help=True, add_completion=False)

ID_HELP: Final = "the beginning of its id, as `list` shows it"

Limit = Annotated[int, typer.Option(min=1, help="show so many at most")]
Id = Annotated[str, typer.Argument(metavar="ID", help=ID_HELP)]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help=ID_HELP)]
All = Annotated[bool, typer.Option("--all", help="all of them, or with --reason some")]
Reason = Annotated[
    str | None, typer.Option(metavar="GLOB", help="those whose reason fits, as '*order.shipped*'")
]

READING: Final = "reading the parking queue"
MIN_ID: Final = 8
MAX_REASON: Final = 200
MAX_NAMED: Final = 10
MAX_BODY: Final = 4096
HEX_LINE: Final = 16
PRINTABLE_ASCII: Final = range(0x20, 0x7F)
UNFOLDED_WIDTH: Final = 1_000
# The reason has a row of its own, and the other two count how often a message was read.
HIDDEN_HEADERS: Final = {"x-reason", "x-delivery-count", "x-acquired-count"}

_is_prefix: Final = re.compile(r"[0-9a-f]{4,64}").fullmatch


@parked.command("list")
def list_parked(limit: Limit = 100, as_json: console.AsJson = False) -> None:
    """Show what is parked, the oldest first; the queue stays as it is."""
    with console.progress(READING, None) as advance:
        result = console.run(survey(console.read_settings(), advance))
    shown = result.messages[:limit]
    left_out = len(result.messages) - len(shown)
    if as_json:
        listed = [_json_object(message) for message in shown]
        console.print_json({"messages": listed, "left_out": left_out, "unread": result.unread})
        return
    if not result.messages:
        console.out.print("nothing is parked")
        return
    _print_table(
        console.out, _messages_table(shown, _short_ids([m.parked.id for m in result.messages]))
    )
    if left_out:
        console.err.print(
            f"{left_out} more are parked: see them with --limit {len(result.messages)}"
        )
    if result.unread:
        console.err.print(
            f"{result.unread} messages behind these were not read: take some out first"
        )


@parked.command("show")
def show_parked(
    id_: Id,
    raw: Annotated[bool, typer.Option("--raw", help="print the bytes, and nothing else")] = False,
    as_json: console.AsJson = False,
) -> None:
    """Show a message, parked or logged, what was wrong with it, and if it can be read now."""
    prefix = _prefix(id_)
    with console.progress(READING, None) as advance:
        details = console.run(find(console.read_settings(), prefix, advance))
    if raw:
        if details.body is None:
            console.fail("its bytes were erased")
        typer.echo(details.body, nl=False)
    elif as_json:
        console.print_json(_json_details(details))
    else:
        console.out.print(_facts(details), _body_text(details.body), sep="\n\n", markup=False)


@parked.command("resubmit")
def resubmit_parked(
    ids: Ids = None, every: All = False, reason: Reason = None, as_json: console.AsJson = False
) -> None:
    """Put messages that can be read now back into the inbox, in the order they were parked in."""
    chosen = _choose(ids or [], every, reason)
    # What can't be read now would only be parked again.
    readable = [message for message in chosen if not message.parked.trouble]
    unreadable = [message for message in chosen if message.parked.trouble]
    _remove("resubmitted", readable, unreadable, as_json)


@parked.command("discard")
def discard_parked(
    ids: Ids = None,
    every: All = False,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: console.AsJson = False,
) -> None:
    """Take messages off the queue; their bytes stay in the log."""
    if every and reason is None:
        console.usage_error("say which with --reason: '*' is all of them")
    chosen = _choose(ids or [], every, reason)
    if chosen and not yes:
        question = f"discard {_count(len(chosen), sum(message.copies for message in chosen))}?"
        if not sys.stdin.isatty():
            console.usage_error(f"{question} There is no terminal to answer on: give --yes")
        names = _short_ids([message.parked.id for message in chosen])
        _print_table(console.err, _messages_table(chosen[:MAX_NAMED], names))
        typer.confirm(question, abort=True, err=True)
    _remove("discarded", chosen, [], as_json)


@parked.command("log")
def show_log(limit: Limit = 100, as_json: console.AsJson = False) -> None:
    """Show what was resubmitted and discarded, when and by whom, the newest last."""
    entries = console.run(read_log(console.read_settings(), limit))
    if as_json:
        console.print_json({"entries": [_logged(entry) for entry in entries]})
    elif entries:
        names = _short_ids([entry.id for entry in entries])
        table = _table("at", "action", "by", "id", "copies", "bytes")
        for entry in entries:
            operator = Text(console.printable(entry.operator))
            cells = (format_us(entry.at_us, "seconds"), entry.action, operator, names[entry.id])
            table.add_row(*cells, str(entry.copies), str(entry.size), _reason_cell(entry.reason))
        _print_table(console.out, table)
    else:
        console.out.print("nothing was resubmitted or discarded")


def _choose(ids: list[str], every: bool, reason: str | None) -> list[ParkedMessage]:
    """The messages that the arguments name, in the order of the queue."""
    prefixes = [_prefix(id_) for id_ in ids]
    if bool(prefixes) == every:
        console.usage_error("name messages by their ids, or give --all")
    if reason is not None and not every:
        console.usage_error("--reason goes with --all")
    with console.progress(READING, None) as advance:
        return console.run(choose(console.read_settings(), prefixes, reason, advance))


def _remove(
    action: Action, chosen: list[ParkedMessage], unreadable: list[ParkedMessage], as_json: bool
) -> None:
    """Resubmit or discard messages and print it; status 1 where that is not all of them."""
    done: dict[str, int] = {}
    if chosen:
        with console.progress(action, len(chosen)) as advance:
            try:
                console.run(remove(console.read_settings(), action, chosen, advance, done))
            except BaseException:
                # Whatever stopped it (Ctrl-C, too), the operator must know what is done.
                console.err.print(f"until then {_count(len(done), sum(done.values()))} {action}")
                raise
    gone = [message.parked.id for message in chosen if message.parked.id not in done]
    if as_json:
        refused = {message.parked.id: message.parked.trouble for message in unreadable}
        console.print_json({action: done, "refused": refused, "gone": gone})
    else:
        console.out.print(f"{action} {_count(len(done), sum(done.values()))}")
        names = _short_ids([message.parked.id for message in unreadable])
        for message in unreadable[:MAX_NAMED]:
            trouble = console.printable(message.parked.trouble or "")
            console.err.print(f"{names[message.parked.id]} stays parked: {trouble}", markup=False)
        if len(unreadable) > MAX_NAMED:
            more = len(unreadable) - MAX_NAMED
            console.err.print(f"{more} more stay parked: see `ledger parked list`", markup=False)
        if gone:
            console.err.print(f"{len(gone)} had left the queue meanwhile: see `ledger parked log`")
    if unreadable or gone:
        raise typer.Exit(console.FAILED)


def _count(messages: int, copies: int) -> str:
    text = f"{messages} message" if messages == 1 else f"{messages} messages"
    return text if copies == messages else f"{text} ({copies} copies)"


def _prefix(id_: str) -> str:
    """The beginning of an id; what can't be one ends the command with status 2."""
    prefix = id_.lower()
    if not _is_prefix(prefix):
        console.usage_error(f"{id_!r} can't be an id: give 4 to 64 of the digits that `list` shows")
    return prefix


def _json_object(message: ParkedMessage) -> dict[str, Any]:
    """A message for programs; `trouble` is null when today's code can read it."""
    parked_at = _parked_at(message)
    return {**asdict(message.parked), "parked_at": parked_at, "copies": message.copies}


def _json_details(details: Details) -> dict[str, Any]:
    """A message for `show --json`; its body is in `text`, or in `base64` if it is not text."""
    body = details.body or b""
    events, _ = decode_parked(body, details.message.parked.whole)
    text = _as_text(body)
    return {
        **_json_object(details.message),
        "log": [_logged(entry) for entry in details.entries],
        "events": [
            {"type": TYPE_OF[type(e.payload)], "id": e.event_id, "subject": e.stream_id}
            for e in events
        ],
        "headers": {name: _jsonable(value) for name, value in details.headers.items()},
        "text": text,
        "base64": None if text is not None else b64encode(body).decode(),
    }


def _logged(entry: Entry) -> dict[str, Any]:
    """A row of the log for programs."""
    fields = asdict(entry)
    return {"at": format_us(fields.pop("at_us"), "seconds"), **fields}


def _jsonable(value: object) -> object:
    """A header's value as JSON: it may be of any type that AMQP has."""
    match value:
        case dict():
            return {str(name): _jsonable(item) for name, item in value.items()}
        case list():
            return [_jsonable(item) for item in value]
        case bool() | int() | float() | str() | None:
            return value
        case datetime():
            return _time_text(value)
    return repr(value)


def _facts(details: Details) -> str:
    """All about a message but its body, for people."""
    parked_as = details.message.parked
    if trouble := parked_as.trouble:
        same = trouble == parked_as.reason
        now = "unreadable, as then" if same else f"unreadable: {trouble}"
    else:
        events, _ = decode_parked(details.body or b"", parked_as.whole)
        named = ", ".join(f"{TYPE_OF[type(e.payload)]} {e.event_id}" for e in events[:MAX_NAMED])
        more = f" and {len(events) - MAX_NAMED} more" if len(events) > MAX_NAMED else ""
        now = f"readable: {named}{more}"
    history: list[tuple[str, str]] = [
        (entry.action, f"{format_us(entry.at_us, 'seconds')} by {entry.operator}")
        for entry in details.entries
    ]
    headers = details.headers.items()
    rows = [
        ("id", parked_as.id),
        *(history or [("parked", _parked_at(details.message) or "–")]),
        ("copies", str(details.message.copies)),
        ("was", "a message of the inbox" if parked_as.whole else "one event of a group"),
        ("bytes", str(parked_as.size)),
        ("reason", parked_as.reason),
        ("now", now),
        *((name, str(value)) for name, value in headers if name not in HIDDEN_HEADERS),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(
        f"{console.printable(name):<{width}}{console.printable(value)}" for name, value in rows
    )


def _body_text(body: bytes | None) -> str:
    """The first MAX_BODY bytes: JSON indented, other text as it is, anything else in hex."""
    if body is None:
        return "its bytes were erased"
    text = _as_text(body)
    if text is None:
        lines = []
        for begin in range(0, min(len(body), MAX_BODY), HEX_LINE):
            line = body[begin : begin + HEX_LINE]
            ascii_text = "".join(chr(byte) if byte in PRINTABLE_ASCII else "." for byte in line)
            lines.append(f"{begin:08x}  {line.hex(' '):<{3 * HEX_LINE - 1}}  {ascii_text}")
        shown, is_cut = "\n".join(lines), len(body) > MAX_BODY
    else:
        with suppress(msgspec.DecodeError, RecursionError):  # text that is not JSON stays as it is
            text = msgspec.json.format(body, indent=2).decode()
        shown, is_cut = console.printable(text[:MAX_BODY], keep="\n"), len(text) > MAX_BODY
    return f"{shown}\n… cut here: `--raw` prints all {len(body)} bytes" if is_cut else shown


def _as_text(body: bytes) -> str | None:
    """The body as text; None if it is something else."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\t\r\n" for char in text) else None


def _messages_table(messages: Sequence[ParkedMessage], names: dict[str, str]) -> Table:
    table = _table("id", "parked", "copies", "bytes", "now")
    for message in messages:
        parked_as = message.parked
        state = "unreadable" if parked_as.trouble else "readable"
        parked_at = _parked_at(message) or "–"
        cells = (names[parked_as.id], parked_at, str(message.copies), str(parked_as.size), state)
        table.add_row(*cells, _reason_cell(parked_as.reason))
    return table


def _table(*names: str) -> Table:
    """A table with these columns, and a last one for reasons that takes the room that is left."""
    table = Table(box=None)
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column("reason")
    return table


def _print_table(target: Console, table: Table) -> None:
    """Print a table, at a terminal folded to its width, else one line a row."""
    # A program that reads lines must not get folded ones.
    wide = Console(file=target.file, width=UNFOLDED_WIDTH)
    (target if target.is_terminal else wide).print(table)


def _reason_cell(reason: str) -> Text:
    text = console.printable(reason)
    return Text(text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…")


def _short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Each id cut to MIN_ID characters, or to as many as tell all of them apart."""
    length = MIN_ID
    while len({id_[:length] for id_ in ids}) < len(set(ids)):
        length += 1
    return {id_: id_[:length] for id_ in ids}


def _parked_at(message: ParkedMessage) -> str | None:
    return _time_text(message.parked.parked_at) if message.parked.parked_at else None


def _time_text(moment: datetime) -> str:
    return format_rfc3339(moment.astimezone(UTC), "seconds")
